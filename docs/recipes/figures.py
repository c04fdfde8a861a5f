"""
The figures of docs/how-biggan-works.md, from the model that comes with the package and from the code that trains.

    python docs/recipes/figures.py docs/images               # all of them, in seconds on one core
    python docs/recipes/figures.py docs/images how-losses    # one

Everything random is seeded: the same versions draw the same figures.
"""

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from biggan_hf import BigGANModel, BigGANPipeline, sample_latents
from biggan_hf.exploring import interpolate, truncation_sweep
from biggan_hf.images import image_grid
from biggan_hf.initialization import init_weight
from biggan_hf.layers import SelfAttention, conv2d
from biggan_hf.spectral_norm import SpectralNorm, estimates
from biggan_hf.training.losses import LOSSES, orthogonal_regularization_gradient


BLUE, ORANGE, GREY = "#2f6db3", "#d9772b", "#8a8a8a"


@cache
def fashion() -> Any:  # a BigGANModel, whose layers mypy cannot tell
    return BigGANModel.from_pretrained("biggan_hf:fashion")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def panels(number: int, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, [figure.add_subplot(1, number, i + 1) for i in range(number)]


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", pad_inches=0.06)


# The game


def losses(path: Path) -> None:
    """What each player pays for a logit."""
    figure, axes = panels(2)
    logits = torch.linspace(-3, 3, 121)
    for axis, name in zip(axes, ("hinge", "logistic"), strict=True):
        of_d, of_g, _ = LOSSES[name]
        surely = torch.tensor(1e3)  # a logit for which the other half of D's loss is 0
        axis.plot(logits, [of_d(x, -surely) for x in logits], BLUE, label="D, real picture")
        axis.plot(logits, [of_d(surely, x) for x in logits], ORANGE, label="D, generated picture")
        axis.plot(logits, [of_g(x, surely) for x in logits], GREY, linestyle="--", label="G")
        axis.set(title=name, xlabel="logit of D (right: looks real)", ylim=(-3, 4.2))
    axes[0].set_ylabel("loss")
    axes[0].legend(fontsize="small", loc="lower left")
    save(figure, path)


def game(path: Path) -> None:
    """The smallest GAN there is: G makes one number, D's logit is a slope times the number, the real number is 0."""
    figure, axes = panels(2)
    for axis, gamma, title in zip(axes, (0.0, 0.3), ("hinge loss", "hinge loss and R1"), strict=True):
        made, average = _play(gamma)
        axis.plot(made, GREY, linewidth=0.8, label="what G makes")
        axis.plot(average, ORANGE, label="its moving average")
        axis.axhline(0, color=BLUE, linestyle=":", label="the real number")
        axis.set(title=title, xlabel="step", ylim=(-1.6, 1.6))
    axes[1].legend(fontsize="small", loc="lower right")
    save(figure, path)


def _play(gamma: float, steps: int = 600, rate: float = 0.1, decay: float = 0.99) -> tuple[list[float], list[float]]:
    # Mescheder et al. 2018 (arXiv:1801.04406), section 2, with the hinge loss.
    of_d, of_g, _ = LOSSES["hinge"]
    number, slope = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    average, made, averages = 1.0, [], []
    for _ in range(steps):
        penalty = gamma / 2 * slope.square()  # R1: the gradient of D at the real number is the slope
        (gradient,) = torch.autograd.grad(of_d(slope * 0, slope * number) + penalty, slope)
        slope.data -= rate * gradient
        (gradient,) = torch.autograd.grad(of_g(slope * number, slope * 0), number)
        number.data -= rate * gradient
        average = decay * average + (1 - decay) * number.item()
        made.append(number.item())
        averages.append(average)
    return made, averages


def step(path: Path) -> None:
    """One global step of the paper's settings on four devices, 64 pictures a forward."""
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    axis = figure.add_subplot(xlim=(-0.2, 30.2), ylim=(-1.6, 4.6))
    axis.axis("off")
    for start, title, colour in ((0, "D learns", BLUE), (10, "D learns again", BLUE), (20, "G learns", ORANGE)):
        axis.text(start + 4.5, 4.3, title, ha="center", color=colour, weight="bold")
        for device in range(4):
            for batch in range(8):
                is_last = batch == 7
                axis.add_patch(Rectangle((start + batch, device), 0.85, 0.8, color=colour, alpha=0.35 + 0.3 * is_last))
        axis.add_patch(Rectangle((start + 8.1, 0), 0.9, 3.8, color=colour))
        axis.text(start + 8.55, 1.9, "update", color="white", rotation=90, ha="center", va="center", fontsize=9)
    for device in range(4):
        axis.text(-0.3, device + 0.4, f"device {4 - device}", ha="right", va="center", fontsize=8)
    axis.text(0, -0.3, "light: 64 pictures forward and back, gradients add up", fontsize=9, va="top")
    axis.text(0, -0.95, "dark: the last of them, the devices add their gradients; each update sees "
              "4 · 8 · 64 = 2,048 pictures", fontsize=9, va="top")  # fmt: skip
    axis.text(29.3, 1.9, "average\nof G", color=ORANGE, rotation=90, ha="left", va="center", fontsize=9)
    save(figure, path)


# The generator


def classes(path: Path) -> None:
    """How alike the gains are that two classes give to the channels."""
    model = fashion()
    names = list(model.config.id2label.values())
    width = model.config.class_embedding_dim
    with torch.no_grad():
        maps = [block.bn1.gain.normalized_weight()[:, :width] for stage in model.stages for block in stage.blocks]
        gains = model.class_embedding.weight @ torch.cat(maps).T  # (classes, channels of all first norms)
    centred = gains - gains.mean(0)
    alike = torch.corrcoef(centred).fill_diagonal_(float("nan"))
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(alike, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(image, label="correlation of the gains", shrink=0.8)
    save(figure, path)


def class_path(path: Path) -> None:
    """From class to class with the same latents."""
    pipe = BigGANPipeline(fashion())
    through, steps = ["Sneaker", "Ankle boot", "Bag"], 4
    latents = sample_latents(3, fashion().config.z_dim, 0.7, generator=seeded(11))
    rows = [interpolate(pipe, z[None], pipe.embed_classes(through), steps, truncation=0.7) for z in latents]
    marks = [through[i // steps] if i % steps == 0 else "" for i in range(len(rows[0]))]
    image_grid(torch.cat(rows), len(rows[0]), column_labels=marks).save(path, optimize=True)


@torch.no_grad()
def skip_latents(path: Path) -> None:
    """One chunk of the latents is drawn anew, the others stay."""
    model, truncation, label = fashion(), 0.7, torch.tensor(fashion().config.label2id["Bag"])
    own = sample_latents(1, model.config.z_dim, truncation, generator=seeded(3))
    other = sample_latents(64, model.config.z_dim, truncation, generator=seeded(5))
    width = model.config.z_dim // model.config.num_latent_chunks
    first = model(own, label[None], truncation=truncation).images
    rows, marks = [], []
    for chunk, place in enumerate(["stem", *(f"block {i + 1}" for i in range(len(model.stages)))]):
        latents = own.repeat(len(other), 1)
        part = slice(chunk * width, (chunk + 1) * width)
        latents[:, part] = other[:, part]
        images = model(latents, label.expand(len(other)), truncation=truncation).images
        deviation = images.std(0, keepdim=True)
        rows.append(torch.cat([first, images[:5], 2 * deviation / deviation.max() - 1]))
        marks.append(f"chunk {chunk + 1} ({place}): {deviation.mean():.2f}")
    titles = ["before", *[""] * 5, "change"]
    image_grid(torch.cat(rows), 7, marks, column_labels=titles).save(path, optimize=True)


@torch.no_grad()
def stages(path: Path) -> None:
    """How a picture grows: the mean size of the activations after each stage."""
    model, maps = fashion(), []
    hooks = [model.linear.register_forward_hook(lambda _, __, out: maps.append(out.unflatten(1, (-1, 4, 4))))]
    hooks += [stage.register_forward_hook(lambda _, __, out: maps.append(out.clone())) for stage in model.stages]
    labels = ["T-shirt/top", "Bag", "Ankle boot"]
    images = model.sample(labels, truncation=0.7, generator=seeded(2))
    for hook in hooks:
        hook.remove()
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    for row in range(len(labels)):
        sizes = [activations[row].abs().mean(0) for activations in maps]
        for column, picture in enumerate([*sizes, images[row, 0]]):
            axis = figure.add_subplot(len(labels), len(maps) + 1, row * (len(maps) + 1) + column + 1)
            axis.imshow(picture, cmap="gray" if column == len(maps) else "viridis")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                size = f"{picture.shape[-1]}×{picture.shape[-1]}"
                names = ["stem", *(f"block {i + 1}" for i in range(len(model.stages))), "picture"]
                axis.set_title(f"{names[column]}, {size}", fontsize=9)
    save(figure, path)


def reach(path: Path) -> None:
    """Which pixels one pixel of the output depends on, of new layers."""
    torch.manual_seed(0)
    channels, size, at = 64, 16, 6
    attention = SelfAttention(channels, sn_eps=None)
    layers: dict[str, nn.Module] = {
        "a 3×3 convolution": conv2d(channels, channels, 3, None),
        "two of them, as in a block": nn.Sequential(conv2d(channels, channels, 3, None), nn.ReLU(),
                                                    conv2d(channels, channels, 3, None)),
        "self-attention": attention,
    }  # fmt: skip
    for module in attention.modules():
        if isinstance(module, nn.Conv2d):
            init_weight(module.weight, "orthogonal")
    attention.gamma.data.fill_(1.0)  # it starts at 0: nothing is attended to
    figure, axes = panels(3, height=2.9)
    for axis, (title, layer) in zip(axes, layers.items(), strict=True):
        pixels = torch.randn(32, channels, size, size, generator=seeded(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(pixels)[:, :, at, at].sum(), pixels)
        influence = gradient.abs().mean(dim=(0, 1))
        axis.imshow(influence / influence.max(), cmap="viridis", norm="log", vmin=1e-3, vmax=1)
        axis.add_patch(Rectangle((at - 0.5, at - 0.5), 1, 1, fill=False, edgecolor="white"))
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=10)
        axis.set_facecolor("#2a0a3a")
    save(figure, path)


# Weights


@torch.no_grad()
def spectral_norm(path: Path) -> None:
    """A layer's singular values before and after, and how fast power iteration finds the largest."""
    figure, axes = panels(2)
    first, second = fashion().stages[1].blocks[0].conv1, fashion().linear
    weight = first.weight.flatten(1)
    values = torch.linalg.svdvals(weight)
    axes[0].plot(values, ORANGE, label="W")
    axes[0].plot(torch.linalg.svdvals(first.normalized_weight().flatten(1)), BLUE, label="W / σ(W)")
    axes[0].axhline(1, color=GREY, linestyle=":")
    axes[0].set(title=f"singular values of a {len(weight)} × {weight.shape[1]} weight", xlabel="number", ylim=0)
    axes[0].legend(fontsize="small")
    random = [torch.randn(layer.u0.shape, generator=seeded(0)) for layer in (first, second)]
    axes[1].semilogy(*_errors(first, random[0]), ORANGE, label="that weight, from a random vector")
    axes[1].semilogy(*_errors(first, first.u0), ORANGE, linestyle="--", label="the same, from the u of the training")
    axes[1].semilogy(*_errors(second, random[1]), BLUE, label="the stem's, from a random vector")
    axes[1].set(title="relative error of σ", xlabel="power iterations", ylim=(1e-6, 300), yticks=[1e-6, 1e-4, 1e-2, 1])
    axes[1].legend(fontsize="small")
    save(figure, path)


def _errors(layer: SpectralNorm, u: Tensor, steps: int = 30) -> tuple[list[int], list[float]]:
    layer = copy.deepcopy(layer)
    largest = torch.linalg.svdvals(layer.weight.flatten(1).double())[0]
    errors = []
    for _ in range(steps):
        layer.u0 = u
        (estimate,) = estimates([layer], iterate=True)
        u = estimate.u
        errors.append(max(float(1 - estimate.sigma / largest), 1e-7))  # float32 tells no less
    return list(range(1, steps + 1)), errors


@torch.no_grad()
def orthogonality(path: Path) -> None:
    """The products of all pairs of rows: of random weights, after the regulariser, and of the initialisation."""
    random = torch.randn(16, 64, generator=seeded(0)) / 8
    regularised = random.clone()
    for _ in range(40):
        regularised -= 0.05 * orthogonal_regularization_gradient(regularised)
    torch.manual_seed(0)
    start = torch.empty(16, 64)
    init_weight(start, "orthogonal")
    figure, axes = panels(3)
    titles = ["random", "after 40 steps of the regulariser", "orthogonal initialisation"]
    for axis, weight, title in zip(axes, (random, regularised, start), titles, strict=True):
        image = axis.imshow(weight @ weight.T, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="W Wᵀ", shrink=0.9)
    save(figure, path)


# Sampling


def densities(path: Path) -> None:
    """The latents that the three modes of truncation draw at t = 0.5."""
    figure, axes = panels(3, height=2.2)
    number, threshold = 400_000, 0.5
    titles = {"resample": "resample (paper)", "scale": "scale (TFHub)", "normal": "normal (BigGAN-PyTorch)"}
    grid = torch.linspace(-2.5, 2.5, 201)
    bell = torch.exp(-grid.square() / 2) / (2 * torch.pi) ** 0.5
    for axis, (mode, title) in zip(axes, titles.items(), strict=True):
        draw: Any = mode
        latents = sample_latents(number, 1, threshold, draw, seeded(0)).flatten()
        axis.hist(latents, bins=100, range=(-2.5, 2.5), density=True, color=ORANGE, label="t = 0.5")
        axis.plot(grid, bell, BLUE, label="N(0, 1)")
        axis.set(ylim=(0, 1.15), yticks=[])
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize="small")
    save(figure, path)


def truncation(path: Path) -> None:
    """The paper's figure 2a, of this model: the same draws at each threshold."""
    thresholds = [2, 1, 0.7, 0.5, 0.04]
    labels = ["Sandal", "Dress", "Bag", "Ankle boot"]
    options: Any = {"num_images_per_prompt": 2, "generator": seeded(4)}
    images = truncation_sweep(BigGANPipeline(fashion()), labels, thresholds, **options)  # (8, T, 1, 32, 32)
    pairs = images.unflatten(0, (len(labels), 2)).transpose(1, 2).flatten(0, 2)  # class, threshold, draw
    marks = [text for t in thresholds for text in (f"t = {t}", "")]
    image_grid(pairs, 2 * len(thresholds), labels, column_labels=marks).save(path, optimize=True)


@torch.no_grad()
def statistics(path: Path) -> None:
    """The same truncated latents with the statistics of plain ones, and with those of their own truncation."""
    model, threshold = fashion(), 0.5
    labels = torch.arange(model.config.num_labels)
    latents = sample_latents(len(labels), model.config.z_dim, threshold, generator=seeded(1))
    images = [model(latents, labels, truncation=t).images for t in (None, threshold)]
    marks = ["those of N(0, 1)", "standing, t = 0.5"]
    image_grid(torch.cat(images), len(labels), marks).save(path, optimize=True)


FIGURES: dict[str, Callable[[Path], None]] = {
    "how-losses": losses,
    "how-game": game,
    "how-step": step,
    "how-classes": classes,
    "how-class-path": class_path,
    "how-skip-latents": skip_latents,
    "how-stages": stages,
    "how-reach": reach,
    "how-spectral-norm": spectral_norm,
    "how-orthogonality": orthogonality,
    "how-densities": densities,
    "how-truncation": truncation,
    "how-statistics": statistics,
}


def draw(folder: Path, names: list[str]) -> None:
    """Writes the named figures, or all, as `folder/NAME.png`."""
    for name in names or FIGURES:
        FIGURES[name](folder / f"{name}.png")


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    draw(Path(folder), names)
