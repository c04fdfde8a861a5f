"""BigGAN's two networks, bottom-up: residual blocks, stages, generator, discriminator.

Source: "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (Brock, Donahue, Simonyan 2018,
arXiv:1809.11096), appendix B; the function is that of github.com/ajbrock/BigGAN-PyTorch, `BigGAN.py` and
`BigGANdeep.py`.
"""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .class_labels import check_class_embeddings, check_class_labels
from .configuration_biggan import BigGANConfig
from .eval_mode import drop_stale_folds, folded_weights
from .hub import PublishingMixin
from .initialization import init_weights
from .keywords import understood
from .latents import StandingRow
from .layers import (
    BatchNorm2d,
    ConditionalBatchNorm2d,
    OneHotLabels,
    SelfAttention,
    SNEmbedding,
    conv2d,
    linear,
    move_running_statistics,
)
from .ops import average_pool, upsample
from .sampling_biggan import SamplingMixin
from .spectral_norm import SpectralNorm, iterate_in_training


@dataclass
class BigGANModelOutput(ModelOutput):
    """
    Args:
        images: (N, num_channels, image_size, image_size) in [-1, 1].
    """

    images: Tensor | None = None


@dataclass
class BigGANDiscriminatorOutput(ModelOutput):
    """
    Args:
        logits: (N, 1); the larger, the more real.
    """

    logits: Tensor | None = None


# Blocks. All resampling is by two: nearest neighbour up, average pooling down. The 1x1 convolution of a shortcut gives
# the same result before or after resampling. On the small map it costs a quarter.


def _norm(config: BigGANConfig, channels: int) -> nn.Module:
    # The batch norm of a generator block: conditional, or plain if the configuration has no condition.
    num_standing = len(config.standing_truncations)
    if config.condition_dim == 0:
        return BatchNorm2d(channels, config.batch_norm_eps, num_standing)
    per_class = bool(config.num_labels) and not config.shared_class_embedding
    return ConditionalBatchNorm2d(
        channels, config.condition_dim, config.batch_norm_eps, config.generator_sn_eps, per_class, num_standing
    )


class BigGANGeneratorBlock(nn.Module):
    """norm, ReLU, up, 3x3; norm, ReLU, 3x3; plus a 1x1 shortcut (paper, figure 15b)."""

    def __init__(self, config: BigGANConfig, in_channels: int, out_channels: int):
        super().__init__()
        sn_eps = config.generator_sn_eps
        self.bn1 = _norm(config, in_channels)
        self.conv1 = conv2d(in_channels, out_channels, 3, sn_eps, resample="up")
        self.bn2 = _norm(config, out_channels)
        self.conv2 = conv2d(out_channels, out_channels, 3, sn_eps)
        self.conv_sc = conv2d(in_channels, out_channels, 1, sn_eps)

    def forward(self, hidden_states: Tensor, condition: Tensor | None, row: StandingRow | None) -> Tensor:
        # Shortcut: on the small map, (N, out, H, W).
        shortcut = self.conv_sc(hidden_states)
        # Residual: conv1 doubles the size, (N, out, 2H, 2W). The class acts in the norms.
        hidden_states = self.conv1(F.relu(self.bn1(hidden_states, condition, row), inplace=True))
        hidden_states = self.conv2(F.relu(self.bn2(hidden_states, condition, row), inplace=True))
        return hidden_states.add_(upsample(shortcut))


class BigGANDeepGeneratorBlock(nn.Module):
    """A norm and a ReLU before each of: 1x1, (up) 3x3, 3x3, 1x1. The shortcut keeps the first channels (paper, figure
    16b), or is a 1x1 convolution (`deep_projection_shortcut`)."""

    def __init__(self, config: BigGANConfig, in_channels: int, out_channels: int, upsample: bool):
        super().__init__()
        sn_eps = config.generator_sn_eps
        hidden_channels = in_channels // 4
        self.upsample, self.out_channels = upsample, out_channels
        self.bn1 = _norm(config, in_channels)
        self.conv1 = conv2d(in_channels, hidden_channels, 1, sn_eps)
        self.bn2 = _norm(config, hidden_channels)
        self.conv2 = conv2d(hidden_channels, hidden_channels, 3, sn_eps, resample="up" if upsample else None)
        self.bn3 = _norm(config, hidden_channels)
        self.conv3 = conv2d(hidden_channels, hidden_channels, 3, sn_eps)
        self.bn4 = _norm(config, hidden_channels)
        self.conv4 = conv2d(hidden_channels, out_channels, 1, sn_eps)
        self.conv_sc = conv2d(in_channels, out_channels, 1, sn_eps) if config.deep_projection_shortcut else None

    def forward(self, hidden_states: Tensor, condition: Tensor | None, row: StandingRow | None) -> Tensor:
        # Shortcut: the first channels as they are, or a 1x1 convolution.
        shortcut = hidden_states[:, : self.out_channels] if self.conv_sc is None else self.conv_sc(hidden_states)
        # Residual: narrow, (up,) 3x3, 3x3, wide. The class and all latents act in the norms.
        hidden_states = self.conv1(F.relu(self.bn1(hidden_states, condition, row), inplace=True))
        hidden_states = self.conv2(F.relu(self.bn2(hidden_states, condition, row), inplace=True))
        hidden_states = self.conv3(F.relu(self.bn3(hidden_states, condition, row), inplace=True))
        hidden_states = self.conv4(F.relu(self.bn4(hidden_states, condition, row), inplace=True))
        return hidden_states.add_(upsample(shortcut) if self.upsample else shortcut)


class BigGANDiscriminatorBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, pool; plus a shortcut, 1x1 where the size or the width changes (paper, figure 15c). The
    first block of the network sees the image and has no leading ReLU."""

    def __init__(self, config: BigGANConfig, in_channels: int, out_channels: int, downsample: bool, first: bool):
        super().__init__()
        sn_eps = config.discriminator_sn_eps
        hidden_channels = out_channels if config.discriminator_wide else in_channels
        self.downsample, self.preactivation = downsample, not first
        self.shortcut_relu = config.discriminator_shortcut_relu
        self.conv1 = conv2d(in_channels, hidden_channels, 3, sn_eps)
        self.conv2 = conv2d(hidden_channels, out_channels, 3, sn_eps, resample="down" if downsample else None)
        if downsample or in_channels != out_channels:
            self.conv_sc: nn.Module = conv2d(in_channels, out_channels, 1, sn_eps)
        else:
            self.conv_sc = nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden_states, shortcut = pixel_values, pixel_values
        if self.preactivation:
            hidden_states = F.relu(hidden_states)
            shortcut = hidden_states if self.shortcut_relu else shortcut
        # Residual: conv2 halves the size, (N, out, H/2, W/2).
        hidden_states = self.conv2(F.relu(self.conv1(hidden_states), inplace=True))
        # Shortcut: on the small map.
        return hidden_states.add_(self.conv_sc(average_pool(shortcut) if self.downsample else shortcut))


class BigGANDeepDiscriminatorBlock(nn.Module):
    """A ReLU before each of: 1x1, 3x3, 3x3, pool and 1x1. The shortcut is pooled; a 1x1 convolution of it makes the
    channels that it lacks (paper, figure 16c). With `deep_projection_shortcut` it makes all channels, and the pool
    comes before the last ReLU."""

    def __init__(self, config: BigGANConfig, in_channels: int, out_channels: int, downsample: bool):
        super().__init__()
        sn_eps = config.discriminator_sn_eps
        hidden_channels = out_channels // 4
        self.downsample, self.projection = downsample, config.deep_projection_shortcut
        self.shortcut_relu = config.discriminator_shortcut_relu
        self.conv1 = conv2d(in_channels, hidden_channels, 1, sn_eps)
        self.conv2 = conv2d(hidden_channels, hidden_channels, 3, sn_eps)
        pools_first = downsample and self.projection
        self.conv3 = conv2d(hidden_channels, hidden_channels, 3, sn_eps, resample="down" if pools_first else None)
        self.conv4 = conv2d(hidden_channels, out_channels, 1, sn_eps)
        added_channels = out_channels if self.projection else out_channels - in_channels
        has_conv_sc = in_channels != out_channels or (self.projection and downsample)
        self.conv_sc = conv2d(in_channels, added_channels, 1, sn_eps) if has_conv_sc else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        activated = F.relu(hidden_states)
        shortcut = activated if self.shortcut_relu else hidden_states
        # Residual: narrow, 3x3, 3x3.
        hidden_states = self.conv1(activated)
        hidden_states = self.conv2(F.relu(hidden_states, inplace=True))
        hidden_states = F.relu(self.conv3(F.relu(hidden_states, inplace=True)), inplace=True)
        # Half the size.
        if self.downsample:
            shortcut = average_pool(shortcut)
            hidden_states = hidden_states if self.projection else average_pool(hidden_states)
        # Shortcut: the channels as they are and those that it lacks, or all from a 1x1 convolution.
        if self.conv_sc is not None:
            added = self.conv_sc(shortcut)
            shortcut = added if self.projection else torch.cat([shortcut, added], dim=1)
        return self.conv4(hidden_states).add_(shortcut)


# Stages: the blocks at one resolution and the self-attention that may follow them


class BigGANGeneratorStage(GradientCheckpointingLayer):
    """Doubles the size. In the deep architecture the last block does this; the blocks before keep size and width."""

    def __init__(self, config: BigGANConfig, index: int):
        super().__init__()
        in_channels, out_channels = config.generator_channels[index : index + 2]
        # Deep: blocks that keep the size, then one that doubles it.
        if config.is_deep:
            rest = config.generator_blocks_per_stage - 1
            blocks: list[nn.Module] = [
                BigGANDeepGeneratorBlock(config, in_channels, in_channels, upsample=False) for _ in range(rest)
            ]
            blocks.append(BigGANDeepGeneratorBlock(config, in_channels, out_channels, upsample=True))
        else:
            blocks = [BigGANGeneratorBlock(config, in_channels, out_channels)]
        self.blocks = nn.ModuleList(blocks)
        has_attention = config.generator_resolutions[index] in config.generator_attention_resolutions
        attention = out_channels, config.generator_sn_eps, config
        self.attention = SelfAttention(*attention) if has_attention else nn.Identity()

    def forward(self, hidden_states: Tensor, condition: Tensor | None, row: StandingRow | None) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, condition, row)
        return self.attention(hidden_states)


class BigGANDiscriminatorStage(GradientCheckpointingLayer):
    """Halves the size in its first block, unless the map is already at its smallest."""

    def __init__(self, config: BigGANConfig, index: int):
        super().__init__()
        in_channels, out_channels = config.discriminator_channels[index : index + 2]
        # Sizes before and after. The last stages may keep theirs.
        resolutions = [config.image_size, *config.discriminator_resolutions]
        downsample = resolutions[index + 1] < resolutions[index]
        # Deep: a block that halves the size, then blocks that keep it.
        if config.is_deep:
            rest = config.discriminator_blocks_per_stage - 1
            blocks: list[nn.Module] = [BigGANDeepDiscriminatorBlock(config, in_channels, out_channels, downsample)]
            blocks += [BigGANDeepDiscriminatorBlock(config, out_channels, out_channels, False) for _ in range(rest)]
        else:
            blocks = [BigGANDiscriminatorBlock(config, in_channels, out_channels, downsample, first=index == 0)]
        self.blocks = nn.ModuleList(blocks)
        attention = out_channels, config.discriminator_sn_eps, config
        self.attention = SelfAttention(*attention) if config.discriminator_attention[index] else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.attention(hidden_states)


# Networks


class BigGANPreTrainedModel(PublishingMixin, PreTrainedModel):
    """What both networks share: loading, saving, initialisation."""

    config: BigGANConfig
    config_class = BigGANConfig
    base_model_prefix = ""
    input_modalities = "image"
    model_tags = ["biggan", "gan"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["BigGANGeneratorStage", "BigGANDiscriminatorStage"]
    _spectral_norm_field: str  # the field of the configuration that says whether the network has spectral norm

    def __init__(self, config: BigGANConfig):
        super().__init__(config)
        config.validate_architecture()
        # Whether a training forward takes a power iteration of the spectral norms. If not, it uses the last vectors
        # again, so that the micro-batches of an update see one function.
        self.iterates = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Before the forward, which cannot check where it is compiled.
        if not torch.compiler.is_compiling():
            drop_stale_folds(self)
            args, kwargs = understood(self, args, kwargs)
        return super().__call__(*args, **kwargs)

    def folded_weights(self) -> AbstractContextManager[None]:
        """
        Inside `with model.folded_weights():` the forwards in eval mode share the normalised weights, W / σ(W).

        These need as much memory as the weights, on a CPU up to 1.8 times as much. If an optimiser, a load or another
        operation that autograd records changes a weight inside the block, each forward normalises that weight anew.
        """
        return folded_weights(self)

    def fold_spectral_norm(self) -> Self:
        """
        Turns the network in place into one without spectral norm that computes in eval mode what it computes now.

        Each weight becomes W / σ(W), each spectrally normalised layer an ordinary one, and the configuration says so:
        the network can be saved and loaded. Do this before you quantise, export or merge adapters into a network. It
        cannot go on with the training that it had: spectral norm no longer holds its weights.

        Returns:
            The network itself.
        """
        for name, layer in [*self.named_modules()]:
            if isinstance(layer, SpectralNorm):
                self.set_submodule(name, layer.plain())
        setattr(self._own_config(), self._spectral_norm_field, False)
        return self

    def _own_config(self) -> BigGANConfig:
        # A configuration that no other network has, for all modules that read this network's, as attention does.
        shared, own = self.config, copy.deepcopy(self.config)
        for module in self.modules():
            if getattr(module, "config", None) is shared:
                module.config = own  # type: ignore[assignment]
        return own

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.initializer)


class BigGANModel(SamplingMixin, BigGANPreTrainedModel):
    """
    The generator: turns latents and a class into an image (paper, appendix B).

    Args:
        config: The architecture. The weights are drawn; `from_pretrained` loads some.

    Raises:
        ValueError: The fields of the configuration do not fit each other.

    Example:
        ```python
        model = BigGANModel.from_pretrained("user/biggan")
        images = model.sample(class_labels=[207], num_images_per_prompt=4, truncation=0.5)  # (4, 3, H, W) in [-1, 1]
        ```
    """

    main_input_name = "latents"
    _spectral_norm_field = "generator_spectral_norm"

    def __init__(self, config: BigGANConfig):
        super().__init__(config)
        sn_eps = config.generator_sn_eps
        stem_channels, *_, out_channels = config.generator_channels
        stem_dim = config.condition_dim if config.is_deep else config.z_dim // config.num_latent_chunks
        # The shared class embedding (paper, section 3), or one-hot labels for an embedding in each norm.
        if config.num_labels:
            embedding = nn.Embedding(config.num_labels, config.class_embedding_dim)
            self.class_embedding = embedding if config.shared_class_embedding else OneHotLabels(config.num_labels)
        self.linear = linear(stem_dim, 16 * stem_channels, sn_eps)
        self.stages = nn.ModuleList(BigGANGeneratorStage(config, i) for i in range(len(config.generator_resolutions)))
        output_eps = config.output_batch_norm_eps or config.batch_norm_eps
        self.output_bn = BatchNorm2d(out_channels, output_eps, len(config.standing_truncations))
        self.output_conv = conv2d(out_channels, config.num_channels, 3, sn_eps)
        self.post_init()

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        truncation: float | None = None,
        return_dict: bool | None = None,
    ) -> BigGANModelOutput | tuple[Tensor]:
        """
        Generates one image a row, in training or in eval mode, with gradients.

        Args:
            latents: (N, z_dim). `sample_latents` draws and truncates them.
            class_labels: int64 (N,); `None` for an unconditional model.
            class_embeddings: (N, class_embedding_dim) in place of labels, for mixing classes: rows of
                `model.class_embedding(labels)` or weighted sums of them. With `shared_class_embedding=False` these
                are the weights of the classes, (N, num_labels).
            truncation: The truncation with which the latents were drawn. It selects the standing statistics; `None`
                selects the running statistics.
            return_dict: `False` for a tuple.

        Returns:
            `images`, (N, num_channels, image_size, image_size) in [-1, 1].

        Raises:
            ValueError: Latents, labels or embeddings of the wrong shape; a label or a truncation out of range.
        """
        if latents.ndim != 2 or latents.shape[1] != self.config.z_dim:
            raise ValueError(f"latents must be (N, {self.config.z_dim}), got {tuple(latents.shape)}")
        row = self._standing_row(truncation)
        latents = latents.to(self.dtype)
        embeddings = self._class_vectors(latents, class_labels, class_embeddings)
        # Layers in training change their state: singular vectors before, running statistics after.
        iterate_in_training(self, self.iterates)
        images = self._images(latents, embeddings, row)
        move_running_statistics(self)
        return (images,) if return_dict is False else BigGANModelOutput(images=images)

    def _images(self, latents: Tensor, embeddings: Tensor | None, row: StandingRow | None) -> Tensor:
        # Latents and class become the input of the stem and the condition of each stage.
        stem, conditions = self._conditions(latents, embeddings)
        # The stem: one linear map to the first channels, at 4x4 pixels.
        hidden_states = self.linear(stem).unflatten(1, (-1, 4, 4))
        # The stages: each doubles the size.
        for stage, condition in zip(self.stages, conditions, strict=True):
            hidden_states = stage(hidden_states, condition, row)
        # To the image: a norm that sees no class, ReLU, 3x3, tanh.
        hidden_states = F.relu(self.output_bn(hidden_states, None, row), inplace=True)
        return torch.tanh(self.output_conv(hidden_states)).contiguous()

    def _class_vectors(self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None) -> Tensor | None:
        # (N, class_embedding_dim); without a shared embedding, labels (N,) or weights of the classes (N, num_labels);
        # `None` without classes.
        if embeddings is None:
            check_class_labels(labels, latents.shape[0], self.config.id2label)
            if labels is None or not self.config.shared_class_embedding:
                return labels
            return self.class_embedding(labels).to(latents.dtype)
        # Not `len`, which would fix the batch of an export.
        check_class_embeddings(embeddings, labels, latents.shape[0], self.config.class_width)
        return embeddings.to(latents.dtype)

    def _conditions(self, latents: Tensor, embeddings: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        # Deep: the stem and every stage see the class and all latents (paper, appendix B.1).
        if self.config.is_deep:
            everything = latents if embeddings is None else torch.cat([embeddings, latents], dim=1)
            return everything, [everything] * len(self.stages)
        # SA-GAN: the stem sees all latents, the stages the class alone.
        if not self.config.hierarchical_latents:
            return latents, [embeddings] * len(self.stages)
        # Skip-z: the stem sees the first chunk of the latents, each stage the class and its own chunk (section 3).
        stem, *chunks = latents.chunk(self.config.num_latent_chunks, dim=1)
        return stem, [c if embeddings is None else torch.cat([embeddings, c], dim=1) for c in chunks]


class BigGANDiscriminator(BigGANPreTrainedModel):
    """
    The discriminator: turns an image and its class into one logit, by projection (Miyato & Koyama 2018,
    arXiv:1802.05637). It loads, saves and pushes as `BigGANModel` does.

    Args:
        config: The architecture, the same as the generator's.

    Raises:
        ValueError: The fields of the configuration do not fit each other.

    Example:
        ```python
        disc = BigGANDiscriminator.from_pretrained("user/biggan", subfolder="discriminator")
        logits = disc(pixel_values, class_labels=labels).logits  # (N, 1)
        ```
    """

    main_input_name = "pixel_values"
    _spectral_norm_field = "discriminator_spectral_norm"
    _path_in_repo = "discriminator"

    def __init__(self, config: BigGANConfig):
        super().__init__(config)
        sn_eps = config.discriminator_sn_eps
        channels = config.discriminator_channels
        self.input_conv = conv2d(config.num_channels, channels[0], 3, sn_eps) if config.is_deep else nn.Identity()
        self.stages = nn.ModuleList(BigGANDiscriminatorStage(config, i) for i in range(len(channels) - 1))
        self.linear = linear(channels[-1], 1, sn_eps)
        if config.num_labels:
            size = (config.num_labels, channels[-1])
            self.class_embedding = nn.Embedding(*size) if sn_eps is None else SNEmbedding(*size, eps=sn_eps)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, class_labels: Tensor | None = None, return_dict: bool | None = None
    ) -> BigGANDiscriminatorOutput | tuple[Tensor]:
        """
        Judges images, each as one of its class.

        Args:
            pixel_values: (N, num_channels, image_size, image_size) in [-1, 1].
            class_labels: int64 (N,); `None` for an unconditional model.
            return_dict: `False` for a tuple.

        Returns:
            `logits`, (N, 1); the larger, the more real.

        Raises:
            ValueError: Images or labels of the wrong shape, a label out of range.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        shape, dtype = tuple(pixel_values.shape), pixel_values.dtype
        if len(shape) != 4 or shape[1:] != expected or not dtype.is_floating_point:
            wanted = f"(N, {', '.join(map(str, expected))}) floats in [-1, 1]"
            raise ValueError(f"pixel_values must be {wanted}, got {shape} of {dtype}")
        check_class_labels(class_labels, pixel_values.shape[0], self.config.id2label)
        pixel_values = pixel_values.to(self.dtype)
        if self.training and self.is_activation_checkpointing and not torch.compiler.is_compiling():
            # Reentrant checkpointing gives a stage's weights no gradient unless its input requires one.
            pixel_values = pixel_values if pixel_values.requires_grad else pixel_values.detach().requires_grad_()
        iterate_in_training(self, self.iterates)
        logits = self._logits(pixel_values, class_labels)
        return (logits,) if return_dict is False else BigGANDiscriminatorOutput(logits=logits)

    def _logits(self, pixel_values: Tensor, class_labels: Tensor | None) -> Tensor:
        hidden_states = self.input_conv(pixel_values)
        # The stages: the size halves down to 4x4 pixels (8x8 for 32-pixel images).
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        # Features of the whole image: the sum over all pixels.
        features = F.relu(hidden_states).sum(dim=(2, 3))
        features = F.dropout(features, self.config.discriminator_dropout, self.training)
        logits = self.linear(features)
        if class_labels is None:
            return logits
        # Projection: the class enters here, by the inner product of its embedding with the features.
        return logits + (self.class_embedding(class_labels) * features).sum(dim=1, keepdim=True)


__all__ = ["BigGANDiscriminator", "BigGANModel", "BigGANPreTrainedModel"]
