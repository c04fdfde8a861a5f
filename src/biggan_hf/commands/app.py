"""Open a page on which one tries a model, or write it as a Space.

Opens a page, which only the browser of this machine reaches: pictures of classes and of mixtures of classes, walks,
truncations, and the pictures of a data set that are nearest. Ctrl-C closes it.

examples:
  biggan-hf app
  biggan-hf app user/biggan --export_space my-space
"""

import argparse
import os
import tempfile
from pathlib import Path

from ..embedded import PREFIX, name_of
from ..engines import check_engine
from . import common


EMBEDDED = f"{PREFIX}fashion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser, f"{common.MODEL} (default: {EMBEDDED})", engines=True, default=EMBEDDED)
    common.add_dataset_arguments(
        parser.add_argument_group("where the page finds the nearest pictures"), required=False
    )
    group = parser.add_argument_group("the Space")
    text = "write the page into this new folder, as a Space for `hf upload`, and open none"
    group.add_argument("--export_space", type=Path, metavar="FOLDER", help=text)


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio reads it when it is imported; the folder goes with the page
        from ..app import Page, build, serve  # here: gradio comes with an extra

        if args.export_space is not None:
            _export(args)
            return
        pipe = common.load_pipeline(args)
        pictures = None if args.dataset_name is None else common.load_pictures(args, pipe.model.config)
        blocks = build(Page(pipe, name_of(args.model), pictures))
        serve(blocks, server_name="127.0.0.1", share=False, quiet=True, prevent_thread_lock=True)
        print(f"The page is at {blocks.local_url} until Ctrl-C.", flush=True)
        blocks.block_thread()


def _export(args: argparse.Namespace) -> None:
    from ..space import write_space

    if args.dataset_name or args.image_column or args.device:
        raise ValueError("--export_space writes a page without a data set, for any device: leave these options out")
    if args.engine != "auto":  # which has no place in a Space, whatever the precision
        check_engine(args.engine or "torch", args.precision or "fp32")
    write_space(args.export_space, args.model, args.revision, args.engine, args.precision)
    print(args.export_space)
