"""BigGAN's two networks, bottom-up: residual blocks, stages, generator, discriminator.

Source: "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (Brock, Donahue, Simonyan 2018,
arXiv:1809.11096), appendix B; the function is that of github.com/ajbrock/BigGAN-PyTorch, `BigGAN.py` and
`BigGANdeep.py`.
"""

import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, logging

from .configuration_biggan import BigGANConfig
from .files import staged_folder
from .hub import create_repo, has_card, model_card, upload_folder
from .images import sample_sheet
from .kernels import kept_kernels, run_compiled
from .latents import TruncationMode, check_generators, check_truncation, check_truncation_mode, sample_latents
from .layers import (
    BatchNorm2d,
    ConditionalBatchNorm2d,
    Modulation,
    OneHotLabels,
    SelfAttention,
    SNEmbedding,
    StandingRow,
    conv2d,
    linear,
    modulations,
)
from .resampling import halve
from .spectral_norm import SpectralNorm, iterate_in_training


logger = logging.get_logger(__name__)


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


# Blocks. All resampling is by two: nearest neighbour up, average pooling down.

Modulations = Sequence[Modulation | None]  # of each norm of a block, in order


def _add_upsampled(hidden_states: Tensor, shortcut: Tensor) -> Tensor:
    """Adds the shortcut's nearest-neighbour upsampling by two to the map, in place."""
    if torch.is_grad_enabled():  # interpolation has a backward pass of its own, and a sum that broadcasts a slow one
        return hidden_states.add_(F.interpolate(shortcut, scale_factor=2, mode="nearest"))
    hidden_states.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).add_(shortcut[:, :, :, None, :, None])
    return hidden_states


def _norm(config: BigGANConfig, channels: int) -> nn.Module:
    """The batch norm of a generator block: conditional, or plain where nothing conditions it."""
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

    @property
    def norms(self) -> list[nn.Module]:
        return [self.bn1, self.bn2]

    def forward(self, hidden_states: Tensor, modulations: Modulations, row: StandingRow | None) -> Tensor:
        # A 1x1 convolution commutes with nearest-neighbour upsampling, and is a quarter of the work before it.
        shortcut = self.conv_sc(hidden_states)
        hidden_states = self.conv1(F.relu(self.bn1(hidden_states, modulations[0], row), inplace=True))
        hidden_states = self.conv2(F.relu(self.bn2(hidden_states, modulations[1], row), inplace=True))
        return _add_upsampled(hidden_states, shortcut)


class BigGANDeepGeneratorBlock(nn.Module):
    """Bottleneck 1x1, (up) 3x3, 3x3, 1x1, a norm and a ReLU before each; the shortcut drops the last channels
    (paper, figure 16b)."""

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

    @property
    def norms(self) -> list[nn.Module]:
        return [self.bn1, self.bn2, self.bn3, self.bn4]

    def forward(self, hidden_states: Tensor, modulations: Modulations, row: StandingRow | None) -> Tensor:
        shortcut = hidden_states[:, : self.out_channels] if self.conv_sc is None else self.conv_sc(hidden_states)
        hidden_states = self.conv1(F.relu(self.bn1(hidden_states, modulations[0], row), inplace=True))
        hidden_states = self.conv2(F.relu(self.bn2(hidden_states, modulations[1], row), inplace=True))
        hidden_states = self.conv3(F.relu(self.bn3(hidden_states, modulations[2], row), inplace=True))
        hidden_states = self.conv4(F.relu(self.bn4(hidden_states, modulations[3], row), inplace=True))
        return _add_upsampled(hidden_states, shortcut) if self.upsample else hidden_states.add_(shortcut)


class BigGANDiscriminatorBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, pool; plus a shortcut, 1x1 where the size or the width changes (paper, figure 15c).

    The first block of the network sees the image and has no leading ReLU.
    """

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
        hidden_states = self.conv2(F.relu(self.conv1(hidden_states), inplace=True))
        # Pooling commutes with a 1x1 convolution, which is a quarter of the work after it.
        return hidden_states.add_(self.conv_sc(halve(shortcut) if self.downsample else shortcut))


class BigGANDeepDiscriminatorBlock(nn.Module):
    """Bottleneck 1x1, 3x3, 3x3, pool, 1x1, a ReLU before each; the shortcut is pooled, and the channels it lacks
    come from a 1x1 convolution of it (paper, figure 16c), or all of them do (`deep_projection_shortcut`, where the
    pool comes before the last ReLU)."""

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
        hidden_states = self.conv1(activated)
        hidden_states = self.conv2(F.relu(hidden_states, inplace=True))
        hidden_states = self.conv3(F.relu(hidden_states, inplace=True))
        if self.downsample:
            shortcut = halve(shortcut)
            hidden_states = hidden_states if self.projection else halve(F.relu(hidden_states, inplace=True))
        if self.conv_sc is not None:
            added = self.conv_sc(shortcut)
            shortcut = added if self.projection else torch.cat([shortcut, added], dim=1)
        return self.conv4(F.relu(hidden_states, inplace=True)).add_(shortcut)


# Stages: the blocks at one resolution and the self-attention that may follow them


class BigGANGeneratorStage(GradientCheckpointingLayer):
    """Doubles the size; in the deep architecture the last block does, and those before it keep size and width."""

    def __init__(self, config: BigGANConfig, index: int):
        super().__init__()
        in_channels, out_channels = config.generator_channels[index : index + 2]
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
        self.attention = SelfAttention(out_channels, config.generator_sn_eps) if has_attention else nn.Identity()

    def forward(self, hidden_states: Tensor, condition: Tensor | None, row: StandingRow | None) -> Tensor:
        blocks = cast("list[BigGANGeneratorBlock | BigGANDeepGeneratorBlock]", list(self.blocks))
        modulated = modulations([norm for block in blocks for norm in block.norms], condition)
        for block in blocks:
            mine, modulated = modulated[: len(block.norms)], modulated[len(block.norms) :]
            hidden_states = block(hidden_states, mine, row)
        return self.attention(hidden_states)


class BigGANDiscriminatorStage(GradientCheckpointingLayer):
    """Halves the size in its first block, unless the map is already at its smallest."""

    def __init__(self, config: BigGANConfig, index: int):
        super().__init__()
        in_channels, out_channels = config.discriminator_channels[index : index + 2]
        resolutions = [config.image_size, *config.discriminator_resolutions]
        downsample = resolutions[index + 1] < resolutions[index]
        if config.is_deep:
            rest = config.discriminator_blocks_per_stage - 1
            blocks: list[nn.Module] = [BigGANDeepDiscriminatorBlock(config, in_channels, out_channels, downsample)]
            blocks += [BigGANDeepDiscriminatorBlock(config, out_channels, out_channels, False) for _ in range(rest)]
        else:
            blocks = [BigGANDiscriminatorBlock(config, in_channels, out_channels, downsample, first=index == 0)]
        self.blocks = nn.ModuleList(blocks)
        has_attention = config.discriminator_attention[index]
        self.attention = SelfAttention(out_channels, config.discriminator_sn_eps) if has_attention else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.attention(hidden_states)


# Networks

_PUSH_ARGUMENTS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)


class BigGANPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation: what the two networks share."""

    config: BigGANConfig
    config_class = BigGANConfig
    base_model_prefix = ""
    input_modalities = "image"
    model_tags = ["biggan", "gan"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["BigGANGeneratorStage", "BigGANDiscriminatorStage"]

    _path_in_repo = ""

    def __init__(self, config: BigGANConfig):
        config.validate_architecture()
        super().__init__(config)

    def save_pretrained(  # type: ignore[override]  # the arguments it does not name are passed on
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        As in transformers. A save that fails leaves the folder as it was, and one that succeeds leaves no shards of
        an earlier one; with `push_to_hub`, `repo_id` and the other arguments of [`push_to_hub`] are passed on.
        """
        push = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        if not is_main_process:
            return
        with staged_folder(save_directory) as staging:
            super().save_pretrained(staging, **kwargs)
        if push_to_hub:
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), **push)

    def push_to_hub(  # type: ignore[override]  # transformers wraps its own, and loses the signature
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
    ) -> str:
        """
        Uploads the network to the Hub: the generator, with its card, to the root, the discriminator to
        `discriminator/`. A card that the repository has stays as it is.

        Args:
            repo_id: `"user/name"`; created if it does not exist.
            commit_message: First line of the commit.
            commit_description: The rest of it.
            private: Whether a repository that is created is private.
            token: Access token; by default the one stored on this machine.
            revision: Branch to commit to.
            create_pr: Opens a pull request instead.
            max_shard_size: As for `save_pretrained`.
            tags: Of a new card, beside its own.

        Returns:
            The commit's address.
        """
        repo_id = create_repo(repo_id, token, private)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if not has_card(repo_id, token, revision):
                self._write_card(Path(folder), repo_id, tags)
            commit = upload_folder(
                folder,
                repo_id,
                path_in_repo=self._path_in_repo,
                token=token,
                private=private,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
            )
        return commit.commit_url

    def _write_card(self, folder: Path, repo_id: str, tags: list[str] | None) -> None:
        """Writes `README.md` and what it shows, where the network has a card of its own."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            self._init_weight(module.weight)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                init.zeros_(bias)
        if isinstance(module, SpectralNorm):
            init.normal_(module.u0)
            init.ones_(module.sv0)
            init.zeros_(module.v0)
        if isinstance(module, BatchNorm2d):
            init.ones_(module.gain)
            init.zeros_(module.bias)
        if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d):
            for name, buffer in module.named_buffers(recurse=False):
                (init.ones_ if name.endswith("var") else init.zeros_)(buffer)
        if isinstance(module, SelfAttention):
            init.zeros_(module.gamma)

    def _init_weight(self, weight: Tensor) -> None:
        if self.config.initializer == "orthogonal":
            init.orthogonal_(weight)
        elif self.config.initializer == "normal":
            init.normal_(weight, std=0.02)
        else:
            init.xavier_uniform_(weight)

    def _check_class_labels(self, class_labels: Tensor | None, num_samples: int) -> None:
        """Shape and range; the range of labels on a GPU would cost a synchronisation and is left to the caller."""
        if not self.config.num_labels:
            if class_labels is not None:
                raise ValueError("this model is unconditional (num_labels=0): class_labels must be None")
            return
        if class_labels is None:
            raise ValueError(f"this model has {self.config.num_labels} classes: class_labels must be given")
        if class_labels.shape != (num_samples,) or class_labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"class_labels must be {num_samples} integers (int64), one a sample, got {tuple(class_labels.shape)} "
                f"of {class_labels.dtype}"
            )
        if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_label_range(class_labels.tolist(), self.config.num_labels)


def check_label_range(labels: Sequence[int], num_labels: int) -> None:
    """Raises `ValueError` for the first label outside 0 … num_labels - 1."""
    for label in labels:
        if not 0 <= label < num_labels:
            raise ValueError(f"class label {label} is outside 0 to {num_labels - 1}")


class BigGANModel(BigGANPreTrainedModel):
    """
    The generator: latents and a class to an image.

    Example:
        ```python
        model = BigGANModel.from_pretrained("user/biggan")
        images = model.sample(class_labels=[207], num_images_per_label=4, truncation=0.5)  # (4, 3, H, W) in [-1, 1]
        ```
    """

    main_input_name = "latents"

    def __init__(self, config: BigGANConfig):
        super().__init__(config)
        sn_eps = config.generator_sn_eps
        stem_channels, *_, out_channels = config.generator_channels
        stem_dim = config.condition_dim if config.is_deep else config.z_dim // config.num_latent_chunks
        if config.num_labels:
            embedding = nn.Embedding(config.num_labels, config.class_embedding_dim)
            self.class_embedding = embedding if config.shared_class_embedding else OneHotLabels(config.num_labels)
        self.linear = linear(stem_dim, 16 * stem_channels, sn_eps)
        self.stages = nn.ModuleList(BigGANGeneratorStage(config, i) for i in range(len(config.generator_resolutions)))
        output_eps = config.output_batch_norm_eps or config.batch_norm_eps
        self.output_bn = BatchNorm2d(out_channels, output_eps, len(config.standing_truncations))
        self.output_conv = conv2d(out_channels, config.num_channels, 3, sn_eps)
        self.post_init()

    def _write_card(self, folder: Path, repo_id: str, tags: list[str] | None) -> None:
        sample_sheet(self, rows=8, columns=4).save(folder / "samples.png")
        card = model_card(self.config, repo_id=repo_id, tags=tags, sample_image="samples.png")
        (folder / "README.md").write_text(card, encoding="utf-8")

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        latents = torch.zeros(1, self.config.z_dim)
        return {"latents": latents, **({"class_labels": torch.zeros(1).long()} if self.config.num_labels else {})}

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        truncation: float | None = None,
        return_dict: bool | None = None,
    ) -> BigGANModelOutput | tuple[Tensor]:
        """
        Args:
            latents: (N, z_dim), already drawn and truncated: see `sample_latents`.
            class_labels: int64 (N,); none for an unconditional model.
            class_embeddings: (N, class_embedding_dim) in place of labels, for mixing classes: rows of
                `model.class_embedding(labels)` or weighted sums of them. With `shared_class_embedding=False` these
                are the weights of the classes, (N, num_labels).
            truncation: The truncation at which the latents were drawn, chooses among the standing statistics.
                `None`: running statistics.
            return_dict: `False` for a tuple.

        Raises:
            ValueError: Latents, labels or embeddings of the wrong shape; a label or a truncation out of range.
        """
        if latents.ndim != 2 or latents.shape[1] != self.config.z_dim:
            raise ValueError(f"latents must be (N, {self.config.z_dim}), got {tuple(latents.shape)}")
        row = self._standing_row(truncation)
        latents = latents.to(self.dtype)
        embeddings = self._class_vectors(latents, class_labels, class_embeddings)
        iterate_in_training(self)
        with kept_kernels(self):
            images = self._images(latents, embeddings, row)
        return (images,) if return_dict is False else BigGANModelOutput(images=images)

    def _images(self, latents: Tensor, embeddings: Tensor | None, row: StandingRow | None) -> Tensor:
        stem, conditions = self._conditions(latents, embeddings)
        hidden_states = self.linear(stem).unflatten(1, (-1, 4, 4))
        for stage, condition in zip(self.stages, conditions, strict=True):
            hidden_states = stage(hidden_states, condition, row)
        return torch.tanh(self.output_conv(F.relu(self.output_bn(hidden_states, row=row), inplace=True))).contiguous()

    def _class_vectors(self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None) -> Tensor | None:
        """(N, class_embedding_dim), or (N, num_labels) without a shared embedding, or `None` without classes."""
        if embeddings is None:
            self._check_class_labels(labels, len(latents))
            return self.class_embedding(labels).to(latents.dtype) if self.config.num_labels else None
        if not self.config.num_labels:
            raise ValueError("this model is unconditional (num_labels=0): class_embeddings must be None")
        if labels is not None:
            raise ValueError("class_labels and class_embeddings are two ways to say one thing; give one of them")
        width = self.config.class_embedding_dim if self.config.shared_class_embedding else self.config.num_labels
        if embeddings.shape != (len(latents), width):
            raise ValueError(f"class_embeddings must be ({len(latents)}, {width}), got {tuple(embeddings.shape)}")
        return embeddings.to(latents.dtype)

    def _conditions(self, latents: Tensor, embeddings: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """What the first linear map sees, and what conditions each stage (paper, section 3.1)."""
        if self.config.is_deep:
            everything = latents if embeddings is None else torch.cat([embeddings, latents], dim=1)
            return everything, [everything] * len(self.stages)
        if not self.config.hierarchical_latents:
            return latents, [embeddings] * len(self.stages)
        stem, *chunks = latents.chunk(self.config.num_latent_chunks, dim=1)
        return stem, [c if embeddings is None else torch.cat([embeddings, c], dim=1) for c in chunks]

    def _standing_row(self, truncation: float | None) -> StandingRow | None:
        check_truncation(truncation)
        table = list(self.config.standing_truncations)
        if truncation is None:
            return None
        if not table:
            if not torch.compiler.is_compiling():
                logger.warning_once("This model holds no standing statistics: truncated samples use the running ones.")
            return None
        if not table[0] <= truncation <= table[-1]:
            raise ValueError(
                f"truncation={truncation} is outside this model's standing statistics, {table[0]} to {table[-1]}"
            )
        if self.config.standing_interpolation == "mirrored":
            # In that program's own arithmetic, whose rounding decides which rows a threshold on the grid meets.
            position = truncation / (1.0 / (len(table) - 1))
            lower = int(position)
            weight = position - lower
            return StandingRow(lower, min(lower + 1, len(table) - 1), 1 - weight if weight else 0.0)
        upper = next(i for i, threshold in enumerate(table) if threshold >= truncation)
        if table[upper] == truncation:
            return StandingRow(upper, upper, 0.0)
        fraction = (truncation - table[upper - 1]) / (table[upper] - table[upper - 1])
        return StandingRow(upper - 1, upper, fraction)

    def _truncation_mode(self, truncation: float | None, mode: TruncationMode | None) -> TruncationMode:
        """How latents are drawn; refuses a mode other than that of the standing statistics that are asked for."""
        own = self.config.truncation_mode
        if mode is not None:
            check_truncation_mode(mode)
        if truncation is not None and self.config.standing_truncations and mode not in (None, own):
            raise ValueError(f"this model's standing statistics are those of truncation_mode={own!r}, got {mode!r}")
        return mode or own

    @torch.no_grad()
    def sample(
        self,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_images_per_label: int = 1,
        *,
        truncation: float | None = None,
        truncation_mode: TruncationMode | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """
        Draws latents and generates images, in eval mode, without gradients.

        Args:
            class_labels: Labels; `None` draws one for each image (or none, for an unconditional model).
            num_images_per_label: Images a label, one after the other; without labels, the number of images.
            truncation: Threshold of the truncation trick (paper, section 3.1); `None` for plain N(0, 1).
            truncation_mode: See `sample_latents`; default the model's own, which is that of its standing statistics.
            latents: (number of images, z_dim) in place of drawing them.
            generator: Makes the draw reproducible; one for all, or one an image.

        Returns:
            (len(class_labels) · num_images_per_label, num_channels, image_size, image_size) in [-1, 1].
        """
        self.check_weights()
        labels = self._labels_to_sample(class_labels, num_images_per_label, generator)
        number = num_images_per_label if labels is None else len(labels)
        mode = self._truncation_mode(truncation, truncation_mode)
        if latents is None:
            latents = sample_latents(number, self.config.z_dim, truncation, mode, generator, self.device)
        elif len(latents) != number:
            raise ValueError(f"latents must be ({number}, {self.config.z_dim}), got {tuple(latents.shape)}")
        return self._generate(latents, labels, None, truncation)

    def check_weights(self) -> None:
        """Raises `ValueError` where the weights are offloaded layer by layer."""
        # A stage takes the weights of all its norms at once, when accelerate has not yet brought back those of any.
        if any(weight.is_meta for weight in self.parameters()):
            raise ValueError(
                "the model's weights are offloaded layer by layer (device 'meta'), which it cannot generate with; "
                "accelerate.cpu_offload_with_hook(model, device) moves it as a whole"
            )

    @torch.no_grad()
    def _generate(
        self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None, truncation: float | None
    ) -> Tensor:
        """Images in eval mode."""
        was_training = self.training
        if was_training:  # else the kernels that were made last time serve again
            self.eval()
        try:
            forward = functools.partial(self, latents.to(self.device), labels, embeddings, truncation=truncation)
            if self._compiled_call_impl is not None:
                # A copy, since the next replay of a CUDA graph writes where this one did.
                return run_compiled(self, forward).images.clone()
            with kept_kernels(self):
                return forward().images
        finally:
            if was_training:
                self.train()

    def _labels_to_sample(
        self,
        labels: int | Sequence[int] | Tensor | None,
        repeats: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Tensor | None:
        if repeats < 1:
            raise ValueError(f"num_images_per_label must be at least 1, got {repeats}")
        if labels is not None:
            try:
                labels = torch.as_tensor(labels, device="cpu").reshape(-1)
            except (TypeError, ValueError) as error:
                raise ValueError(f"class_labels must be integers, got {labels!r}") from error
            self._check_class_labels(labels, len(labels))
            return labels.repeat_interleave(repeats).to(self.device)
        if not self.config.num_labels:
            return None
        check_generators(generator, repeats)
        generators, size = (generator, 1) if isinstance(generator, Sequence) else ([generator], repeats)
        drawn = [
            torch.randint(self.config.num_labels, (size,), generator=g, device=None if g is None else g.device)
            for g in generators
        ]
        return torch.cat(drawn).to(self.device)


class BigGANDiscriminator(BigGANPreTrainedModel):
    """
    The discriminator: an image and its class to one logit, with projection (Miyato & Koyama 2018, arXiv:1802.05637).

    Example:
        ```python
        disc = BigGANDiscriminator.from_pretrained("user/biggan", subfolder="discriminator")
        logits = disc(pixel_values, class_labels=labels).logits  # (N, 1)
        ```
    """

    main_input_name = "pixel_values"
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

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        pixel_values = torch.zeros(1, self.config.num_channels, self.config.image_size, self.config.image_size)
        labels = {"class_labels": torch.zeros(1).long()} if self.config.num_labels else {}
        return {"pixel_values": pixel_values, **labels}

    def forward(
        self, pixel_values: Tensor, class_labels: Tensor | None = None, return_dict: bool | None = None
    ) -> BigGANDiscriminatorOutput | tuple[Tensor]:
        """
        Args:
            pixel_values: (N, num_channels, image_size, image_size) in [-1, 1].
            class_labels: int64 (N,); none for an unconditional model.
            return_dict: `False` for a tuple.

        Raises:
            ValueError: Images or labels of the wrong shape, a label out of range.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be (N, {', '.join(map(str, expected))}) floats in [-1, 1], got "
                f"{tuple(pixel_values.shape)} of {pixel_values.dtype}"
            )
        self._check_class_labels(class_labels, len(pixel_values))
        pixel_values = pixel_values.to(self.dtype)
        if self.training and self.is_activation_checkpointing and not torch.compiler.is_compiling():
            # The reentrant kind gives a stage's weights a gradient only if the stage's input needs one.
            pixel_values = pixel_values if pixel_values.requires_grad else pixel_values.detach().requires_grad_()

        iterate_in_training(self)
        with kept_kernels(self):
            logits = self._logits(pixel_values, class_labels)
        return (logits,) if return_dict is False else BigGANDiscriminatorOutput(logits=logits)

    def _logits(self, pixel_values: Tensor, class_labels: Tensor | None) -> Tensor:
        hidden_states = self.input_conv(pixel_values)
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        features = F.relu(hidden_states).sum(dim=(2, 3))  # global sum pooling
        features = F.dropout(features, self.config.discriminator_dropout, self.training)
        logits = self.linear(features)
        if class_labels is None:
            return logits
        # Projection: the class enters by an inner product with the features.
        return logits + (self.class_embedding(class_labels) * features).sum(dim=1, keepdim=True)


__all__ = ["BigGANDiscriminator", "BigGANModel", "BigGANPreTrainedModel"]
