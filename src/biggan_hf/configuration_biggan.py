"""The configuration of BigGAN: one object for both networks (Brock, Donahue, Simonyan 2018, arXiv:1809.11096)."""

import json
import math
from collections.abc import Callable, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import HFValidationError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import cached_file, logging

from .embedded import located
from .files import checkpoint_folders, write_text
from .keywords import PLACE, did_you_mean
from .presets import CHANNEL_MULTIPLIERS, preset_row


logger = logging.get_logger(__name__)

NETWORKS = ("generator", "discriminator")
MOST_LABELS = 100_000  # transformers writes the names of all classes out whenever a model is loaded

# transformers passes these to the constructor of a configuration, beside its fields.
_BASE_KEYWORDS = {"_commit_hash", "_name_or_path", "auto_map", "model_type", "name_or_path", "output_attentions"}
_BASE_KEYWORDS |= {"custom_pipelines"}  # of a repository with code
_BASE_KEYWORDS |= {"torch_dtype", "attn_implementation", "_attn_implementation_internal"}
_BASE_KEYWORDS |= {"experts_implementation", "_experts_implementation_internal"}

# Fields, what their numbers may be, and how a message says so.
Ranges = Sequence[tuple[str, Callable[[float], bool], str]]
_RANGES: Ranges = [
    ("z_dim class_embedding_dim generator_base_channels discriminator_base_channels generator_blocks_per_stage "
     "discriminator_blocks_per_stage", lambda value: value >= 1, "be at least 1"),
    ("z_dim class_embedding_dim generator_base_channels discriminator_base_channels", lambda value: value <= 2**16,
     "be at most 65,536"),
    ("generator_blocks_per_stage discriminator_blocks_per_stage", lambda value: value <= 1000, "be at most 1,000"),
    ("num_channels", lambda value: value in (1, 3), "be 1 (grey) or 3 (RGB)"),
    ("discriminator_dropout", lambda value: 0 <= value < 1, "lie in [0, 1)"),
    ("spectral_norm_eps batch_norm_eps output_batch_norm_eps", lambda value: 0 < value < 1, "lie between 0 and 1"),
]  # fmt: skip


@strict
class BigGANConfig(PreTrainedConfig):
    """
    The architecture of a BigGAN generator and its discriminator. The defaults are the paper's 128-pixel model
    (appendix B).

    docs/options.md explains every field. A saved `config.json` holds everything that the networks depend on:
    multipliers that were left out are filled in.

    Beside the fields there are `num_labels` (also called `num_classes`), the number of classes, and `id2label`, their
    names by label (a number becomes text); commas separate synonyms, as in ImageNet's list. 0 classes make both
    networks unconditional. The default is 1000 classes, or as many as there are names.

    Raises:
        ValueError: A value is not allowed; the message names it and what was expected.
        TypeError: A keyword is unknown.
        huggingface_hub.errors.StrictDataclassFieldValidationError: A value has the wrong type.
    """

    model_type = "biggan"
    attribute_map = {"num_classes": "num_labels"}

    architecture: Literal["biggan", "biggan-deep"] = "biggan"  # one residual block a stage, or bottleneck blocks
    image_size: int = 128  # 32, 64, 128, 256 or 512 pixels
    num_channels: int = 3  # 3 for RGB, 1 for grey
    z_dim: int = 120  # length of the latent vector
    class_embedding_dim: int = 128  # length of the shared class embedding
    # One embedding, which linear maps turn into every batch norm's gain and bias (paper, section 3). `False`: an
    # embedding for each gain and each bias.
    shared_class_embedding: bool = True
    # Skip-z in the paper: each block sees its own chunk of the latents. The stem and each stage get one, of the same
    # length. The deep architecture needs `True`: its blocks see all latents.
    hierarchical_latents: bool = True

    # The base width is `ch`: 96 in the paper, 128 in its deep models. Multipliers are of the 4x4 stem, then of the
    # output of each stage; in the discriminator of each plain block, or of the deep stem and of each deep stage.
    # Self-attention follows the stages whose output has one of the sizes. A plain stage has one block.
    generator_base_channels: int = 96
    generator_channel_multipliers: list[int] | tuple[int, ...] | None = None
    generator_attention_resolutions: list[int] | tuple[int, ...] = (64,)
    generator_blocks_per_stage: int = 2
    generator_spectral_norm: bool = True
    discriminator_base_channels: int = 96
    discriminator_channel_multipliers: list[int] | tuple[int, ...] | None = None
    discriminator_attention_resolutions: list[int] | tuple[int, ...] = (64,)
    discriminator_blocks_per_stage: int = 2
    discriminator_spectral_norm: bool = True
    # The first convolution of a plain block already has the block's output width (SA-GAN, BigGAN); SN-GAN: not yet.
    discriminator_wide: bool = True
    # Self-attention follows only the stages of these numbers, of those with the sizes above; `None`: all of them. The
    # last stages of a discriminator share one size.
    discriminator_attention_stages: list[int] | tuple[int, ...] | None = None
    # StudioGAN: the shortcut of a block that begins with a ReLU sees the map after it, since that ReLU works in place.
    discriminator_shortcut_relu: bool = False
    # StudioGAN's `big_resnet_deep_studiogan`: a deep block's shortcut is a 1x1 convolution to the output width (in the
    # discriminator, where size or width changes), and the discriminator pools before its last ReLU.
    deep_projection_shortcut: bool = False
    discriminator_dropout: float = 0.0  # share of the features dropped in training before the last layer
    spectral_norm_eps: float = 1e-4  # the smallest norm by which a singular vector is divided
    batch_norm_eps: float = 1e-4  # what batch norms add to the variance
    output_batch_norm_eps: float | None = None  # of the batch norm before the last convolution; default: as the others
    # The paper's; with standard deviation 0.02; as in SA-GAN and SN-GAN.
    initializer: Literal["orthogonal", "normal", "xavier_uniform"] = "orthogonal"

    # What `truncation=t` means. "resample" (paper): entries of N(0, 1) beyond t are drawn again. "scale" (TFHub,
    # pytorch-pretrained-biggan): t times N(0, 1) cut at 2. "normal" (BigGAN-PyTorch): N(0, t²).
    truncation_mode: Literal["resample", "scale", "normal"] = "resample"
    # The truncations, ascending, for which the generator holds standing statistics. It interpolates between two of
    # them; pytorch-pretrained-biggan exchanges the weights of the two ("mirrored"; truncations evenly from 0 to 1).
    standing_truncations: list[float | int] | tuple[float | int, ...] = ()
    standing_interpolation: Literal["linear", "mirrored"] = "linear"

    def __post_init__(self, **kwargs: Any) -> None:
        self._set_labels(kwargs.pop("num_labels", None), kwargs.pop("num_classes", None))
        unknown = set(kwargs) - _BASE_KEYWORDS
        if unknown:
            raise TypeError(_unknown_keyword(sorted(unknown)[0]))
        names = [] if self.architectures is None else self.architectures  # `AutoModel.from_config` looks through them
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"architectures must be a list of names, got {names!r}")
        self.architectures = list(names)
        self._fill_in_defaults()
        self.validate_architecture()
        self._check_dtype()
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "BigGANConfig":
        """
        The architecture of a published model: a row of `PRESETS`, with some fields of `BigGANConfig` replaced.

        Args:
            name: "biggan-128" or another preset.
            **overrides: Fields and their values, as `num_labels=10`.

        Raises:
            ValueError: There is no such preset (the message names the closest), or a value is not allowed.
            TypeError: There is no such field.
        """
        return cls(**_replaced(preset_row(name).networks, overrides))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, but refuses what is no BigGAN's, and takes `subfolder=None`."""
        source = located(str(pretrained_model_name_or_path))
        kwargs = {name: value for name, value in kwargs.items() if name != "subfolder" or value is not None}
        try:
            settings, rest = super().get_config_dict(source, **kwargs)
        except TypeError as error:  # JSON, but no object
            raise ValueError(f"the config.json of {str(source)!r} is no BigGAN's: it is no object") from error
        except OSError as error:
            if isinstance(error.__cause__, HFValidationError):
                raise FileNotFoundError(f"there is no folder {str(source)!r}") from error
            raise
        found = settings.get("model_type") if isinstance(settings, dict) else None
        if found != cls.model_type:
            _check_there_is_one(source, {name: kwargs[name] for name in PLACE if name in kwargs})
            told = f"its model_type is {found!r}" if found else "it names no model_type"
            raise ValueError(f"the config.json of {str(source)!r} is no BigGAN's: {told}")
        return settings, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        As in transformers, but fields that `kwargs` replace pass the checks of the constructor. Warns of a key that is
        no field, such as one that a later transformers writes, and keeps it.
        """
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        known = {name: value for name, value in config_dict.items() if name in _known_names()}
        unknown = sorted(str(name) for name in config_dict.keys() - known.keys())
        # A key with the name of a method or a property would take its place. With a setting of text generation,
        # transformers saves no configuration.
        generation = vars(GenerationConfig())
        kept = {name: config_dict[name] for name in unknown if not hasattr(cls, name) and name not in generation}
        for name in unknown:
            what = "(kept, without effect)" if name in kept else "(left out)"
            logger.warning_once(f"{_unknown_keyword(name)} {what}")
        replaceable = {*BigGANConfig.__annotations__, "num_labels", "num_classes", "id2label", "label2id"}
        settings = _replaced(known, {name: kwargs.pop(name) for name in [*kwargs] if name in replaceable})
        config, unused = super().from_dict(settings, return_unused_kwargs=True, **kwargs)
        for name, value in kept.items():
            setattr(config, name, value)
        if return_unused_kwargs:
            return config, unused
        if unused:
            raise TypeError(_unknown_keyword(sorted(unused)[0]))
        return config

    def to_diff_dict(self) -> dict[str, Any]:
        """What goes to `config.json`. transformers leaves out defaults; the names of the classes stay."""
        settings = {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}
        settings.pop("custom_pipelines", None)  # it comes with the code; `transformers.pipeline` puts classes into it
        return settings

    def to_json_file(self, json_file_path: str | PathLike[str], use_diff: bool = True) -> None:
        """As in transformers, but what could not be loaded again is not written."""
        text = self.to_json_string(use_diff=use_diff)
        type(self).from_dict(json.loads(text))
        write_text(json_file_path, text)

    # What the networks are built from

    @property
    def is_deep(self) -> bool:
        return self.architecture == "biggan-deep"

    @property
    def generator_channels(self) -> list[int]:
        """Channels of the 4x4 stem, then of each stage's output."""
        return [m * self.generator_base_channels for m in self.generator_channel_multipliers or ()]

    @property
    def generator_resolutions(self) -> list[int]:
        """Output size of each generator stage: 8, 16, …, image_size."""
        return [8 * 2**i for i in range(len(self.generator_channels) - 1)]

    @property
    def discriminator_channels(self) -> list[int]:
        """Input channels of the first stage, then of each stage's output."""
        channels = [m * self.discriminator_base_channels for m in self.discriminator_channel_multipliers or ()]
        return channels if self.is_deep else [self.num_channels, *channels]

    @property
    def discriminator_resolutions(self) -> list[int]:
        """Output size of each discriminator stage: halved down to 4 pixels, or to 8 for 32-pixel images."""
        smallest = 8 if self.image_size == 32 else 4
        return [max(self.image_size // 2 ** (i + 1), smallest) for i in range(len(self.discriminator_channels) - 1)]

    @property
    def discriminator_attention(self) -> list[bool]:
        """Whether self-attention follows each discriminator stage."""
        sizes, chosen = self.discriminator_attention_resolutions, self.discriminator_attention_stages
        stages = enumerate(self.discriminator_resolutions)
        return [size in sizes and (chosen is None or stage in chosen) for stage, size in stages]

    @property
    def generator_sn_eps(self) -> float | None:
        """`None` where the generator is not spectrally normalised."""
        return self.spectral_norm_eps if self.generator_spectral_norm else None

    @property
    def discriminator_sn_eps(self) -> float | None:
        return self.spectral_norm_eps if self.discriminator_spectral_norm else None

    @property
    def num_latent_chunks(self) -> int:
        """One chunk of the latents for the stem and one for each stage; 1 where they are not split."""
        return len(self.generator_channels) if self.hierarchical_latents and not self.is_deep else 1

    @property
    def class_width(self) -> int:
        """Length of a class embedding; without a shared embedding the number of classes; 0 without classes."""
        return self.class_embedding_dim if self.num_labels and self.shared_class_embedding else self.num_labels or 0

    @property
    def condition_dim(self) -> int:
        """Length of the vector that conditions a block of the generator; 0 where nothing does."""
        latent_dim = self.z_dim // self.num_latent_chunks if self.hierarchical_latents else 0
        return self.class_width + latent_dim

    # Filling in and checking

    def _set_labels(self, num_labels: int | None, num_classes: int | None) -> None:
        """Makes `id2label` and `label2id` from the names or the number, whichever was given."""
        number = num_labels if num_labels is not None else num_classes
        if num_classes not in (None, number):
            raise ValueError(f"num_classes is another name of num_labels, got {num_classes} and {num_labels}")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            raise ValueError(f"num_labels must be an integer ≥ 0 (0 is unconditional), got {number!r}")
        if (number or 0) > MOST_LABELS:
            raise ValueError(f"num_labels must be at most {MOST_LABELS}, got {number}")
        if self.id2label is None and self.label2id:
            raise ValueError("label2id follows from id2label: give id2label")
        if self.id2label is None:
            self.num_labels = 1000 if number is None else number
        elif not isinstance(self.id2label, dict):
            raise TypeError(f"id2label must be a dictionary from label to name, got {self.id2label!r}")
        elif number is not None and number != len(self.id2label):
            raise ValueError(f"num_labels={number}, but id2label has {len(self.id2label)} names; give one of the two")
        names = (self.id2label or {}).items()
        for key, name in names:
            if not isinstance(name, str | Real):
                raise ValueError(f"id2label must name each label with text or a number, got {name!r} for {key!r}")
        labels: dict[Any, str] = {int(key) if str(key).isdecimal() else key: str(name) for key, name in names}
        if labels.keys() != set(range(len(labels))):
            raise ValueError(f"id2label must name the labels 0 to {len(labels) - 1}, got the keys {[*labels]}")
        self.id2label = dict(sorted(labels.items()))
        self.label2id = {name: label for label, name in labels.items()}

    def _fill_in_defaults(self) -> None:
        for network, multipliers in self._default_multipliers().items():
            if getattr(self, f"{network}_channel_multipliers") is None:
                setattr(self, f"{network}_channel_multipliers", multipliers)
        for name in BigGANConfig.__annotations__:
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, list(value))
        self.standing_truncations = [float(truncation) for truncation in self.standing_truncations]

    def _default_multipliers(self) -> dict[str, list[int]]:
        if self.image_size not in CHANNEL_MULTIPLIERS:
            raise ValueError(f"image_size must be one of {_listed(CHANNEL_MULTIPLIERS)}, got {self.image_size}")
        return dict(zip(NETWORKS, CHANNEL_MULTIPLIERS[self.image_size], strict=True))

    def validate_architecture(self) -> None:
        """Checks what types can't say. The networks call it again: a field may have been set in between."""
        check_ranges(self, _RANGES)
        self._check_widths()
        self._check_conditioning()
        self._check_attention()
        self._check_standing_statistics()

    def _check_dtype(self) -> None:
        name = str(self.dtype).removeprefix("torch.")
        if self.dtype is not None and not isinstance(getattr(torch, name, None), torch.dtype):
            raise ValueError(f"dtype must be a type of torch such as 'float32', got {self.dtype!r}")

    def _check_widths(self) -> None:
        for network, table in self._default_multipliers().items():
            name = f"{network}_blocks_per_stage"
            if not self.is_deep and getattr(self, name) > 2:  # 2 is the default, and means nothing there
                raise ValueError(f"{name}={getattr(self, name)} is for biggan-deep: a plain stage has one block")
            name, size = f"{network}_channel_multipliers", self.image_size
            given = getattr(self, name)
            if len(given) != len(table) or min(given) < 1:
                raise ValueError(f"{name} must be {len(table)} positive integers at {size} pixels, got {given}")
        if self.is_deep:
            self._check_bottlenecks()

    def _check_bottlenecks(self) -> None:
        """Deep shortcuts only drop channels in the generator, and only add them in the discriminator."""
        generator, discriminator = self.generator_channels, self.discriminator_channels
        if not self.deep_projection_shortcut and generator != sorted(generator, reverse=True):
            raise ValueError(f"generator_channel_multipliers must not ascend in a deep network, widths: {generator}")
        if not self.deep_projection_shortcut and discriminator != sorted(discriminator):
            raise ValueError(
                f"discriminator_channel_multipliers must not descend in a deep network, widths: {discriminator}"
            )
        narrowest = min(generator[-2], discriminator[1])
        if narrowest < 4:
            raise ValueError(f"a deep block has a quarter of its stage's width inside and needs 4, got {narrowest}")

    def _check_conditioning(self) -> None:
        if self.is_deep and not self.hierarchical_latents:
            raise ValueError("hierarchical_latents must be True in the deep architecture, whose blocks all see z")
        if self.num_labels and self.hierarchical_latents and not self.shared_class_embedding:
            raise ValueError(
                "shared_class_embedding=False needs hierarchical_latents=False: an embedding per layer leaves no "
                "vector to which a chunk of the latents could be joined"
            )
        if self.z_dim % self.num_latent_chunks:
            raise ValueError(
                f"z_dim={self.z_dim} does not divide into {self.num_latent_chunks} equal chunks (the stem and "
                f"{self.num_latent_chunks - 1} stages); the nearest that does is "
                f"{max(round(self.z_dim / self.num_latent_chunks), 1) * self.num_latent_chunks}"
            )

    def _check_attention(self) -> None:
        for network in NETWORKS:
            sizes: list[int] = getattr(self, f"{network}_resolutions")
            widths: list[int] = getattr(self, f"{network}_channels")[1:]
            for size in getattr(self, f"{network}_attention_resolutions"):
                if size not in sizes:
                    raise ValueError(
                        f"{network}_attention_resolutions names {size}, but no stage of the {self.image_size}-pixel "
                        f"{network} has that output size; they are {_listed(dict.fromkeys(sizes))}"
                    )
                width = widths[sizes.index(size)]
                if width < 8:
                    raise ValueError(f"attention at {size} pixels needs at least 8 channels, there are {width}")
        chosen = self.discriminator_attention_resolutions
        for stage in self.discriminator_attention_stages or ():
            if not 0 <= stage < len(sizes) or sizes[stage] not in chosen:
                raise ValueError(
                    f"discriminator_attention_stages names {stage}, but discriminator_attention_resolutions are "
                    f"{_listed(chosen)} and the outputs of the stages are {_listed(sizes)}"
                )

    def _check_standing_statistics(self) -> None:
        table = list(self.standing_truncations)
        if any(not math.isfinite(t) or t < 0 for t in table):
            raise ValueError(f"standing_truncations must be numbers ≥ 0, got {table}")
        if sorted(set(table)) != table:
            raise ValueError(f"standing_truncations must ascend, got {table}")
        last = len(table) - 1
        if self.standing_interpolation == "mirrored" and (last < 1 or table != [i / last for i in range(last + 1)]):
            raise ValueError(f"mirrored interpolation needs standing_truncations evenly from 0 to 1, got {table}")


def check_ranges(settings: Any, ranges: Ranges) -> None:
    """Raises `ValueError` for the first number that is not allowed. A field may also be `None`."""
    for names, is_allowed, expected in ranges:
        for name in names.split():
            value = getattr(settings, name)
            if value is not None and not is_allowed(value):
                raise ValueError(f"{name} must {expected}, got {value}")


def _replaced(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings with some of them replaced. Names of classes that don't fit a new number of classes go."""
    number, names = overrides.get("num_labels", overrides.get("num_classes")), settings.get("id2label")
    if "id2label" in overrides or (number is not None and (names is None or len(names) != number)):
        settings = {name: settings[name] for name in settings.keys() - {"id2label", "label2id", "num_labels"}}
    return {**settings, **overrides}


def _check_there_is_one(source: str, place: dict[str, Any]) -> None:
    """Raises `FileNotFoundError` for a folder or a repository without `config.json`: transformers reads none as {}."""
    if Path(source).is_file() or cached_file(source, "config.json", **place) is not None:
        return
    folder = Path(source, place.get("subfolder", ""))
    inner = "/".join(filter(None, [place.get("subfolder"), "discriminator"]))
    has_inner = cached_file(source, "config.json", **{**place, "subfolder": inner}) is not None
    instead = f"; a discriminator lies in it, in subfolder={inner!r}" if has_inner else _instead_of(folder)
    raise FileNotFoundError(f"there is no config.json in {str(folder)!r}{instead}")


def _instead_of(folder: Path) -> str:
    """What to take instead of the folder of a run that is not finished: its newest checkpoint is a model too."""
    newest = checkpoint_folders(folder)[-1:]
    return f"; the newest checkpoint of the run in it is {str(newest[0])!r}" if newest else ""


def _known_names() -> set[str]:
    return {*BigGANConfig.__dataclass_fields__, *_BASE_KEYWORDS, "num_labels", "num_classes", "transformers_version"}


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _unknown_keyword(name: str) -> str:
    fields = [*BigGANConfig.__dataclass_fields__, "num_labels", "num_classes"]
    return f"BigGANConfig has no field {name!r}{did_you_mean(name, fields)}"
