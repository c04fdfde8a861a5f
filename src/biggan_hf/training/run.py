"""A run, and how it is set up: whatever can be wrong is found here, before anything is written."""

import dataclasses
import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from torch import Tensor

from ..configuration_biggan import BigGANConfig
from ..data import LabelledImages, load_labelled_images
from ..hub import create_repo
from ..modeling_biggan import BigGANModel
from .arguments import DataArguments, ModelArguments, TrainingArguments
from .batches import BatchSource, counter_generator, to_pixel_values
from .checkpoints import (
    SETTINGS,
    check_same_architecture,
    find_checkpoint,
    load_training_state,
    remove_unfinished,
    set_aside,
    warn,
    write_whole,
)
from .players import build_players, set_adam
from .quality import Quality, set_best_aside
from .stability import SigmaClamp, Spectra, Watch
from .steps import Batch, Players


LOG = "log.jsonl"
SPECTRA = "spectra.jsonl"
EVALUATIONS = "evaluations.jsonl"
# How long a run goes on, and from where: what a resumed one is told anew.
MAY_CHANGE = {"output_dir", "resume_from_checkpoint", "max_train_steps", "max_train_minutes"}


@dataclass
class Run:
    """A run between two steps."""

    args: TrainingArguments
    accelerator: Accelerator
    config: BigGANConfig
    players: Players
    ema: BigGANModel
    batches: BatchSource
    accumulation_steps: int
    watch: Watch
    clamp: SigmaClamp | None
    quality: Quality | None
    settings: dict[str, Any]
    global_step: int = 0
    rollbacks: int = 0
    collapsed: bool = False
    overflows: Tensor | float = 0.0  # of float16, steps in a row

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def batch_seed(self) -> int:
        """After a rollback a run meets other latents and another order of the pictures, or it would collapse again."""
        return self.args.seed + 1_000_003 * self.rollbacks

    @property
    def onset(self) -> int:
        """The last step from before the lines of the log in which the rule for collapses looks for one."""
        return self.global_step - self.args.collapse_window * self.args.logging_steps

    def restore(self, state: dict[str, Any]) -> None:
        """
        Optimisers, counters, the vectors of the watch and the loss scaler of float16, as a checkpoint has them; see
        `training_state`.
        """
        self.global_step, self.rollbacks = state["global_step"], state["rollbacks"]
        self.players.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.players.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        set_adam(self.players, self.args, self.args.rollback_learning_rate_factor**self.rollbacks)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.overflows = state.get("overflows", 0.0)
        spectra = state.get("spectra", {})  # which older checkpoints have not
        self.watch.generator.restore(spectra.get("generator", {}))
        self.watch.discriminator.restore(spectra.get("discriminator", {}))
        self.batches.start(self.batch_seed, state["samples_seen"])


def set_up(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """Everything up to the first step. Whatever can't be raises one clear line, and nothing has been written yet."""
    resumed = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    accelerator = build_accelerator(args)
    accumulation_steps = args.accumulation_steps(accelerator.num_processes)
    with accelerator.main_process_first():
        images = load_images(data_args, model_args.config([]))
    config = model_args.config(images.class_names)
    check_enough(images, args, accelerator.num_processes)
    state = None
    if resumed is not None:
        check_same_architecture(resumed, config)
        state = load_training_state(resumed)
        check_same_pictures(resumed, state, images)
    settings: dict[str, Any] = {"num_processes": accelerator.num_processes}
    settings |= {k: v for group in (model_args, data_args, args) for k, v in dataclasses.asdict(group).items()}
    check_same_seed(Path(args.output_dir), settings)
    if resumed is not None:
        tell_other_settings(resumed.parent, settings)

    quality = build_quality(images, args, accelerator)

    set_seed(args.seed)
    players, ema = build_players(accelerator, config, args, resumed, model_args.init_from)
    batches = batch_source(images, config, data_args, args, accelerator)
    watch = build_watch(players, images, data_args, args, config, accelerator)
    clamps = args.sigma_clamp is not None or args.sigma_clamp_ratio is not None
    clamp = SigmaClamp(players.bare_generator, args.sigma_clamp, args.sigma_clamp_ratio) if clamps else None
    run = Run(args, accelerator, config, players, ema, batches, accumulation_steps, watch, clamp, quality, settings)
    if resumed is not None and state is not None:
        check_same_weights(resumed, state, players)
        run.restore(state)
    if run.is_main and args.push_to_hub:
        reserve_repo(args.hub_model_id or "")
    start_trackers(run)
    if run.is_main:
        open_output(run)
    return run


def build_accelerator(args: TrainingArguments) -> Accelerator:
    check_trackers(args.report_to)
    if args.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=sorted(args.report_to, key="tensorboard".__eq__) or None,  # which writes to the folder, goes last
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def check_enough(images: LabelledImages, args: TrainingArguments, num_processes: int) -> None:
    batch = args.global_batch_size or args.per_device_batch_size * num_processes
    if len(images) < batch:
        raise ValueError(f"the data set has {len(images)} pictures, fewer than one update takes, {batch}")


def reserve_repo(repo_id: str) -> None:
    """Creates the repository now, so that what hinders it is known before the training."""
    try:
        create_repo(repo_id)
    except Exception as error:  # of the hub's client or of the network below it
        raise ValueError(f"can't create the repository {repo_id!r}: {type(error).__name__}: {error}") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Those that a run has left in a folder, none of a folder without; raises `ValueError` for what no run wrote."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not what a run writes: {type(error).__name__}: {error}") from error
    return settings


def check_same_seed(output_dir: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` where the output folder holds a run of another seed."""
    seed = read_settings(output_dir).get("seed", settings["seed"])
    if seed != settings["seed"]:
        raise ValueError(f"the run in {str(output_dir)!r} has seed={seed!r}, this one seed={settings['seed']!r}")


def tell_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A warning that names what a run does otherwise than the one, in a folder, from whose checkpoint it goes on."""
    saved, now = read_settings(folder), json.loads(json.dumps(settings))
    others = [name for name in saved if name in now and saved[name] != now[name] and name not in MAY_CHANGE]
    if others:
        changes = ", ".join(f"{name}={now[name]!r} (was {saved[name]!r})" for name in others)
        warn(f"the run goes on with other settings: {changes}")


def check_same_pictures(checkpoint: Path, state: dict[str, Any], images: LabelledImages) -> None:
    """Whatever name the data set goes by; a converted checkpoint does not know its pictures."""
    if state["num_pictures"] not in (None, len(images)):
        raise ValueError(
            f"the checkpoint {str(checkpoint)!r} is of a run on {state['num_pictures']} pictures, this data set has "
            f"{len(images)}"
        )
    if state.get("pictures", images.fingerprint) != images.fingerprint:
        raise ValueError(
            f"the checkpoint {str(checkpoint)!r} is of a run on other pictures, labels or class names than this data "
            "set's"
        )


def check_same_weights(checkpoint: Path, state: dict[str, Any], players: Players) -> None:
    """Raises `ValueError` where other weights are frozen than in the checkpoint's run."""
    for name in ("generator", "discriminator"):
        optimizers = (state[f"{name}_optimizer"], getattr(players, f"{name}_optimizer").state_dict())
        saved, now = (sum(len(group["params"]) for group in optimizer["param_groups"]) for optimizer in optimizers)
        if saved != now:
            raise ValueError(
                f"the run of the checkpoint {str(checkpoint)!r} trained {saved} tensors of the {name}, this one would "
                f"train {now}: freeze_discriminator_stages and train_only must stay as they were"
            )


def load_images(data_args: DataArguments, config: BigGANConfig, split: str | None = None) -> LabelledImages:
    return load_labelled_images(
        data_args.dataset_name,
        image_size=config.image_size,
        num_channels=config.num_channels,
        dataset_config_name=data_args.dataset_config_name,
        split=split or data_args.dataset_split,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        on_unreadable_image=data_args.on_unreadable_image,
    )


def training_state(run: Run) -> dict[str, Any]:
    """What a checkpoint holds beside the networks; no random state, since batches are a function of the counters."""
    state = {
        "global_step": run.global_step,
        "samples_seen": run.batches.samples_seen,
        "rollbacks": run.rollbacks,
        "num_pictures": len(run.batches.images),
        "pictures": run.batches.images.fingerprint,
        "generator_optimizer": run.players.generator_optimizer.state_dict(),
        "discriminator_optimizer": run.players.discriminator_optimizer.state_dict(),
        "spectra": {"generator": run.watch.generator.bases, "discriminator": run.watch.discriminator.bases},
    }
    if run.accelerator.scaler is not None:
        state["scaler"] = run.accelerator.scaler.state_dict()
        state["overflows"] = float(run.overflows)
    return state


def batch_source(
    images: LabelledImages,
    config: BigGANConfig,
    data_args: DataArguments,
    args: TrainingArguments,
    accelerator: Accelerator,
) -> BatchSource:
    return BatchSource(
        images,
        z_dim=config.z_dim,
        num_labels=config.num_labels or 0,
        batch_size=args.per_device_batch_size,
        seed=args.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
        horizontal_flip=data_args.horizontal_flip,
        num_workers=data_args.dataloader_num_workers,
    )


def build_watch(
    players: Players,
    images: LabelledImages,
    data_args: DataArguments,
    args: TrainingArguments,
    config: BigGANConfig,
    accelerator: Accelerator,
) -> Watch:
    """
    The stability watch of the main process, with as many held-out pictures as one forward takes, and as many others.
    """
    pictures = {}
    if data_args.held_out_split is not None:
        held_out = load_images(data_args, config, data_args.held_out_split)
        if config.num_labels:
            check_same_classes(data_args.held_out_split, held_out.class_names, images.class_names)
        number = min(len(held_out), len(images), 4 * args.per_device_batch_size)
        for name, source in (("held_out", held_out), ("training", images)):
            pictures[name] = random_pictures(source, number, args.seed, bool(config.num_labels), accelerator.device)
    return Watch(Spectra(players.bare_generator), Spectra(players.bare_discriminator), pictures)


def check_same_classes(split: str, held_out: list[str], training: list[str]) -> None:
    """Raises `ValueError` unless the classes are the training data's, or have numbers for names, as many or fewer."""
    has_no_names = held_out == [str(label) for label in range(len(held_out))]
    if held_out == training or (has_no_names and 0 < len(held_out) <= len(training)):
        return
    pairs = enumerate(zip_longest(held_out, training, fillvalue=None))
    label, (there, here) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    raise ValueError(
        f"held_out_split {split!r} has other classes than the training data: its label {label} is {there!r}, the "
        f"training data's {here!r}"
    )


def random_pictures(images: LabelledImages, number: int, seed: int, labelled: bool, device: torch.device) -> Batch:
    """Different rows of the whole set, since the first ones of a folder are all of one class."""
    rows = torch.randperm(len(images), generator=counter_generator(torch.device("cpu"), seed))[:number]
    batch = images.__getitems__(rows.tolist())
    labels = batch["class_labels"] if labelled else None
    pixels = to_pixel_values(batch["pixel_values"], device)
    return Batch(pixels, None if labels is None else labels.to(device))


def build_quality(images: LabelledImages, args: TrainingArguments, accelerator: Accelerator) -> Quality | None:
    if not args.evaluation_steps:
        return None
    from ..evaluation import load_extractor  # here, so that a run that measures nothing needs none of its packages

    extractor = load_extractor(args.evaluation_extractor, accelerator.device)
    cache = Path(args.output_dir) / "evaluation"
    return Quality(images, extractor, args.evaluation_images, args.evaluation_allow_few_images, cache)


def check_trackers(report_to: list[str]) -> None:
    available = [tracker.value for tracker in get_available_trackers()]
    for name in report_to:
        if name not in available:
            raise ValueError(f"report_to names {name!r}, but the trackers installed here are {available or 'none'}")


def start_trackers(run: Run) -> None:
    try:
        run.accelerator.init_trackers("biggan_hf")
    except Exception as error:  # whatever a tracker's client raises, as without a key or a network
        trackers, what = ", ".join(run.args.report_to), f"{type(error).__name__}: {error}"
        raise ValueError(f"a tracker of report_to ({trackers}) can't start: {what}") from error


def open_output(run: Run) -> None:
    """
    Writes the settings; a resumed run's log goes on from the checkpoint, without what was lost after it, and later
    checkpoints are set aside.
    """
    run.output_dir.mkdir(parents=True, exist_ok=True)
    remove_unfinished(run.output_dir)
    abandoned = set_aside(run.output_dir, run.global_step, "abandoned-checkpoint")
    for folder in abandoned:
        warn(f"the run goes on from step {run.global_step}: a later checkpoint is now {str(folder)!r}")
    best = set_best_aside(run.output_dir, run.global_step) if abandoned else None
    if best is not None:
        warn(f"the run goes on from step {run.global_step}: a later best model is now {str(best)!r}")
    log = run.output_dir / LOG
    if run.global_step == 0 and log.exists() and log.stat().st_size:
        warn(f"no checkpoint in {str(run.output_dir)!r}: the run starts anew, and so does its log")
    write_whole(run.output_dir / SETTINGS, json.dumps(run.settings, indent=2))
    cut_logs(run)


def cut_logs(run: Run) -> None:
    """Takes out of the logs what came after the step where the run goes on."""
    for log in (run.output_dir / name for name in (LOG, SPECTRA, EVALUATIONS)):
        if log.exists():
            kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step(line) <= run.global_step]
            write_whole(log, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    """The step of a line of the log; one that was cut off in the middle is after all others."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")
