"""BigGAN (Brock, Donahue, Simonyan 2018) in the Hugging Face ecosystem."""

from . import before_torch


before_torch.prepare()  # before torch is imported; it acts in our own programs only

from transformers import AutoConfig, AutoModel  # noqa: E402

from .configuration_biggan import BigGANConfig  # noqa: E402
from .latents import sample_latents  # noqa: E402
from .modeling_biggan import BigGANDiscriminator, BigGANModel  # noqa: E402
from .pipeline_biggan import BigGANPipeline  # noqa: E402
from .standing_stats import collect_standing_statistics  # noqa: E402


__version__ = "0.1.0"

AutoConfig.register("biggan", BigGANConfig)
AutoModel.register(BigGANConfig, (BigGANModel, BigGANDiscriminator))  # `architectures` says which

__all__ = [
    "BigGANConfig",
    "BigGANDiscriminator",
    "BigGANModel",
    "BigGANPipeline",
    "collect_standing_statistics",
    "sample_latents",
]
