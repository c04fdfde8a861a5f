"""The page as a Space of the Hub: a folder with its program, its pinned requirements, its card and this package."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id, yaml_dump
from packaging.requirements import Requirement

from .embedded import PREFIX, located, name_of
from .engine_files import PACKAGES
from .files import staged_folder, write_text
from .hub import forget_paths
from .pipeline_biggan import BigGANPipeline


PYTHON = "3.12"  # ZeroGPU has few versions, of which this package takes this one
SPACES = "spaces==0.51.3"  # which only a Space needs
SECONDS = 20  # of a GPU: who has less left is refused. ZeroGPU's 60 are too many for a film of 48 frames.

PROGRAM = '''\
"""The page of a BigGAN generator. `python app.py` starts it, here and on a Space."""

__program__ = "biggan_hf"  # its threads sleep while they wait

from pathlib import Path

import spaces  # before torch, as ZeroGPU asks

from biggan_hf import BigGANPipeline
from biggan_hf.app import Page, build, serve


# Not compiled: ZeroGPU has no torch.compile.
pipe = BigGANPipeline.from_pretrained({source}{options})
page = Page(pipe{move}, {title!r})

if __name__ == "__main__":
    serve(build(page, spaces.GPU(duration={seconds})), mcp_server=True)
'''

CARD = """\
Pictures of {model}, a [BigGAN](https://arxiv.org/abs/1809.11096) generator: classes and mixtures of classes, walks
between them, truncations. The address of the page holds its settings.

The page is an MCP server, too: its tools `sample`, `walk` and `sweep` say what they take. On ZeroGPU it asks for a GPU
for each picture; on other hardware it uses what there is.

`biggan-hf app {command} --export_space FOLDER` wrote this Space. `biggan_hf/` is the package, under the MIT license in
`LICENSE`. The pictures are not photographs: do not present them as such.
"""


def write_space(
    output: Path, model: str, revision: str | None = None, engine: str | None = None, precision: str | None = None
) -> None:
    """
    Writes a Space. `hf upload user/name FOLDER --repo-type space` puts it on the Hub.

    Args:
        output: A folder that is new or empty.
        model: As for `BigGANPipeline.from_pretrained`. The Space downloads a model of the Hub when it starts; a
            model in a folder of this machine becomes a part of the Space.
        revision: Of a model of the Hub.
        engine, precision: What computes there; by default torch, on a GPU if there is one.

    Raises:
        FileExistsError: The folder holds something.
        FileNotFoundError: No model of this name comes with the package.
        ValueError: The engine "auto", which depends on what is installed; a model that is no folder here and cannot be
            the name of one on the Hub, or that cannot be loaded.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{str(output)!r} exists and is not empty; a Space needs a new folder")
    if engine == "auto":
        raise ValueError("a Space needs the name of its engine, torch, onnx or openvino, got auto")
    own = _is_own(model)
    title = name_of(model)
    options: dict[str, Any] = {"revision": revision, "engine": engine, "precision": precision}
    with staged_folder(output) as staging:
        if own:
            BigGANPipeline.from_pretrained(model, **options).save_pretrained(staging / "model")
            forget_paths(staging)
        shutil.copytree(Path(__file__).parent, staging / "biggan_hf", ignore=shutil.ignore_patterns("__pycache__"))
        write_text(staging / "app.py", _program(own, model, title, options))
        write_text(staging / "requirements.txt", "\n".join(sorted({*requirements(engine, precision)})) + "\n")
        write_text(staging / "README.md", _card(own, model, title))
        write_text(staging / "LICENSE", metadata.distribution("biggan_hf").read_text("licenses/LICENSE") or "")


def _is_own(model: str) -> bool:
    """Whether a model is in a folder of this machine; raises unless it can be there, on the Hub, or in the package."""
    if Path(located(model)).is_dir():
        return not model.startswith(PREFIX)
    with suppress(HFValidationError):
        validate_repo_id(model)
        if "/" in model:
            return False
    raise ValueError(f"{model!r} is no folder here, and no user/name on the Hub")


def _program(own: bool, model: str, title: str, options: dict[str, Any]) -> str:
    source = 'Path(__file__).with_name("model")' if own else repr(model)
    keywords = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
    move = "" if options["engine"] in PACKAGES else '.to("auto")'
    return PROGRAM.format(source=source, options=keywords, move=move, title=title, seconds=SECONDS)


def _card(own: bool, model: str, title: str) -> str:
    on_hub = not own and not model.startswith(PREFIX)
    data = {
        "title": title,
        "emoji": "🖼️",
        "colorFrom": "gray",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "python_version": PYTHON,
        "app_file": "app.py",
        "short_description": "Pictures of a BigGAN generator",
        "tags": ["biggan", "gan", "image-generation", "mcp-server"],
        **({"models": [model]} if on_hub else {}),
    }
    name = f"[{model}](https://huggingface.co/{model})" if on_hub else "the model in `model/`" if own else f"`{model}`"
    return f"---\n{yaml_dump(data)}---\n\n" + CARD.format(model=name, command="FOLDER" if own else model)


def requirements(engine: str | None = None, precision: str | None = None) -> Iterator[str]:
    """What the Space installs: the packages that this package needs, in the versions that are installed here."""
    # In int8 an export is checked by an encoder, where there is no graph yet.
    extras = [engine or "", *(["eval"] if precision == "int8" else [])]
    for line in metadata.requires("biggan_hf") or []:
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield _pinned(requirement.name)
    yield _pinned("gradio", "[mcp]")
    yield SPACES


def _pinned(name: str, extras: str = "") -> str:
    return (
        f"{name}{extras}=={metadata.version(name).partition('+')[0]}"  # without the name of a build, as in 2.13.0+cpu
    )
