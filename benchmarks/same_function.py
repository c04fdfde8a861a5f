"""Shows that this checkout computes what another checkout of the project computes: outputs, gradients and buffers.

    python benchmarks/same_function.py ../biggan_hf-before

The script runs itself once under each checkout's package. The baseline draws the weights, and both sides load them.
Each side records images, logits, gradients of parameters and inputs, and buffers of small networks of every kind. Then
the script compares the records tensor by tensor. It exits with 1 where a tensor differs or is missing on one side.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


HERE = Path(__file__).resolve()

# Largest difference, as a share of the range of the baseline's tensor.
TOLERANCE = 1e-6
# A gradient of which only rounding is left, as of a bias before a batch norm, is at most this share of the gradient of
# the layer's weight.
ROUNDING = {"float32": 1e-5, "float64": 1e-12}
# What differs by more than the tolerance in float32 must be the same in float64. Then an output or a buffer may be so
# many times as far from the float64 answer as the baseline's own is, at the worst tensor of the pass. A gradient may
# differ by this share of its range: the order of additions decides whether a ReLU finds a value above zero.
FURTHER_FROM_FLOAT64 = 4
FLOAT32_GRADIENT = 1e-2

IMAGES = 3
# Training forwards by which statistics and singular vectors come near those of a trained network.
SETTLING_FORWARDS = 12
# By which logits are divided, so that the hinge loss has a gradient for most images of an untrained network.
LOGITS = 50.0
# Of larger tensors, every so-many-th value is recorded, so that about this many are.
RECORDED_VALUES = 2**18

SMALL: dict[str, Any] = {
    "num_labels": 5,
    "class_embedding_dim": 6,
    "z_dim": 24,
    "generator_base_channels": 8,
    "discriminator_base_channels": 8,
    "generator_attention_resolutions": [],
    "discriminator_attention_resolutions": [],
}
ATTENTION = {"generator_attention_resolutions": [16], "discriminator_attention_resolutions": [16]}
WITHOUT_SPECTRAL_NORM = {"generator_spectral_norm": False, "discriminator_spectral_norm": False}

# What each kind of network changes in `SMALL`.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain, 32 px": {"image_size": 32, **ATTENTION},
    "plain, 64 px": {
        "image_size": 64,
        "z_dim": 25,
        "generator_base_channels": 16,
        "generator_attention_resolutions": [32],
        "discriminator_attention_resolutions": [32],
    },
    "plain, 128 px": {
        "image_size": 128,
        "generator_attention_resolutions": [64],
        "discriminator_attention_resolutions": [64],
        "discriminator_wide": False,
    },
    "deep, 32 px": {"image_size": 32, "architecture": "biggan-deep", **ATTENTION},
    "deep, 128 px": {
        "image_size": 128,
        "architecture": "biggan-deep",
        "generator_attention_resolutions": [64],
        "discriminator_attention_resolutions": [64],
    },
    "deep, projections": {
        "image_size": 32,
        "architecture": "biggan-deep",
        "deep_projection_shortcut": True,
        "discriminator_shortcut_relu": True,
        **ATTENTION,
    },
    "labels by layer": {
        "image_size": 32,
        "shared_class_embedding": False,
        "hierarchical_latents": False,
        "batch_norm_eps": 1e-5,
        "spectral_norm_eps": 1e-8,
    },
    "not hierarchical": {"image_size": 32, "hierarchical_latents": False, "output_batch_norm_eps": 1e-3},
    "unconditional": {"image_size": 32, "num_labels": 0},
    "nothing conditions": {"image_size": 32, "num_labels": 0, "hierarchical_latents": False},
    "no spectral norm": {"image_size": 32, **WITHOUT_SPECTRAL_NORM, **ATTENTION},
    "deep, no spectral norm": {"image_size": 32, "architecture": "biggan-deep", **WITHOUT_SPECTRAL_NORM},
    "grey": {"image_size": 32, "num_channels": 1, "discriminator_wide": False, "discriminator_shortcut_relu": True},
    "standing statistics": {"image_size": 32, "standing_truncations": [0.25, 0.5, 1.0]},
    # Where a CPU may take another form of a layer: 1024 channels and more, 384 channels at 32 px.
    "wide": {
        "image_size": 32,
        "generator_channel_multipliers": [128, 4, 4, 48],
        "discriminator_channel_multipliers": [48, 4, 128, 4],
        "initializer": "normal",
    },
}
Record = dict[str, Tensor]


# One side: what a network of each kind computes


def record(variant: str, weights: Path) -> Record:
    """All that is compared of one kind of network; draws the weights where the file does not exist yet."""
    from biggan_hf import BigGANConfig

    config = BigGANConfig(**{**SMALL, **VARIANTS[variant]})
    if not weights.exists():
        save_file(settled_weights(config), weights)
    found: Record = {}
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        side = Side(config, load_file(weights), dtype)
        with torch.no_grad():
            found |= named(f"{name}/eval", side.outputs())
        found |= named(f"{name}/eval/gradient", side.gradients_of_inputs())
        found |= named(f"{name}/training", Side(config, load_file(weights), dtype).training())
    side = Side(config, load_file(weights), torch.float64, checkpointing=True)
    found |= named("float64/checkpointing", side.training())
    return found


def settled_weights(config: Any) -> Record:
    """Weights of both networks in which no parameter has its first value of 0 or 1, and statistics fit the maps."""
    from biggan_hf import BigGANDiscriminator, BigGANModel

    torch.manual_seed(0)
    generator, discriminator = BigGANModel(config).train(), BigGANDiscriminator(config).train()
    with torch.no_grad():
        for network in (generator, discriminator):
            for name, parameter in network.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(0.7)
                elif parameter.ndim < 2:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        for _ in range(SETTLING_FORWARDS):
            labels = torch.randint(config.num_labels, (IMAGES,)) if config.num_labels else None
            images = generator(torch.randn(IMAGES, config.z_dim), labels).images
            discriminator(images, labels)
    states = named("G", generator.state_dict()) | named("D", discriminator.state_dict())
    for name, value in states.items():
        if name.endswith("standing_mean"):
            value.copy_(states[name.replace("standing", "running")] + 0.1 * torch.randn(value.shape))
        if name.endswith("standing_var"):
            value.copy_(states[name.replace("standing", "running")] * (0.5 + torch.rand(value.shape)))
    return states


class Side:
    """Both networks with the given weights, and inputs that do not depend on the package."""

    def __init__(self, config: Any, weights: Record, dtype: torch.dtype, checkpointing: bool = False):
        from biggan_hf import BigGANDiscriminator, BigGANModel

        self.generator, self.discriminator = BigGANModel(config), BigGANDiscriminator(config)
        networks: list[tuple[Any, str]] = [(self.generator, "G/"), (self.discriminator, "D/")]
        for network, name in networks:
            network.load_state_dict({k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)})
            network.to(dtype).eval()
            if checkpointing:
                network.gradient_checkpointing_enable()
        self.checkpointing = checkpointing
        draws = torch.Generator().manual_seed(1)
        size = config.num_channels, config.image_size, config.image_size
        self.config, self.truncations = config, list(config.standing_truncations)
        self.latents = torch.randn(2 * IMAGES, config.z_dim, generator=draws).to(dtype)
        self.pixels = (2 * torch.rand(IMAGES, *size, generator=draws) - 1).to(dtype)
        self.labels = torch.arange(IMAGES) % config.num_labels if config.num_labels else None
        width = config.class_embedding_dim if config.shared_class_embedding else config.num_labels
        self.embeddings = torch.randn(IMAGES, width, generator=draws).to(dtype) if config.num_labels else None

    def outputs(self) -> Record:
        """In eval mode, without gradients."""
        generator, latents, labels = self.generator, self.latents[:IMAGES], self.labels
        found = {"images": generator(latents, labels).images}
        found["one image"] = generator(latents[:1], None if labels is None else labels[:1]).images
        if self.embeddings is not None:
            found["images of embeddings"] = generator(latents, class_embeddings=self.embeddings).images
            found["class embedding"] = generator.class_embedding(labels).to(latents.dtype)
        for truncation in (0.5, 0.7):  # a row of the standing statistics, and a place between two rows
            found[f"images at {truncation}"] = generator(latents, labels, truncation=truncation).images
            seeded = torch.Generator().manual_seed(2)
            drawn = None if labels is None else [1, 3]
            found[f"sample at {truncation}"] = generator.sample(drawn, 2, truncation=truncation, generator=seeded)
        found["sample"] = generator.sample(num_images_per_prompt=2, generator=torch.Generator().manual_seed(3))
        repeats = IMAGES if labels is None else 1
        found["sample of latents"] = generator.sample(labels, repeats, latents=latents)
        found["logits"] = self.discriminator(self.pixels, labels).logits
        found["logits of one"] = self.discriminator(self.pixels[:1], None if labels is None else labels[:1]).logits
        found["generated logits"] = self.discriminator(found["images"], labels).logits
        return found

    def gradients_of_inputs(self) -> Record:
        """In eval mode, of latents, embeddings and pixels, as an inversion wants them."""
        latents, pixels = self.latents[:IMAGES].clone().requires_grad_(), self.pixels.clone().requires_grad_()
        inputs = {"latents": latents, "pixels": pixels}
        if self.embeddings is not None:
            inputs["embeddings"] = self.embeddings.clone().requires_grad_()
        images = self.generator(latents, class_embeddings=inputs.get("embeddings")).images
        loss = self.discriminator(images, self.labels).logits.sum() + (images * pixels).sum()
        loss = loss + self.discriminator(pixels, self.labels).logits.sum()
        gradients = torch.autograd.grad(loss, list(inputs.values()))
        return dict(zip(inputs, gradients, strict=True))

    def training(self) -> Record:
        """An update's forwards and backwards of each network, and what eval mode gives after it."""
        generator, discriminator = self.generator.train(), self.discriminator.train()
        found: Record = {}

        # The discriminator's half: hinge loss of real and generated images, and the penalty R1
        with torch.no_grad():
            images = generator(self.latents[:IMAGES], self.labels).images
        found["D/images"] = images
        pixels = self.pixels.clone().requires_grad_()
        real, fake = discriminator(pixels, self.labels).logits, discriminator(images, self.labels).logits
        loss = F.relu(1 - real / LOGITS).mean() + F.relu(1 + fake / LOGITS).mean()
        loss.backward()
        found |= {"D/real": real, "D/fake": fake, "D/gradient/pixels": found_gradient(pixels)}
        found |= gradients("D", discriminator)
        if not self.checkpointing:
            with sdpa_kernel(SDPBackend.MATH):  # a CPU's fused attention has no second derivatives
                real = discriminator(pixels, self.labels).logits
            (gradient,) = torch.autograd.grad(real.sum(), pixels, create_graph=True)
            gradient.square().sum().backward()
            found |= gradients("R1", discriminator)

        # The generator's half
        latents = self.latents[IMAGES:].clone().requires_grad_()
        images = generator(latents, self.labels).images
        (-discriminator(images, self.labels).logits.mean()).backward()
        found |= {"G/images": images, "G/gradient/latents": found_gradient(latents)}
        found |= gradients("G", generator) | gradients("G through D", discriminator)
        found |= buffers("after both", generator) | buffers("after both", discriminator)

        # Another training forward, and eval mode after an update
        with torch.no_grad():
            images = generator(self.latents[:IMAGES], self.labels).images
            found |= {"again/images": images, "again/logits": discriminator(images, self.labels).logits}
            found |= buffers("again", generator) | buffers("again", discriminator)
            for network in (generator, discriminator):
                for parameter in network.eval().parameters():
                    parameter.view(-1)[::2].mul_(1.05)
            images = generator(self.latents[:IMAGES], self.labels).images
            found |= {"updated/images": images, "updated/logits": discriminator(images, self.labels).logits}
        return found


def named(prefix: str, tensors: Record) -> Record:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def found_gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad.clone()


def gradients(what: str, network: nn.Module) -> Record:
    """Those of all parameters, which are forgotten afterwards; a parameter without one is left out."""
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return named(f"{what}/gradient/{type(network).__name__}", found)


def buffers(when: str, network: nn.Module) -> Record:
    parameters = {name for name, _ in network.named_parameters()}
    found = {name: value.clone() for name, value in network.state_dict().items() if name not in parameters}
    return named(f"{when}/{type(network).__name__}", found)


def work(checkout: Path, folder: Path, weights: Path, variants: list[str]) -> None:
    """Writes the record of each kind of network into the folder."""
    import biggan_hf

    package = Path(biggan_hf.__file__ or "").resolve()
    if not package.is_relative_to(checkout):
        raise ValueError(f"expected the package of {checkout}, and Python imports {package}")
    for variant in variants:
        name = f"{[*VARIANTS].index(variant)}.safetensors"
        found = {key: thinned(value) for key, value in record(variant, weights / name).items()}
        save_file(found, folder / name)


def thinned(tensor: Tensor) -> Tensor:
    step = -(-tensor.numel() // RECORDED_VALUES)
    return tensor.detach().flatten()[::step].clone()


# Both sides compared


@dataclass(frozen=True)
class Comparison:
    """
    Args:
        name: The kind of network, and what was recorded.
        share: The largest difference as a share of the baseline's range; infinite where a side has a NaN or no tensor.
        verdict: One of `VERDICTS`.
    """

    name: str
    share: float
    verdict: str

    def __str__(self) -> str:
        return f"{self.share:.1e}  {self.name}"


SAME, ROUNDED, BIAS, DIFFERENT = VERDICTS = (
    "are the same",
    "are the same in float64, and in float32 as near as rounding and ReLUs at zero let them be",
    "are gradients of biases, nothing but rounding on both sides",
    "DIFFER",
)


def compare(variant: str, before: Record, now: Record, tolerance: float = TOLERANCE) -> list[Comparison]:
    """One comparison a tensor that either side has; the names are `precision/mode/pass/kind/network.tensor`."""
    own_error: dict[str, float] = defaultdict(float)  # the baseline's in float32, of each pass
    for name, value in before.items():
        error = difference(before.get(name.replace("float32", "float64")), value)
        own_error[group(name)] = max(own_error[group(name)], error)
    comparisons = []
    for name in {**before, **now}:
        share, exact = difference(before.get(name), now.get(name)), name.replace("float32", "float64")
        may_round = name != exact and difference(before.get(exact), now.get(exact)) <= tolerance
        if "/gradient/" in name:
            is_near = share <= FLOAT32_GRADIENT
        else:
            is_near = difference(before.get(exact), now.get(name)) <= FURTHER_FROM_FLOAT64 * own_error[group(name)]
        if share <= tolerance:
            verdict = SAME
        elif is_rounding(name, before, now):
            verdict = BIAS
        else:
            verdict = ROUNDED if may_round and is_near else DIFFERENT
        comparisons.append(Comparison(f"{variant}: {name}", share, verdict))
    return comparisons


def group(name: str) -> str:
    return name.rpartition("/")[0]


def difference(before: Tensor | None, now: Tensor | None) -> float:
    """The largest, as a share of the range of `before`."""
    if before is None or now is None or before.shape != now.shape:
        return float("inf")
    before, now = before.double(), now.double()
    span = max((before.max() - before.min()).item(), before.abs().max().item())
    largest = (before - now).abs().max().item()
    if largest == 0:
        return 0.0
    return largest / span if span and largest < float("inf") else float("inf")


def is_rounding(name: str, before: Record, now: Record) -> bool:
    """Whether both sides' gradients of a bias are tiny beside the gradient of the layer's weight."""
    weight = before.get(f"{name.removesuffix('.bias')}.weight")
    is_bias = name.endswith(".bias") and "/gradient/" in name and name in before.keys() & now.keys()
    if not is_bias or weight is None:
        return False
    largest = max(side[name].abs().max().item() for side in (before, now))
    return largest <= ROUNDING[name.partition("/")[0]] * weight.abs().max().item()


def summary(comparisons: list[Comparison], tolerance: float, shown: int = 10) -> str:
    """Counts and the largest differences by verdict; of the exceptions and of what differs, all names."""
    lines = [f"{len(comparisons)} tensors compared, by the largest difference as a share of the baseline's range"]
    for verdict in VERDICTS:
        found = sorted((c for c in comparisons if c.verdict == verdict), key=lambda c: c.share, reverse=True)
        within = f" within {tolerance:g}" if verdict == SAME else ""
        lines.append(f"{len(found)} {verdict}{within}{':' if found else ''}")
        lines += [f"  {c}" for c in (found if verdict in (BIAS, DIFFERENT) else found[:shown])]
    return "\n".join(lines)


def run_side(checkout: Path, folder: Path, weights: Path, options: argparse.Namespace) -> None:
    """Runs this script under a checkout's package."""
    folder.mkdir()
    command = [sys.executable, str(HERE), str(checkout), "--record", str(folder), "--weights", str(weights)]
    threads = str(options.threads)
    environment = {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run([*command, "--variants", *options.variants], env={**os.environ, **environment})
    if done.returncode:
        raise ValueError(f"the side of {checkout} failed with exit status {done.returncode}")


def main(argv: list[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("baseline", type=Path, metavar="CHECKOUT", help="the other checkout, with src/biggan_hf")
    arguments.add_argument(
        "--now", type=Path, default=HERE.parents[1], help="the checkout to judge (default: this one)"
    )
    arguments.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], metavar="NAME")
    arguments.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of a tensor's range")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args(argv)
    baseline = options.baseline.resolve()
    if options.record is not None:
        work(baseline, options.record, options.weights, options.variants)
        return 0
    for checkout in (baseline, options.now.resolve()):
        if not (checkout / "src" / "biggan_hf").is_dir():
            raise ValueError(f"expected a checkout of the project with src/biggan_hf, got {str(checkout)!r}")
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        weights.mkdir()
        for side, checkout in (("before", baseline), ("now", options.now.resolve())):
            run_side(checkout, Path(folder) / side, weights, options)
        for variant in options.variants:
            name = f"{[*VARIANTS].index(variant)}.safetensors"
            before, now = (load_file(Path(folder) / side / name) for side in ("before", "now"))
            comparisons += compare(variant, before, now, options.tolerance)
    print(summary(comparisons, options.tolerance))
    return int(any(c.verdict == DIFFERENT for c in comparisons))


if __name__ == "__main__":
    sys.exit(main())
