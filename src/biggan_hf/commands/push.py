"""Upload a model to the Hub.

Uploads the model in a folder, the graphs that were exported from it, and its card, and nothing else: no checkpoints,
no logs, no statistics of pictures. Sheets of samples that the folder lacks are drawn for the card.
A card on the Hub that somebody has written stays. The folder does not change.

examples:
  biggan-hf push my-biggan user/biggan --private --license mit
  biggan-hf push my-biggan user/biggan --include_code --commit_message "Longer training"
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..bars import own_bars_alone
from ..configuration_biggan import BigGANConfig
from ..devices import device_or_best
from ..files import checksum_of_weights
from . import common


if TYPE_CHECKING:
    from ..modeling_biggan import BigGANModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a model")
    parser.add_argument("repo_id", metavar="REPOSITORY", help="user/name; it is created if it does not exist")
    group: common.Group = parser.add_argument_group("the upload")
    group.add_argument("--revision", metavar="NAME", help="branch to commit to (default: the main branch)")
    group.add_argument("--create_pr", action="store_true", help="open a pull request")
    group.add_argument("--private", action="store_true", default=None, help="a repository that is created is private")
    group.add_argument("--token", metavar="TOKEN", help="access token (default: the one stored on this machine)")
    text = "that the card names, of the Hub's list, such as mit (default: as the card says)"
    group.add_argument("--license", metavar="ID", help=text)
    group.add_argument("--commit_message", default="Upload BigGAN", metavar="TEXT", help="default: %(default)s")
    text = "also upload the code, so that AutoModel loads the model without this package"
    group.add_argument("--include_code", action="store_true", help=text)
    text = "also upload the files of these globs, such as 'curves.png' (default: the model and its card)"
    group.add_argument("--also", nargs="+", default=[], metavar="GLOB", help=text)


def run(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():  # a name that is no folder would be looked for on the Hub
        raise FileNotFoundError(f"there is no folder {str(args.folder)!r}")
    config = BigGANConfig.from_pretrained(args.folder)  # an error comes before the repository
    from ..hub import upload_folder  # here: it brings transformers' models, three seconds

    try:
        with own_bars_alone():
            commit = upload_folder(
                args.folder,
                args.repo_id,
                also=args.also,
                sampled=_without_sheets(args.folder, config),
                include_code=args.include_code,
                license=args.license,
                token=args.token,
                private=args.private,
                revision=args.revision,
                create_pr=args.create_pr,
                commit_message=args.commit_message,
            )
    except Exception as error:  # the Hub's client raises a dozen types
        raise ValueError(f"cannot upload to {args.repo_id!r}: {error}") from error
    print(commit.pr_url or commit.commit_url)


def _without_sheets(folder: Path, config: BigGANConfig) -> "BigGANModel | None":
    """The generator of a folder that lacks sheets of its samples; `None` if there is nothing to draw."""
    from ..model_card import SHEETS
    from ..modeling_biggan import BigGANModel

    is_generator = config.architectures != ["BigGANDiscriminator"] and checksum_of_weights(folder) is not None
    if not is_generator or all((folder / name).exists() for name in SHEETS):
        return None
    return BigGANModel.from_pretrained(folder).to(device_or_best(None))
