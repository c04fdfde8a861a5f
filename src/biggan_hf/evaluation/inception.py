"""Inception v3 in its two uses: the TensorFlow network of 2015 that defines FID and IS, and torchvision's.

Architecture: Szegedy et al. 2015, arXiv:1512.00567. The modules are named as in torchvision, so that its weights and
those that torch-fidelity and pytorch-fid publish load as they are. The two graphs differ in their pooling branches.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


Pooling = Literal["average", "average_with_padding", "max"]
Kernel = int | tuple[int, int]
Layer = tuple[int, Kernel] | tuple[int, Kernel, int]  # channels, kernel, stride if not 1
Branches = dict[str, list[Layer | Literal["fork"]]]

INPUT_SIZE = 299  # px
FORK: dict[str, Layer] = {"a": (384, (1, 3)), "b": (384, (3, 1))}  # two convolutions side by side, at a branch's end


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Kernel, stride: int, padding: Kernel):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(images)))


class Mixed(nn.Module):
    """
    Branches side by side, and a branch that pools. Convolutions of stride 1 keep the size; stride 2 has no padding.

    Args:
        pool_channels: Width of the convolution after the pooling; 0 for none, and the pooling then has stride 2.
    """

    def __init__(self, in_channels: int, branches: Branches, pool_channels: int, pooling: Pooling):
        super().__init__()
        self.pooling, self.pool_stride = pooling, 1 if pool_channels else 2
        self.out_channels = pool_channels or in_channels
        self.paths: list[list[list[str]]] = []  # of each branch its steps, of each step the names of its convolutions
        for branch, layers in branches.items():
            width, path = in_channels, []
            for number, layer in enumerate(layers, start=1):
                name = f"{branch}_{number}" if len(layers) > 1 else branch
                step = {name + side: one for side, one in FORK.items()} if layer == "fork" else {name: layer}
                for part, one in step.items():
                    self.add_module(part, _convolution(width, one))
                width = sum(one[0] for one in step.values())
                path.append(list(step))
            self.paths.append(path)
            self.out_channels += width
        if pool_channels:
            self.branch_pool = _convolution(in_channels, (pool_channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        outputs = []
        for path in self.paths:
            ends = [images]
            for step in path:
                ends = [self.get_submodule(name)(ends[0]) for name in step]
            outputs += ends
        return torch.cat([*outputs, self._pool(images)], dim=1)

    def _pool(self, images: Tensor) -> Tensor:
        if self.pool_stride == 2:
            return F.max_pool2d(images, 3, stride=2)
        if self.pooling == "max":
            return self.branch_pool(F.max_pool2d(images, 3, stride=1, padding=1))
        count_padding = self.pooling == "average_with_padding"
        return self.branch_pool(F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=count_padding))


class InceptionV3(nn.Module):
    """
    Args:
        pooling: `"average"` leaves the padding out of the mean, as TensorFlow does.
        last_pooling: Of the last block; the TensorFlow network has `"max"` there.
        logits_bias: Whether the bias of the last layer is added; IS is defined without it (Salimans et al. 2016,
            whose program reads the product of features and weights from the TensorFlow graph).
    """

    def __init__(self, num_classes: int, pooling: Pooling, last_pooling: Pooling, logits_bias: bool):
        super().__init__()
        self.logits_bias = logits_bias
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1, 0)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 1, 0)
        channels, self.mixed_names = 192, []
        for name, branches, pool_channels in _blocks():
            block = Mixed(channels, branches, pool_channels, last_pooling if name == "Mixed_7c" else pooling)
            self.add_module(name, block)
            self.mixed_names.append(name)
            channels = block.out_channels
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """From (N, 3, 299, 299), normalised as the weights expect, to features (N, 2048) and logits (N, classes)."""
        hidden_states = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        hidden_states = F.max_pool2d(hidden_states, 3, stride=2)  # (N, 64, 73, 73)
        hidden_states = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(hidden_states))
        hidden_states = F.max_pool2d(hidden_states, 3, stride=2)  # (N, 192, 35, 35)
        for name in self.mixed_names:
            hidden_states = self.get_submodule(name)(hidden_states)
        features = hidden_states.mean((2, 3))
        return features, F.linear(features, self.fc.weight, self.fc.bias if self.logits_bias else None)


def tensorflow_inception() -> InceptionV3:
    """The network of `classify_image_graph_def.pb` (2015-12-05), by which FID and IS are defined."""
    return InceptionV3(1008, pooling="average", last_pooling="max", logits_bias=False)


def torchvision_inception() -> InceptionV3:
    """torchvision's `inception_v3` without its auxiliary head, which BigGAN-PyTorch measures with."""
    return InceptionV3(1000, pooling="average_with_padding", last_pooling="average_with_padding", logits_bias=True)


def preprocess_tensorflow(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to (N, 3, 299, 299) in [-1, 1), resized as TensorFlow 1 does."""
    return (resize_like_tensorflow(images.float(), INPUT_SIZE) - 128) / 128


def preprocess_biggan_pytorch(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to (N, 3, 299, 299): ImageNet's mean and deviation, then bilinear with corners aligned."""
    mean, std = images.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float32)[..., None, None]
    normalised = (images.float() / 255 - mean) / std
    return F.interpolate(normalised, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=True)


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """
    Bilinear as in TensorFlow 1 with `align_corners=False`: the output pixel i lies at i · input / output of the input
    grid, without the half pixel that later programs add, and nothing is blurred before a reduction.
    """
    (top, bottom, dy), (left, right, dx) = (_neighbours(length, size, images) for length in images.shape[2:])
    rows_above, rows_below = images[:, :, top], images[:, :, bottom]
    above = torch.lerp(rows_above[..., left], rows_above[..., right], dx)
    below = torch.lerp(rows_below[..., left], rows_below[..., right], dx)
    return torch.lerp(above, below, dy[:, None])


def _neighbours(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each output pixel its two neighbours on an axis of the input, and the weight of the second."""
    position = torch.arange(size, dtype=like.dtype, device=like.device) * (length / size)
    first = position.long()
    return first, (first + 1).clamp_max(length - 1), position - first


def _blocks() -> Iterator[tuple[str, Branches, int]]:
    """The mixed blocks: name, branches, width after the pooling."""
    small: Branches = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)]}
    small["branch3x3dbl"] = [(64, 1), (96, 3), (96, 3)]
    for letter, pool_channels in zip("bcd", (32, 64, 64), strict=True):
        yield f"Mixed_5{letter}", small, pool_channels
    yield "Mixed_6a", {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}, 0
    for letter, c in zip("bcde", (128, 160, 160, 192), strict=True):
        flat: Branches = {"branch1x1": [(192, 1)], "branch7x7": [(c, 1), (c, (1, 7)), (192, (7, 1))]}
        flat["branch7x7dbl"] = [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))]
        yield f"Mixed_6{letter}", flat, 192
    shrinking: Branches = {"branch3x3": [(192, 1), (320, 3, 2)]}
    shrinking["branch7x7x3"] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]
    yield "Mixed_7a", shrinking, 0
    wide: Branches = {"branch1x1": [(320, 1)], "branch3x3": [(384, 1), "fork"]}
    wide["branch3x3dbl"] = [(448, 1), (384, 3), "fork"]
    for letter in "bc":
        yield f"Mixed_7{letter}", wide, 192


def _convolution(in_channels: int, layer: Layer) -> Convolution:
    out_channels, kernel, stride = layer if len(layer) == 3 else (*layer, 1)
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if stride == 1 else (0, 0)
    return Convolution(in_channels, out_channels, kernel, stride, padding)
