"""BigGAN (Brock, Donahue, Simonyan 2018) in the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel

from .configuration_biggan import BigGANConfig
from .latents import sample_latents
from .modeling_biggan import BigGANDiscriminator, BigGANModel


__version__ = "0.1.0"

AutoConfig.register("biggan", BigGANConfig)
AutoModel.register(BigGANConfig, BigGANModel)

__all__ = [
    "BigGANConfig",
    "BigGANDiscriminator",
    "BigGANModel",
    "sample_latents",
]
