"""How a run is made ready. Whatever can be wrong is found here, before anything is written."""

import dataclasses
import json
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
from .logs import LOG, cut_logs
from .players import build_players
from .quality import Quality, set_best_aside
from .run import Run
from .stability import SigmaClamp, Spectra, Watch
from .steps import Pictures, Players


# What a resumed run may change without a word: where it goes on from, and how long it goes on.
MAY_CHANGE = {"output_dir", "resume_from_checkpoint", "max_train_steps", "max_train_minutes"}


def set_up(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """
    Everything before the first step.

    Raises:
        ValueError, TypeError, OSError, ImportError: Something can't be. Nothing has been written yet.
    """
    # The processes, the pictures, the configuration
    resumed = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    accelerator = build_accelerator(args)
    accumulation_steps = args.accumulation_steps(accelerator.num_processes)
    with accelerator.main_process_first():
        images = load_images(data_args, model_args.config([]))
    config = model_args.config(images.class_names)
    check_enough(images, args, accelerator.num_processes)

    # The checkpoint, and the settings of its run
    state = None if resumed is None else read_state(resumed, config, images)
    settings: dict[str, Any] = {"num_processes": accelerator.num_processes}
    settings |= {k: v for group in (model_args, data_args, args) for k, v in dataclasses.asdict(group).items()}
    check_same_seed(Path(args.output_dir), settings)
    if resumed is not None:
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
    watch = build_watch(players, images, data_args, args, config)
    clamps = args.sigma_clamp is not None or args.sigma_clamp_ratio is not None
    clamp = SigmaClamp(players.bare_generator, args.sigma_clamp, args.sigma_clamp_ratio) if clamps else None
    run = Run(args, accelerator, config, players, ema, batches, accumulation_steps, watch, clamp, quality, settings)
    if resumed is not None and state is not None:
        check_same_weights(resumed, state, players)
        run.restore(state)

    # The Hub, the trackers and the folder
    if run.is_main and args.push_to_hub:
        reserve_repo(args.hub_model_id or "")
    start_trackers(run)
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


def build_watch(
    players: Players, images: LabelledImages, data_args: DataArguments, args: TrainingArguments, config: BigGANConfig
) -> Watch:
    """The stability watch. With a held-out split it gets pictures of it, and as many of the training pictures."""
    pictures = {}
    if data_args.held_out_split is not None:
        held_out = load_images(data_args, config, data_args.held_out_split)
        if config.num_labels:
            check_same_classes(data_args.held_out_split, held_out.class_names, images.class_names)
        number = min(len(held_out), len(images), 4 * args.per_device_batch_size)
        for name, source in (("held_out", held_out), ("training", images)):
            device, labelled = players.accelerator.device, bool(config.num_labels)
            pictures[name] = random_pictures(source, number, args.seed, labelled, device)
    return Watch(Spectra(players.bare_generator), Spectra(players.bare_discriminator), pictures)


def random_pictures(images: LabelledImages, number: int, seed: int, labelled: bool, device: torch.device) -> Pictures:
    """Different pictures from the whole set: the first ones of a folder are all of one class."""
    rows = torch.randperm(len(images), generator=counter_generator(torch.device("cpu"), seed))[:number]
    batch = images.__getitems__(rows.tolist())
    labels = batch["class_labels"] if labelled else None
    pixel_values = to_pixel_values(batch["pixel_values"], device)
    return Pictures(pixel_values, None if labels is None else labels.to(device))


def build_quality(images: LabelledImages, args: TrainingArguments, accelerator: Accelerator) -> Quality | None:
    if not args.evaluation_steps:
        return None
    from ..evaluation import load_extractor  # here, so that a run without evaluations needs none of its packages

    extractor = load_extractor(args.evaluation_extractor, accelerator.device)
    cache = Path(args.output_dir) / "evaluation"
    return Quality(images, extractor, args.evaluation_images, args.evaluation_allow_few_images, cache)


# Checks


def check_enough(images: LabelledImages, args: TrainingArguments, num_processes: int) -> None:
    batch = args.global_batch_size or args.per_device_batch_size * num_processes
    if len(images) < batch:
        raise ValueError(f"the data set has {len(images)} pictures, fewer than one update takes, {batch}")


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


def read_state(checkpoint: Path, config: BigGANConfig, images: LabelledImages) -> dict[str, Any]:
    """The state of a checkpoint whose run had these networks and pictures."""
    check_same_architecture(checkpoint, config)
    state = load_training_state(checkpoint)
    check_same_pictures(checkpoint, state, images)
    return state


def check_same_pictures(checkpoint: Path, state: dict[str, Any], images: LabelledImages) -> None:
    """The data set may have another name, but no other pictures. A converted checkpoint knows none."""
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
    """Raises `ValueError` where the run of the checkpoint froze other weights."""
    for name in ("generator", "discriminator"):
        optimizers = (state[f"{name}_optimizer"], getattr(players, f"{name}_optimizer").state_dict())
        saved, now = (sum(len(group["params"]) for group in optimizer["param_groups"]) for optimizer in optimizers)
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


def check_same_seed(output_dir: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` where the output folder holds a run of another seed."""
    seed = read_settings(output_dir).get("seed", settings["seed"])
    if seed != settings["seed"]:
        raise ValueError(f"the run in {str(output_dir)!r} has seed={seed!r}, this one seed={settings['seed']!r}")


def warn_of_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Names the settings that differ from those of the run in a folder, whose checkpoint this run goes on from."""
    saved, now = read_settings(folder), json.loads(json.dumps(settings))
    others = [name for name in saved if name in now and saved[name] != now[name] and name not in MAY_CHANGE]
    if others:
        changes = ", ".join(f"{name}={now[name]!r} (was {saved[name]!r})" for name in others)
        warn(f"the run goes on with other settings: {changes}")


# What others see: the Hub, the trackers, the folder


def reserve_repo(repo_id: str) -> None:
    """Creates the repository now: if that fails, the run fails before it trains."""
    try:
        create_repo(repo_id)
    except Exception as error:  # the Hub's client and the network raise what they like
        raise ValueError(f"can't create the repository {repo_id!r}: {type(error).__name__}: {error}") from error


def start_trackers(run: Run) -> None:
    try:
        run.accelerator.init_trackers("biggan_hf")
    except Exception as error:  # a tracker's client raises what it likes, as without a key or a network
        trackers, what = ", ".join(run.args.report_to), f"{type(error).__name__}: {error}"
        raise ValueError(f"a tracker of report_to ({trackers}) can't start: {what}") from error


def open_output(run: Run) -> None:
    """Writes the settings. In a resumed run's folder, moves aside what came after the step where it goes on."""
    folder, step = run.output_dir, run.global_step
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    abandoned = set_aside(folder, step, "abandoned-checkpoint")
    for checkpoint in abandoned:
        warn(f"the run goes on from step {step}: a later checkpoint is now {str(checkpoint)!r}")
    best = set_best_aside(folder, step) if abandoned else None
    if best is not None:
        warn(f"the run goes on from step {step}: a later best model is now {str(best)!r}")
    log = folder / LOG
    if step == 0 and log.exists() and log.stat().st_size:
        warn(f"no checkpoint in {str(folder)!r}: the run starts anew, and so does its log")
    write_text(folder / SETTINGS, json.dumps(run.settings, indent=2))
    cut_logs(folder, step)
