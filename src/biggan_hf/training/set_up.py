"""How a run is made ready. Whatever can be wrong is found here, before anything is written."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed

from ..configuration_biggan import BigGANConfig
from ..data import LabelledImages, load_labelled_images
from ..files import remove_unfinished, write_text
from ..hub import create_repo
from .arguments import DataArguments, ModelArguments, TrainingArguments
from .batches import BatchSource, counter_generator, to_pixel_values
from .checkpoints import SETTINGS, check_same_architecture, find_checkpoint, load_training_state, set_aside, warn
from .fitting import fit_batch
from .logs import LOG, cut_logs
from .players import build_players
from .quality import Quality, set_best_aside
from .run import Run
from .stability import SigmaClamp, Spectra
from .steps import Pictures, Players


# What a resumed run may change without a word: where it goes on from, and how long it goes on.
MAY_CHANGE = {"output_dir", "resume_from_checkpoint", "max_train_steps", "max_train_minutes"}


def set_up(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """Everything before the first step. When it raises an error, nothing has been written yet."""
    # The processes, the pictures, the configuration
    resumed = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    accelerator = build_accelerator(args)
    with accelerator.main_process_first():
        images = load_images(data_args, model_args.config([]))
    config = model_args.config(images.class_names)
    saved = read_settings(Path(args.output_dir))
    args = fit_batch(args, accelerator, config, resumed, model_args.init_from, saved)
    accumulation_steps = args.accumulation_steps(accelerator.num_processes)
    batch = accumulation_steps * args.per_device_batch_size * accelerator.num_processes
    if len(images) < batch:
        raise ValueError(f"the data set has {len(images)} pictures, fewer than one update takes, {batch}")

    # The checkpoint, and the settings of its run
    settings: dict[str, Any] = {"num_processes": accelerator.num_processes}
    settings |= {k: v for group in (model_args, data_args, args) for k, v in dataclasses.asdict(group).items()}
    if (seed := saved.get("seed", args.seed)) != args.seed:
        raise ValueError(f"the run in {args.output_dir!r} has seed={seed!r}, this one seed={args.seed!r}")
    state = None
    if resumed is not None:
        check_same_architecture(resumed, config)
        state = load_training_state(resumed)
        check_same_pictures(resumed, state, images)
        warn_of_other_settings(resumed.parent, settings)

    # The networks, and what measures them
    quality = build_quality(images, args, accelerator)
    set_seed(args.seed)
    players, ema = build_players(accelerator, config, args, resumed, model_args.init_from)
    batches = BatchSource(
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
    spectra = {name: Spectra(network) for name, network in players.networks.items()}
    watched = watched_pictures(images, data_args, args, config, accelerator.device)
    clamps = args.sigma_clamp is not None or args.sigma_clamp_ratio is not None
    clamp = SigmaClamp(players.bare_generator, args.sigma_clamp, args.sigma_clamp_ratio) if clamps else None
    parts = (players, ema, batches, accumulation_steps, spectra, watched, clamp, quality)
    run = Run(args, accelerator, config, *parts, settings)
    if resumed is not None and state is not None:
        check_same_weights(resumed, state, players)
        run.restore(state)

    # The Hub, the trackers and the folder
    if run.is_main and args.push_to_hub:
        # Now: if that fails, the run fails before it trains.
        with told_as(f"can't create the repository {args.hub_model_id!r}"):
            create_repo(args.hub_model_id or "")
    with told_as(f"a tracker of report_to ({', '.join(args.report_to)}) can't start"):
        accelerator.init_trackers("biggan_hf")
    if run.is_main:
        open_output(run)
    return run


# What a run is built from


def build_accelerator(args: TrainingArguments) -> Accelerator:
    available = [tracker.value for tracker in get_available_trackers()]
    for name in args.report_to:
        if name not in available:
            raise ValueError(f"report_to names {name!r}, but the trackers installed here are {available or 'none'}")
    if args.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return Accelerator(
        mixed_precision=args.mixed_precision,
        # tensorboard starts last: it writes to the folder, and the others may fail.
        log_with=sorted(args.report_to, key="tensorboard".__eq__) or None,
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
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


def watched_pictures(
    images: LabelledImages, data_args: DataArguments, args: TrainingArguments, config: BigGANConfig, device: Any
) -> dict[str, Pictures]:
    """Where there is a held-out split, pictures of it, and as many of the training pictures."""
    if data_args.held_out_split is None:
        return {}
    held_out = load_images(data_args, config, data_args.held_out_split)
    if config.num_labels:
        check_same_classes(data_args.held_out_split, held_out.class_names, images.class_names)
    number = min(len(held_out), len(images), 4 * args.per_device_batch_size)
    pictures = {}
    for name, source in {"held_out": held_out, "training": images}.items():
        # From the whole set: the first ones of a folder are all of one class.
        rows = torch.randperm(len(source), generator=counter_generator(torch.device("cpu"), args.seed))[:number]
        batch = source.__getitems__(rows.tolist())
        labels, pixel_values = batch["class_labels"], to_pixel_values(batch["pixel_values"], device)
        labels = labels.to(device) if config.num_labels and labels is not None else None
        pictures[name] = Pictures(pixel_values, labels)
    return pictures


def build_quality(images: LabelledImages, args: TrainingArguments, accelerator: Accelerator) -> Quality | None:
    if not args.evaluation_steps:
        return None
    from ..evaluation import load_extractor  # here, so that a run without evaluations needs none of its packages

    extractor = load_extractor(args.evaluation_extractor, accelerator.device)
    cache = Path(args.output_dir) / "evaluation"
    return Quality(images, extractor, args.evaluation_images, args.evaluation_allow_few_images, cache)


# Checks


def check_same_classes(split: str, held_out: list[str], training: list[str]) -> None:
    """Raises `ValueError` unless both have the same classes. Classes without names may be fewer."""
    has_no_names = held_out == [str(label) for label in range(len(held_out))]
    if held_out == training or (has_no_names and 0 < len(held_out) <= len(training)):
        return
    pairs = enumerate(zip_longest(held_out, training, fillvalue=None))
    label, (there, here) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    raise ValueError(
        f"held_out_split {split!r} has other classes than the training data: its label {label} is {there!r}, the "
        f"training data's {here!r}"
    )


def check_same_pictures(checkpoint: Path, state: dict[str, Any], images: LabelledImages) -> None:
    """The data set may have another name, but no other pictures. A converted checkpoint knows none."""
    other = None
    if state["num_pictures"] not in (None, len(images)):
        other = f"{state['num_pictures']} pictures, this data set has {len(images)}"
    elif state.get("pictures", images.fingerprint) != images.fingerprint:
        other = "other pictures, labels or class names than this data set's"
    if other is not None:
        raise ValueError(f"the checkpoint {str(checkpoint)!r} is of a run on {other}")


def check_same_weights(checkpoint: Path, state: dict[str, Any], players: Players) -> None:
    """Raises `ValueError` where the run of the checkpoint froze other weights."""
    for name, optimizer in players.optimizers.items():
        groups = (state[f"{name}_optimizer"]["param_groups"], optimizer.param_groups)
        saved, now = (sum(len(group["params"]) for group in both) for both in groups)
        if saved != now:
            raise ValueError(
                f"the run of the checkpoint {str(checkpoint)!r} trained {saved} tensors of the {name}, this one would "
                f"train {now}: freeze_discriminator_stages and train_only must stay as they were"
            )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a run left in a folder; none if there are none."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not what a run writes: {type(error).__name__}: {error}") from error
    return settings


def warn_of_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Names the settings that differ from those of the run in a folder, whose checkpoint this run goes on from."""
    saved, now = read_settings(folder), json.loads(json.dumps(settings))
    others = [name for name in saved if name in now and saved[name] != now[name] and name not in MAY_CHANGE]
    if others:
        changes = ", ".join(f"{name}={now[name]!r} (was {saved[name]!r})" for name in others)
        warn(f"the run goes on with other settings: {changes}")


# What others see


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """The clients of the Hub and of trackers raise what they like, as without a key or a network."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


def open_output(run: Run) -> None:
    """Writes the settings. In a resumed run's folder, moves aside what came after the step where it goes on."""
    folder, step = run.output_dir, run.global_step
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    abandoned = [("checkpoint", path) for path in set_aside(folder, step, "abandoned-checkpoint")]
    best = set_best_aside(folder, step) if abandoned else None
    for what, path in [*abandoned, *([("best model", best)] if best else [])]:
        warn(f"the run goes on from step {step}: a later {what} is now {str(path)!r}")
    log = folder / LOG
    if step == 0 and log.exists() and log.stat().st_size:
        warn(f"no checkpoint in {str(folder)!r}: the run starts anew, and so does its log")
    write_text(folder / SETTINGS, json.dumps(run.settings, indent=2))
    cut_logs(folder, step)
