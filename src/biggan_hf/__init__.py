"""BigGAN (Brock, Donahue, Simonyan 2018) in the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel

from .configuration_biggan import BigGANConfig
from .latents import sample_latents
from .modeling_biggan import BigGANDiscriminator, BigGANModel
from .pipeline_biggan import BigGANPipeline
from .standing_stats import collect_standing_statistics


__version__ = "0.1.0"

AutoConfig.register("biggan", BigGANConfig)
# The first one, unless a `config.json` says that it is a discriminator's.
AutoModel.register(BigGANConfig, (BigGANModel, BigGANDiscriminator))

__all__ = [
    "BigGANConfig",
    "BigGANDiscriminator",
    "BigGANModel",
    "BigGANPipeline",
    "collect_standing_statistics",
    "sample_latents",
]
