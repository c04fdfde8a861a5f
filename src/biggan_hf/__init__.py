"""BigGAN (Brock, Donahue, Simonyan 2018) in the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel

from .configuration_biggan import BigGANConfig
from .latents import sample_latents
from .modeling_biggan import BigGANDiscriminator, BigGANModel
from .pipeline_biggan import BigGANPipeline
from .standing_stats import collect_standing_statistics


__version__ = "0.1.0"

AutoConfig.register("biggan", BigGANConfig)
AutoModel.register(BigGANConfig, BigGANModel)  # whose `from_pretrained` also finds a discriminator

__all__ = [
    "BigGANConfig",
    "BigGANDiscriminator",
    "BigGANModel",
    "BigGANPipeline",
    "collect_standing_statistics",
    "sample_latents",
]
