"""BigGAN (Brock, Donahue, Simonyan 2018) in the Hugging Face ecosystem."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import before_torch


before_torch.prepare()  # before torch is imported; it acts in our own programs only

from transformers import AutoConfig, AutoModel  # noqa: E402

from .configuration_biggan import BigGANConfig  # noqa: E402


if TYPE_CHECKING:
    from .latents import sample_latents
    from .modeling_biggan import BigGANDiscriminator, BigGANModel
    from .pipeline_biggan import BigGANPipeline
    from .standing_stats import collect_standing_statistics


__version__ = "0.1.0"

# What is imported when it is first asked for. The networks bring transformers' code of models, two seconds, which a
# pipeline with an engine does without.
_WHERE = {
    "BigGANDiscriminator": "modeling_biggan",
    "BigGANModel": "modeling_biggan",
    "BigGANPipeline": "pipeline_biggan",
    "collect_standing_statistics": "standing_stats",
    "sample_latents": "latents",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


class _Networks(tuple[Any, ...]):
    # Both networks, for AutoModel, which looks for the one that a configuration names in `architectures`.
    def __iter__(self) -> Iterator[Any]:
        return iter((__getattr__("BigGANModel"), __getattr__("BigGANDiscriminator")))

    def __getitem__(self, index: Any) -> Any:
        return [*self][index]


AutoConfig.register("biggan", BigGANConfig)
AutoModel.register(BigGANConfig, _Networks())

__all__ = [
    "BigGANConfig",
    "BigGANDiscriminator",
    "BigGANModel",
    "BigGANPipeline",
    "collect_standing_statistics",
    "sample_latents",
]
