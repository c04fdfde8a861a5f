"""How a run is made ready. Whatever can be wrong is found here, before anything is written."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from torch import nn

from ..cards import is_text
from ..configuration_biggan import BigGANConfig
from ..data import LabelledImages, PreparedImages, load_labelled_images
from ..data.prepared import find_prepared
from ..devices import bfloat16_unit
from ..files import read_text, remove_unfinished, write_text
from ..hub import create_repo
from ..presets import preset_row
from ..processes import from_main
from .arguments import AUTO, Arguments, DataArguments, ModelArguments, TrainingArguments, resumed_arguments
from .batches import BatchSource, counter_generator, to_pixel_values
from .checkpoints import (
    BASE,
    SETTINGS,
    check_same_architecture,
    find_checkpoint,
    load_training_state,
    read_config,
    set_aside,
    warn,
)
from .choosing import choose_preset
from .compile_cache import CompileCache
from .fitting import fit_batch
from .graphs import CudaRecorder, Graphs, why_not
from .logs import LOG, cut_logs, read_lines
from .players import build_players
from .quality import Quality, set_best_aside
from .report import REPORT, describe, write_report
from .run import Run
from .settings import absolute, read_settings, run_folder, settings_of, warn_of_other_settings
from .stability import SigmaClamp, Spectra
from .steps import Pictures, Players


def set_up(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """
    Everything before the first step. When it raises an error, nothing has been written yet. A run that goes on and
    names no data set takes the fields that are at their defaults from the run before.
    """
    saved = read_settings(run_folder(args.output_dir, args.resume_from_checkpoint or "latest"))
    if args.resume_from_checkpoint and (not data_args.dataset_name or (saved and model_args.preset == AUTO)):
        model_args, data_args, args = resumed_arguments(model_args, data_args, args)
    if args.lora_rank and model_args.init_from is None:
        raise ValueError(f"lora_rank={args.lora_rank} needs init_from: adapters change a model that is there")
    # The processes, the pictures, the configuration
    resumed = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    state = None if resumed is None else load_training_state(resumed)
    check_same_rank(state, args)
    args = with_precision(args)
    accelerator = build_accelerator(args)
    arguments, images, config, chosen = open_pictures((model_args, data_args, args), accelerator, saved, resumed)
    model_args, data_args, args = arguments
    if model_args.init_from is not None and not args.lora_rank:
        config = with_tables_of(config, resumed)
    compile_cache = None if args.compile_cache is None else CompileCache(args.compile_cache, accelerator.device)
    args = fit_batch(args, accelerator, config, resumed, model_args.init_from, model_args.revision, saved)
    accumulation_steps = args.accumulation_steps(accelerator.num_processes)

    # The checkpoint, and the settings of its run
    settings = settings_of((model_args, data_args, args), accelerator.num_processes)
    check_same_seed(args)
    if resumed is not None and state is not None:
        changes: dict[str, str] = {}
        for network in (BASE, f"{BASE}/discriminator") if args.lora_rank else ("", "generator", "discriminator"):
            changes |= check_same_architecture(resumed / network, config)
        if changes:
            warn(f"the networks go on with {', '.join(changes.values())}")
        check_same_pictures(resumed, state, images)
        warn_of_other_settings(saved, settings)

    # The networks, and what measures them
    quality = build_quality(images, args, accelerator)
    set_seed(args.seed)
    players, ema = build_players(accelerator, config, args, resumed, model_args.init_from, model_args.revision)
    batches = build_batches(images, data_args, args, config, accelerator)
    spectra = {name: Spectra(network) for name, network in players.networks.items()}
    watched = watched_pictures(images, data_args, args, config, accelerator.device)
    clamps = args.sigma_clamp is not None or args.sigma_clamp_ratio is not None
    clamp = SigmaClamp(players.bare_generator, args.sigma_clamp, args.sigma_clamp_ratio) if clamps else None
    parts = (players, ema, batches, accumulation_steps, spectra, watched, clamp, quality)
    graphs = build_graphs(args, accelerator, [*players.networks.values(), ema])
    run = Run(args, accelerator, config, *parts, settings, graphs=graphs, compile_cache=compile_cache)
    if resumed is not None and state is not None:
        check_same_weights(resumed, state, players)
        with told_as(f"the training_state.pt of {str(resumed)!r} is of another run"):
            run.restore(state)

    if run.is_main:
        run.report = describe(run, data_args, resumed, chosen)
    check_enough_pictures(run)
    if not args.dry_run:
        open_all(run)
    return run


# What a run is built from

FIRST = 32, 3  # size and channels at which pictures are opened before a preset is chosen


def with_precision(args: TrainingArguments) -> TrainingArguments:
    """In the place of 'auto' what it means on the first process's device. A run that goes on keeps it."""
    if args.mixed_precision != "auto":
        return args
    precision: Any = from_main("bf16" if bfloat16_unit(PartialState().device) else "no")
    return dataclasses.replace(args, mixed_precision=precision)


def with_tables_of(config: BigGANConfig, checkpoint: Path | None) -> BigGANConfig:
    """
    Without the standing statistics of the model to fine-tune, which hold for the weights that it had; a run that goes
    on keeps what its checkpoint has.
    """
    tables = BigGANConfig() if checkpoint is None else read_config(checkpoint / "generator")
    config.standing_truncations = tables.standing_truncations
    config.standing_interpolation = tables.standing_interpolation
    return config


def build_accelerator(args: TrainingArguments) -> Accelerator:
    available = [tracker.value for tracker in get_available_trackers()]
    for name in args.report_to:
        if name not in available:
            raise ValueError(f"report_to names {name!r}, but the trackers installed here are {available or 'none'}")
    if args.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # tensorboard starts last: it writes to the folder, and the others may fail.
        log_with=sorted(args.report_to, key="tensorboard".__eq__) or None,
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) > accelerator.num_processes:
        # They would all take themselves for the first one and write into one folder.
        raise ValueError(
            f"the launcher started {started} processes (WORLD_SIZE), but accelerate counts "
            f"{accelerator.num_processes}: on a machine without GPUs set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def open_pictures(
    arguments: Arguments, accelerator: Accelerator, saved: dict[str, Any], resumed: Path | None
) -> tuple[Arguments, LabelledImages, BigGANConfig, str]:
    """The arguments, with a preset that is chosen here, the pictures, the networks for them, and why that preset."""
    model_args, data_args, args = arguments
    if resumed is not None and model_args.init_from is not None:  # the checkpoint has its architecture
        networks = dataclasses.replace(model_args, init_from=str(resumed / BASE if args.lora_rank else resumed))
    else:
        networks = model_args
    is_auto, why = is_chosen(model_args, data_args, resumed), ""
    shape = FIRST if is_auto else shape_of(networks.config([]))
    with accelerator.main_process_first(), told_where_pictures_were(saved, data_args.dataset_name):
        images = load_images(data_args, shape)
    if is_auto:
        arguments, why = choose_preset(arguments, images, accelerator.device)
        networks = arguments[0]
        images = images.at(*shape_of(networks.config([])))
    return arguments, images, networks.config(images.class_names), why


def shape_of(config: BigGANConfig) -> tuple[int, int]:
    return config.image_size, config.num_channels


def load_images(data_args: DataArguments, shape: tuple[int, int], split: str | None = None) -> LabelledImages:
    return load_labelled_images(
        data_args.dataset_name,
        image_size=shape[0],
        num_channels=shape[1],
        dataset_config_name=data_args.dataset_config_name,
        split=split or data_args.dataset_split,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        on_unreadable_image=data_args.on_unreadable_image,
        streaming=data_args.streaming,
        reduced_jpeg=data_args.reduced_jpeg,
    )


def build_batches(
    images: LabelledImages,
    data_args: DataArguments,
    args: TrainingArguments,
    config: BigGANConfig,
    accelerator: Accelerator,
) -> BatchSource:
    samplings = {"class_sampling": "as_it_is", "label_sampling": "uniform"}
    for name, usual in samplings.items():
        if (asked := getattr(data_args, name)) != usual and not config.num_labels:
            raise ValueError(f"{name}={asked!r} needs labels, and there are none")
    if data_args.class_sampling == "balanced" and images.runs is not None:
        raise ValueError("class_sampling='balanced' takes pictures from anywhere, and a stream can't: choose one")
    if data_args.random_crop and isinstance(images, PreparedImages):
        raise ValueError("random_crop needs whole pictures, and prepared ones are squares: name their source")
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
        random_crop=data_args.random_crop,
        **{name: getattr(data_args, name) for name in samplings},
        num_workers=data_args.dataloader_num_workers,
    )


def build_graphs(args: TrainingArguments, accelerator: Accelerator, networks: Iterable[nn.Module]) -> Graphs:
    reason = why_not(args, accelerator)
    if args.cuda_graphs == "on" and reason is not None:
        raise ValueError(f"cuda_graphs=on is not possible: {reason}")
    if args.cuda_graphs == "off" or reason is not None:
        return Graphs()
    written = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return Graphs(CudaRecorder(), written, required=args.cuda_graphs == "on")


def watched_pictures(
    images: LabelledImages, data_args: DataArguments, args: TrainingArguments, config: BigGANConfig, device: Any
) -> dict[str, Pictures]:
    """Where there is a held-out split, pictures of it, and as many of the training pictures."""
    if data_args.held_out_split is None:
        return {}
    held_out = load_images(data_args, shape_of(config), data_args.held_out_split)
    if config.num_labels:
        try:
            held_out = held_out.with_classes(images.class_names)
        except ValueError as error:
            raise ValueError(f"held_out_split {data_args.held_out_split!r}: {error}") from error
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

    extractor = load_extractor(args.evaluation_extractor, accelerator.device, image_size=images.image_size)
    cache = Path(args.output_dir) / "evaluation"
    if images.reduced_jpeg:  # which is not exact enough to measure
        images = dataclasses.replace(images, reduced_jpeg=False, cache=None, cached_rows=set())
    metrics, few = tuple(args.evaluation_distance.split("+")), args.evaluation_allow_few_images
    return Quality(images, extractor, metrics, args.evaluation_images, few, cache)


# Checks


def is_chosen(model_args: ModelArguments, data_args: DataArguments, resumed: Path | None) -> bool:
    """Whether the preset is to be chosen; raises `ValueError` where networks or sizes are there already."""
    if model_args.preset != AUTO:
        return False
    way = "name a preset, such as small-64"
    if (model := model_args.init_from) is not None or resumed is not None:
        raise ValueError(f"preset=auto chooses new networks, and {str(resumed or model)!r} has some: {way}")
    if find_prepared(data_args.dataset_name) is not None:
        raise ValueError(f"preset=auto chooses a size, and {data_args.dataset_name!r} is prepared for its own: {way}")
    return True


def check_enough_pictures(run: Run) -> None:
    """Where there are too few for one update, prints what was found and left out, and raises `ValueError`."""
    number, args = run.batches.images.num_readable, run.args
    batch = run.accumulation_steps * args.per_device_batch_size * run.accelerator.num_processes
    if number >= batch:
        return
    name, options = "per_device_batch_size", "--per_device_batch_size"
    if args.global_batch_size is not None:
        name, options = "global_batch_size", "--global_batch_size"
        options += ", and --per_device_batch_size, which divides it" if args.per_device_batch_size > 1 else ""
    value, preset = getattr(args, name), run.settings["preset"]
    of_preset = f" as in preset {preset}" if preset_row(preset).training.get(name) == value else ""
    if run.report is not None:
        print(run.report.screen(), flush=True)
    if number < (processes := run.accelerator.num_processes):
        options = f"the number of processes, {processes}, of which each takes a picture or more"
    raise ValueError(
        f"the data set has {number:,} pictures, fewer than one update takes, {batch:,} ({name}={value}{of_preset}); "
        f"lower {options}"
    )


def check_same_seed(args: TrainingArguments) -> None:
    if (seed := read_settings(Path(args.output_dir)).get("seed", args.seed)) != args.seed:
        raise ValueError(
            f"the run in {args.output_dir!r} has seed={seed!r}, this one seed={args.seed!r}: the order of the "
            "pictures and the latents follow from it, so that it can't change"
        )


def check_same_rank(state: dict[str, Any] | None, args: TrainingArguments) -> None:
    if state is not None and (rank := state.get("lora_rank", 0)) != args.lora_rank:
        raise ValueError(
            f"the run that goes on has lora_rank={rank!r}, this one lora_rank={args.lora_rank}: it can't change"
        )


def check_same_pictures(checkpoint: Path, state: dict[str, Any], images: LabelledImages) -> None:
    """The data set may have another name, but no other pictures. A converted checkpoint knows none."""
    there = f"the checkpoint {str(checkpoint)!r} is of a run on"
    if state["num_pictures"] not in (None, len(images)):
        raise ValueError(f"{there} {state['num_pictures']} pictures, this data set has {len(images)}")
    if state.get("pictures", images.fingerprint) != images.fingerprint:
        raise ValueError(f"{there} other pictures, labels or class names than this data set's")


def check_same_weights(checkpoint: Path, state: dict[str, Any], players: Players) -> None:
    """Raises `ValueError` where the run of the checkpoint froze other weights."""
    for name, optimizer in players.optimizers.items():
        saved = state[f"{name}_optimizer"]
        indices = [index for group in saved["param_groups"] for index in group["params"]]
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if len(indices) != len(learning):
            raise ValueError(
                f"the run of the checkpoint {str(checkpoint)!r} trained {len(indices)} tensors of the {name}, this "
                f"one would train {len(learning)}: freeze_discriminator_stages and train_only must stay as they were"
            )
        for index, parameter in zip(indices, learning, strict=True):
            if saved["state"].get(index, {}).get("exp_avg", parameter).shape != parameter.shape:
                raise ValueError(f"the training_state.pt of {str(checkpoint)!r} has moments of another {name}")


@contextmanager
def told_where_pictures_were(saved: dict[str, Any], name: str) -> Iterator[None]:
    """An error about the pictures of a run that goes on says what to do where they have moved."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        if not saved or absolute(saved.get("dataset_name")) != absolute(name):
            raise
        raise ValueError(
            f"{error}; the run that goes on was trained on {name!r}: if its pictures have moved, say with "
            f"--dataset_name where they are"
        ) from error


# What others see


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """The clients of the Hub and of trackers raise what they like, as without a key or a network."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


def open_all(run: Run) -> None:
    """
    Opens the repository on the Hub, the trackers and the folder: the run writes from here on. In a resumed run's
    folder, moves aside what came after the step where it goes on.
    """
    if run.is_main and (run.args.push_to_hub or run.args.push_to_hub_every):
        # Now: if that fails, the run fails before it trains.
        with told_as(f"can't create the repository {run.args.hub_model_id!r}"):
            create_repo(run.args.hub_model_id or "")
    with told_as(f"a tracker of report_to ({', '.join(run.args.report_to)}) can't start"):
        run.accelerator.init_trackers("biggan_hf")
    if not run.is_main:
        return
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
    if not is_text(read_text(folder / REPORT)):
        warn(f"{str(folder / REPORT)!r} is no text in UTF-8; it begins anew")
        (folder / REPORT).unlink()
    write_report(run)
    cut_logs(folder, step)
    if (folder / f"checkpoint-{step}").is_dir() and 0 < run.args.logging_steps <= step and not read_lines(log):
        warn(f"{str(log)!r} has lost the lines of the steps before the checkpoint, {step}")
