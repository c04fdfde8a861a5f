"""Make images along a path through latents or classes.

Generates images along a path: a sheet with a path a row (.png), or a film (.gif, .mp4).

examples:
  biggan-hf interpolate user/biggan --classes tiger goldfish --rows 4 --output tigers-and-goldfish.png
  biggan-hf interpolate user/biggan --over both --classes tiger goldfish daisy --loop --output loop.gif
"""

import argparse

import torch
from torch import Tensor

from ..exploring import interpolate
from ..images import image_grid
from ..latents import sample_latents
from ..media import FILMS, check_frames_per_second, import_av
from ..pipeline_biggan import BigGANPipeline
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser, engines=True)
    group = parser.add_argument_group("the path")
    group.add_argument(
        "--over",
        choices=["latents", "classes", "both"],
        default="latents",
        help="what changes along a path; if the latents, each row keeps its class (default: %(default)s)",
    )
    common.add_classes_argument(group, "the first ones")
    common.add_number(group, "--points", None, "points of a path (default: 3; over classes, one for each class)")
    common.add_number(group, "--steps", 8, "from point to point")
    common.add_number(group, "--rows", 1, "paths, each of its own latents")
    group.add_argument("--spherical", action="store_true", help="along great circles, not straight lines")
    group.add_argument("--loop", action="store_true", help="lead back to the first point")
    common.add_drawing_arguments(group)
    group = common.add_output_arguments(parser, "FILE", "a .png sheet, or a .gif or .mp4 film")
    common.add_scale_argument(group)
    common.add_number(group, "--fps", 16, "frames a second of a film")


def run(args: argparse.Namespace) -> None:
    check_frames_per_second(args.fps)
    suffix = args.output.suffix.lower()
    if suffix == ".mp4":
        import_av()
    pipe = common.checked_pipeline(args, ".png", *FILMS)
    classes, points = _points(pipe, args)
    paths = _paths(pipe, classes, points, args)  # (rows, frames, C, H, W)
    if suffix == ".png":
        rows, titles = _labels(common.class_names(pipe, classes), points, args)
        common.save_sheet(pipe, args, paths.flatten(0, 1), paths.shape[1], rows, column_labels=titles)
    else:
        columns = round(len(paths) ** 0.5)
        gap = 2 if len(paths) > 1 else 0
        frames = [image_grid(frame, columns, padding=gap, scale=args.scale) for frame in paths.unbind(1)]
        FILMS[suffix](frames, args.output, args.fps)
    print(args.output)


def _paths(pipe: BigGANPipeline, classes: list[common.Class] | None, points: int, args: argparse.Namespace) -> Tensor:
    embeddings = None if classes is None else pipe.embed_classes(classes)
    config, generator = pipe.model.config, torch.Generator().manual_seed(args.seed)
    num_latents = 1 if args.over == "classes" else points
    options = {"spherical": args.spherical, "closed": args.loop, "truncation": args.truncation, "progress_bar": True}
    rows = []
    for row in range(args.rows):
        latents = sample_latents(
            num_latents, config.z_dim, args.truncation, config.truncation_mode, generator, pipe.device
        )
        along = embeddings
        if embeddings is not None and args.over == "latents":
            along = embeddings[row % len(embeddings)][None]
        rows.append(interpolate(pipe, latents, along, args.steps, **options))
    return torch.stack(rows)


def _points(pipe: BigGANPipeline, args: argparse.Namespace) -> tuple[list[common.Class] | None, int]:
    """The classes, and the number of points of a path."""
    points = args.points or 3
    if not pipe.id2label:
        if args.classes or args.over != "latents":
            raise ValueError("this model is unconditional: a path leads over latents, without --classes")
        return None, points
    over_latents = args.over == "latents"
    classes = common.classes_to_sample(pipe, args.classes, default=args.rows if over_latents else points) or []
    if over_latents and len(classes) > args.rows:
        raise ValueError(f"--rows {args.rows} and {len(classes)} classes: over latents, a row has one class")
    if not over_latents and args.points not in (None, len(classes)):
        raise ValueError(f"--points {args.points} and {len(classes)} classes: over classes, these are the points")
    return classes, points if over_latents else len(classes)


def _labels(names: list[str], points: int, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """
    Labels of the rows: the class, or the number of the path. Labels of the columns: the point, or how far the image
    is on the way to the next point.
    """
    over_latents = args.over == "latents"
    at_points = [f"z {point + 1}" for point in range(points)] if over_latents else names
    between = [f"{step}/{args.steps}" for step in range(1, args.steps)]
    titles = [title for point in at_points for title in [point, *between]]
    rows = [names[row % len(names)] if over_latents and names else str(row + 1) for row in range(args.rows)]
    return rows, titles if args.loop else titles[: len(titles) - len(between)]
