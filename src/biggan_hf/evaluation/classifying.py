"""
The accuracy of a classifier that learnt from samples, on real pictures: what the samples hold of their classes.

It is the idea of the classification accuracy score (Ravuri & Vinyals 2019, arXiv:1905.10887) with a smaller
classifier: logistic regression on the extractor's features, where the score trains a ResNet-50 on pixels. Published
scores do not compare with it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import in_float64


ITERATIONS = 200  # of L-BFGS, at most; it converges earlier


def accuracy_of_classifier(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, num_classes: int
) -> float:
    """
    The share of test features (M, d) whose label a logistic regression on features (N, d) with labels (N,) finds.

    The features are standardised. The penalty is |W|² / 2N, of one image's weight.
    """
    features, test_features = in_float64(features), in_float64(test_features)
    mean, deviation = features.mean(0), features.std(0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    x, x_test = ((rows - mean) / scale for rows in (features, test_features))
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device)
    bias = torch.zeros(num_classes, dtype=torch.float64, device=x.device)
    labels = labels.to(x.device)
    with torch.inference_mode(False), torch.enable_grad():
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight.T + bias, labels) + weight.square().sum() / (2 * len(x))
            value.backward()
            return value

        optimizer.step(loss)
    found = (x_test @ weight.detach().T + bias.detach()).argmax(1)
    return float((found == test_labels.to(found.device)).double().mean())
