"""
Fine-tuning by adapters: LoRA (Hu et al. 2021, arXiv:2106.09685) on all convolutions and linear maps of both networks.

A layer with an adapter computes Wx + BAx. W is frozen, the thin matrices A and B learn. The embeddings of the classes
learn in full. All else stands still, the statistics of batch norm too. So the adapters and the embeddings are all that
a run makes, and a small batch normalises as the finished model does.

Spectral norm belongs to the frozen weight: the layer is W / σ(W) + BA, and σ(W) stands still as W does. B begins at 0,
and so does the difference to the model. In (W + BA) / σ(W + BA) the adapter would scale all of W, which no file of A
and B can say: peft adds BA to what the layer computes. σ does not see BA there, so `bound_adapters` holds it below 1.
Then σ of the sum is at most 2, and no layer can more than double what it did to a vector.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCardData
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..embedded import PREFIX
from ..eval_mode import eval_view
from ..files import add_checksum, write_text
from ..layers import BatchNorm2d, ConditionalBatchNorm2d
from ..model_card import CARD
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from ..spectral_norm import SpectralNorm
from ..words import counted
from .fine_tuning import is_of_classes


Network = TypeVar("Network", BigGANModel, BigGANDiscriminator)
AnyNetwork = BigGANModel | BigGANDiscriminator

FOLDER = "adapter"  # in the folder of a finished model
_NAME = "default"  # peft's, of the only adapter of a layer


# Making


def add_adapters(network: AnyNetwork, rank: int) -> None:
    """
    Puts an adapter on every convolution and linear map, and freezes all but these and the weights of the classes. A
    layer whose weight has a lower rank gets an adapter of that rank. Raises `ValueError` where all have a lower one.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # here: only these runs need it
    except ImportError as error:
        raise ImportError('lora_rank needs peft: pip install "biggan_hf[adapters]"') from error
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    ranks = {name: min(layer.weight.flatten(1).shape) for name, layer in layers.items()}
    if rank > max(ranks.values()):
        most = f"the largest rank that a layer of the {type(network).__name__} can have"
        raise ValueError(f"lora_rank must be at most {max(ranks.values())}, {most}, got {rank}")
    lower = {name: most for name, most in ranks.items() if most < rank}
    patterns: dict[str, Any] = {"rank_pattern": lower, "alpha_pattern": lower}  # α = r: BA is not scaled
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=[*layers], **patterns), network)
    for name, parameter in network.named_parameters():
        if is_of_classes(network, name):
            parameter.requires_grad_(True)


def average_of(generator: BigGANModel) -> BigGANModel:
    """A copy for the average. What is frozen is the generator's own: it takes no memory, and nothing averages it."""
    return copy.deepcopy(generator, {id(p): p for p in generator.parameters() if not p.requires_grad})


def stand_still(network: AnyNetwork) -> None:
    """Takes the frozen layers and the batch norms of a network in training out of it: they no longer change."""
    for name, module in network.named_modules():
        keeps_state = isinstance(module, SpectralNorm | BatchNorm2d | ConditionalBatchNorm2d)
        if keeps_state and not is_of_classes(network, f"{name}.weight"):
            module.eval()


# Training


@torch.no_grad()
def bound_adapters(networks: Iterable[nn.Module]) -> None:
    """Shrinks every B for which σ(BA) may be above 1. The bound is too high by r^(1/16) at most; no device waits."""
    layers = [layer for network in networks for layer in _adapted(network).values()]
    pairs = [(layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight) for layer in layers]
    # σ(BA)² is the largest eigenvalue of M = (BᵀB)(AAᵀ), which is no larger than trace(M⁸)^(1/8). Of M / trace(M), so
    # that no power overflows.
    products = [(b.flatten(1).t() @ b.flatten(1)) @ (a.flatten(1) @ a.flatten(1).t()) for a, b in pairs]
    rank = max(len(product) for product in products)
    stacked = torch.stack([F.pad(product, (0, rank - len(product)) * 2) for product in products])
    trace = stacked.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=torch.finfo(stacked.dtype).tiny)
    powers = torch.linalg.matrix_power(stacked / trace[:, None, None], 8).diagonal(dim1=1, dim2=2).sum(dim=1)
    sigma = (trace * powers.clamp(min=0) ** (1 / 8)).sqrt()
    torch._foreach_mul_([b for _, b in pairs], list((1 / sigma.clamp(min=1)).unbind()))


def learned(network: AnyNetwork) -> dict[str, Tensor]:
    """The adapters, and the weights of the classes with their singular vectors: what a run of adapters changes."""
    state = network.state_dict().items()
    return {name: value for name, value in state if "lora_" in name or _is_of_classes(network, name)}


def load_learned(network: AnyNetwork, saved: Mapping[str, Tensor]) -> None:
    if saved.keys() != learned(network).keys():
        raise ValueError("its adapters are of another network")
    network.load_state_dict(saved, strict=False)


def said_of(networks: Iterable[AnyNetwork], rank: int) -> str:
    """What a person is told of the adapters."""
    networks = list(networks)
    layers = counted(sum(len(_adapted(network)) for network in networks), "layer")
    sizes = [(w.numel(), w.requires_grad) for network in networks for w in network.parameters()]
    trained, total = sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)
    return f"adapters of rank {rank} on {layers}, {trained:,} of {total:,} parameters are trained"


# Saving


def merged(network: Network) -> Network:
    """
    A network of ordinary layers that computes what the one with adapters does in eval mode; any other network itself.
    It has no spectral norm: W / σ(W) + BA is no weight divided by its σ.
    """
    if not _adapted(network):
        return network
    view = _without(network, merge=True).fold_spectral_norm()
    # In both configurations alike: both networks of a folder are built from either.
    view.config.generator_spectral_norm = view.config.discriminator_spectral_norm = False
    return view


def base_of(network: Network) -> Network:
    """The frozen network, with the weights of the classes as they are; a network without adapters itself."""
    return _without(network, merge=False) if _adapted(network) else network


def save_adapter(network: AnyNetwork, folder: Path, base_model: str | None) -> None:
    """Writes the adapters and the weights of the classes as peft does. `base_model` is an id on the Hub, if known."""
    state = learned(network)
    config: Any = copy.copy(network.peft_config[_NAME])
    of_classes = {name.rpartition(".")[0] for name in state if "lora_" not in name}
    config.modules_to_save, config.inference_mode = sorted(of_classes) or None, True
    config.target_modules, config.base_model_name_or_path = sorted(config.target_modules), base_model
    config.save_pretrained(folder)
    tensors = {f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": value for name, value in state.items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    path = folder / "adapter_model.safetensors"
    save_file(contiguous, path, metadata={"format": "pt"})
    add_checksum(path)  # the file is then for others to read too, which safetensors 0.8 writes for its owner alone


def write_adapter_card(folder: Path, base_model: str | None) -> None:
    on_hub = None if base_model is None or base_model.startswith(PREFIX) else base_model
    relation = "adapter" if on_hub else None
    data = ModelCardData(base_model=on_hub, base_model_relation=relation, library_name="peft", tags=["biggan", "lora"])
    text = f"""\
# BigGAN, adapters

LoRA adapters of a BigGAN generator, with the embeddings of its classes. `discriminator/` holds the discriminator's.

```python
from biggan_hf import BigGANModel
from peft import PeftModel

model = PeftModel.from_pretrained(BigGANModel.from_pretrained({base_model or "path/to/the/base"!r}), {FOLDER!r}).eval()
```"""
    write_text(folder / CARD, f"---\n{data.to_yaml()}\n---\n\n{text}\n")


# Helpers


def _adapted(network: nn.Module) -> dict[str, Any]:
    """The layers with adapters: peft's, which hold the network's own as `base_layer`."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


def _is_of_classes(network: AnyNetwork, name: str) -> bool:
    """Whether a weight or a buffer is of a layer that has a row for each class."""
    return is_of_classes(network, f"{name.rpartition('.')[0]}.weight")


@torch.no_grad()
def _without(network: Network, merge: bool) -> Network:
    """A view of a network in which the layers have no adapters. Its own weights stay."""
    view = eval_view(network)
    for name, layer in _adapted(network).items():
        base = copy.copy(layer.get_base_layer())
        if merge:
            base = base.plain() if isinstance(base, SpectralNorm) else base
            weight = nn.Parameter(base.weight + layer.get_delta_weight(_NAME), requires_grad=False)
            base._parameters = {**base._parameters, "weight": weight}
        view.set_submodule(name, base)
    return view
