"""Directions of the latents: how they are found, the file that keeps them, and where they act."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common import VARIANTS, seeded, tiny_generator
from fake_hub import FakeHub
from PIL import Image
from torch import Tensor

from biggan_hf import BigGANPipeline, sample_latents
from biggan_hf.cli import main
from biggan_hf.directions import FILE, Directions, read_directions, save_directions
from biggan_hf.exploring import direction_grid, find_directions, latent_readers, layer_change, picture_change


def axes(*names: str, z_dim: int = 16) -> Directions:
    """A direction along each of the first entries."""
    return Directions(torch.eye(z_dim)[: len(names)], names, (0.5,) * len(names))


# Finding


@pytest.mark.parametrize("variant", VARIANTS)
def test_sefa_is_the_change_of_what_reads_latents(variant: str) -> None:
    model = tiny_generator(**VARIANTS[variant])
    labels = torch.tensor([1]) if model.config.num_labels else None
    layers = [layer for layer, _ in latent_readers(model)]
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]

    def features(latents: Tensor) -> Tensor:
        outputs.clear()
        model(latents[None], labels)
        return torch.cat([output.flatten() for output in outputs])

    jacobian = torch.autograd.functional.jacobian(features, torch.randn(16, generator=seeded(1))).double()
    assert len(outputs) == len(layers) and [hook.remove() for hook in hooks]
    torch.testing.assert_close(layer_change(model), jacobian.T @ jacobian, rtol=1e-4, atol=1e-5)
    assert all(jacobian.abs().amax(0) > 0)  # every latent is read


class Linear:
    """A generator whose pictures are linear in the latents, beside what their class adds."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.config = SimpleNamespace(z_dim=6, num_labels=3, image_size=32)
        self.weight, self.offsets = torch.randn(6, 1024, generator=seeded(2)), torch.randn(3, 1024) * 9

    def sample(self, labels: Tensor, number: int, *, latents: Tensor) -> Tensor:
        return (latents @ self.weight + self.offsets[labels]).unflatten(1, (1, 32, 32))


def test_ganspace_is_the_change_of_pictures() -> None:
    model = Linear()
    expected = (model.weight @ model.weight.T).double()
    torch.testing.assert_close(picture_change(model, seeded(0)), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("method", ["ganspace", "sefa"])
def test_directions_are_orthogonal_and_the_same_again(method: Any) -> None:
    model = tiny_generator()
    found, again = (find_directions(model, 5, method) for _ in range(2))
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(5), atol=1e-5, rtol=0)
    assert torch.equal(found.vectors, again.vectors)
    largest = found.vectors.gather(1, found.vectors.abs().argmax(1, keepdim=True))
    assert (largest > 0).all() and found.names[4] == "direction 5"
    assert [*found.shares] == sorted(found.shares, reverse=True) and sum(found.shares) < 1
    if method == "ganspace":
        other = find_directions(model, 5, method, seeded(1))
        assert not torch.equal(found.vectors, other.vectors)


def test_wrong_numbers_and_methods() -> None:
    model = tiny_generator()
    with pytest.raises(ValueError, match="this model has 1 to 16 directions, got 17"):
        find_directions(model, 17)
    with pytest.raises(ValueError, match="method must be one of ganspace, sefa, got 'pca'"):
        find_directions(model, 2, "pca")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an engine has none: take ganspace"):
        find_directions(Linear(), 2, "sefa")


# Moving


def test_the_pipeline_moves_what_it_draws() -> None:
    pipe = BigGANPipeline(tiny_generator())
    with pytest.raises(ValueError, match="this model has no directions"):
        pipe(0, directions={"first": 1.0})
    pipe.directions = axes("first", "second")
    drawn = pipe([0, 1], truncation=0.5, generator=seeded(3))
    moved = pipe([0, 1], truncation=0.5, generator=seeded(3), directions={"second": 2.0, "first": -1.0})
    expected = drawn.latents.clone()
    expected[:, 0] -= 1
    expected[:, 1] += 2
    torch.testing.assert_close(moved.latents, expected)
    again = pipe([0, 1], latents=expected, truncation=0.5)
    np.testing.assert_array_equal(np.stack(moved.images), np.stack(again.images))
    with pytest.raises(ValueError, match="there is no direction 'secnd'; did you mean 'second'"):
        pipe(0, directions={"secnd": 1.0})
    with pytest.raises(ValueError, match="the strength of 'first' must be a finite number, got nan"):
        pipe(0, directions={"first": float("nan")})
    wrong: Any
    for wrong in ("first", pipe.directions):
        with pytest.raises(TypeError, match=r"directions must be a strength by name, as in \{'first': 2.0\}, got "):
            pipe(0, directions=wrong)


@pytest.mark.parametrize("num_labels", [3, 0])
def test_a_grid_is_one_draw_along_each_direction(num_labels: int) -> None:
    pipe = BigGANPipeline(tiny_generator(num_labels=num_labels))
    pipe.directions = axes("first", "second")
    classes = [0, 2] if num_labels else None
    options: dict[str, Any] = {"truncation": 0.5, "progress_bar": False}
    grid = direction_grid(pipe, pipe.directions, classes, [-2, 0, 1], seeded(4), **options)
    assert grid.shape == (2, 2 if num_labels else 1, 3, 3, 32, 32)
    latents = sample_latents(1, 16, 0.5, generator=seeded(4))
    kind = [2] if num_labels else None
    one = pipe(kind, latents=latents, directions={"second": 1.0}, output_type="uint8", **options).images[0]
    assert (grid[1, -1, 2].permute(1, 2, 0).int() - torch.from_numpy(one).int()).abs().max() <= 1


# The file


def test_the_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    found = find_directions(tiny_generator(), 3, "sefa")
    save_directions(found.named({3: "Ärmel, lang", 1: "brightness"}), tmp_path)
    again = read_directions(tmp_path / FILE, 16)
    assert again.names == ("Ärmel, lang", "brightness")
    torch.testing.assert_close(again.vectors, found.vectors[[2, 0]], atol=1e-6, rtol=0)
    assert again.shares == (round(found.shares[2], 4), round(found.shares[0], 4))


ROW = {"name": "a", "share": 0.5, "vector": [1.0, *[0.0] * 15]}
BAD: list[tuple[Any, str]] = [
    ([], "expected from 1 to 64 directions"),
    ([{**ROW, "name": str(place)} for place in range(65)], "expected from 1 to 64 directions"),
    ({"a": 1}, "string indices"),
    ([ROW, ROW], "the names of directions must differ"),
    ([{**ROW, "vector": [2.0, *[0.0] * 15]}], "must have the length 1"),
    ([{**ROW, "vector": [float("nan"), *[0.0] * 15]}], "must have the length 1"),
    ([{**ROW, "vector": [1.0]}], "its vectors have 1 entries, and this model has z_dim=16"),
    ([{**ROW, "vector": 1.0}], "holds no directions: "),
    ([{**ROW, "vector": "../x"}], "holds no directions: "),
    ([{**ROW, "share": float("nan")}], "must be numbers from 0 to 1"),
    ([{"name": "a", "share": 0.5}], "'vector'"),
    *(
        ([{**ROW, "name": name}], "a direction's name has 1 to 40 letters")
        for name in ("<b>", "../x", "/etc/passwd", "C:\\x", "a\nb", "", "[a](http://x)", "x" * 41, None, 3, ["a"])
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[str(content)[:50] for content, _ in BAD])
def test_bad_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no directions: ") as refused:
        read_directions(tmp_path / FILE, 16)
    assert message in str(refused.value) and len(str(refused.value).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b" " * (2**20 + 1), b"nope"])
def test_files_that_are_no_json_are_refused(content: bytes, tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes(content)
    pipe = BigGANPipeline.from_pretrained(tmp_path)  # pictures need no directions
    assert len(pipe(0).images) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="holds no directions: "):
            _ = pipe.directions


def test_directions_go_to_the_hub_and_back(fake_hub: FakeHub, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "model"
    tiny_generator().save_pretrained(folder)
    save_directions(axes("brightness", "sleeve length"), folder)
    main(["push", str(folder), "user/biggan"])
    pipe = BigGANPipeline.from_pretrained("user/biggan")
    assert pipe.directions is not None and pipe.directions.names == ("brightness", "sleeve length")
    card = fake_hub.files("user/biggan")["README.md"].decode()
    assert "has directions of the latents: brightness, sleeve length" in card
    assert "directions={'brightness': 2.0}" in card
    pipe.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / FILE).read_bytes() == (folder / FILE).read_bytes()
    (folder / FILE).write_text('[{"name": "/home/me", "share": 0, "vector": [1]}]')
    with pytest.raises(SystemExit):
        main(["push", str(folder), "user/other"])
    assert "a direction's name has 1 to 40 letters" in capsys.readouterr().err
    pipe.push_to_hub("user/copy")
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/saved")
    for repository in ("user/copy", "user/saved"):
        assert fake_hub.files(repository)[FILE] == (tmp_path / "copy" / FILE).read_bytes()
    tiny_generator().push_to_hub("user/without")
    assert BigGANPipeline.from_pretrained("user/without").directions is None


@pytest.mark.parametrize("command", [["stats", "--num_batches", "1"], ["export", "--engine", "onnx"]])
def test_directions_follow_into_another_folder(command: list[str], tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript") if command[0] == "export" else ():
        pytest.importorskip(package, reason=f"needs {package}: the extra `onnx`")
    folder, other = tmp_path / "model", tmp_path / "other"
    tiny_generator().save_pretrained(folder)
    save_directions(axes("brightness"), folder)
    main([command[0], str(folder), *command[1:], "--output", str(other)])
    assert (other / FILE).read_bytes() == (folder / FILE).read_bytes()
    pipe = BigGANPipeline.from_pretrained(other, engine="onnx" if command[0] == "export" else "torch")
    directions = pipe.directions
    assert directions is not None and directions.names == ("brightness",)


def test_statistics_leave_the_names_that_are_there(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    for place, name in ((folder, "brightness"), (other, "my own name")):
        tiny_generator().save_pretrained(place)
        save_directions(axes(name), place)
    with pytest.raises(SystemExit):
        main(["stats", str(folder), "--num_batches", "1", "--output", str(other), "--overwrite"])
    assert read_directions(other / FILE).names == ("my own name",)
    (other / FILE).unlink()
    main(["stats", str(folder), "--num_batches", "1", "--output", str(other), "--overwrite"])
    assert read_directions(other / FILE).names == ("brightness",)


def test_directions_follow_an_export_in_python(tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package}: the extra `onnx`")
    pipe = BigGANPipeline(tiny_generator())
    pipe.directions = axes("brightness")
    exported = pipe.export(tmp_path, engine="onnx")
    assert exported.directions is pipe.directions
    assert read_directions(tmp_path / FILE).names == ("brightness",)
    pipe.directions = axes("sleeve length")
    pipe.export(tmp_path, engine="onnx", overwrite=True)
    assert read_directions(tmp_path / FILE).names == ("brightness",)


# The command


def test_integers_move_as_far_as_floats() -> None:
    pipe = BigGANPipeline(tiny_generator())
    pipe.directions = axes("brightness")
    moved = [
        pipe(1, latents=latents, directions={"brightness": 1.5}, progress_bar=False).latents
        for latents in (np.zeros((1, 16), dtype=np.int64), torch.zeros(1, 16))
    ]
    assert torch.equal(*moved) and moved[0][0, 0] == 1.5


def test_the_command_makes_a_sheet_and_keeps_what_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sheet = tmp_path / "model", tmp_path / "sheet.png"
    model = tiny_generator()
    model.save_pretrained(folder)
    argv = ["directions", str(folder), "--classes", "1", "2", "--truncation", "0.5", "--output", str(sheet)]
    main([*argv, "--number", "3", "--names", "1=width", "3=sleeve length", "--save"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(sheet) and "width" in out[1] and out[2] == str(folder / FILE)
    found = find_directions(model, 3)
    kept = read_directions(folder / FILE, 16)
    assert kept.names == ("width", "sleeve length")
    torch.testing.assert_close(kept.vectors, found.vectors[[0, 2]], atol=1e-6, rtol=0)
    with Image.open(sheet) as image:
        first = image.size
        assert image.height > 4 * 66 and image.width > 7 * 66
    main([*argv, "--overwrite"])  # shows those beside the model
    with Image.open(sheet) as image:
        assert image.size == first
    main([*argv, "--overwrite", "--number", "5", "--method", "sefa"])
    with Image.open(sheet) as image:
        assert image.height == first[1] + 6 * 66
    with pytest.raises(SystemExit):
        main([*argv, "--overwrite", "--number", "3", "--save"])
    assert "holds names that somebody gave: edit the file, or remove it" in capsys.readouterr().err
    assert read_directions(folder / FILE).names == ("width", "sleeve length")


WRONG = [
    (["--names", "x=width"], "must be a number and a name, as in 1=brightness, got 'x=width'"),
    (["--names", "1=width", "1=height"], "must name each direction once, got 'width' and 'height' for 1"),
    (["--names", "4=width", "--number", "3"], "the directions have the numbers 1 to 3, got 4"),
    (["--names", "1=<b>", "--number", "3"], "a direction's name has 1 to 40 letters"),
    (["--names", "9=width"], "the directions have the numbers 1 to 8, got 9"),
    (["--names", "1=width", "2=width"], "the names of directions must differ, got width, width"),
    (["--classes", "nosuch"], "unknown class name 'nosuch'"),
    (["--classes", "5"], "class label 5 is outside 0 to 4"),
    (["--truncation", "0.2"], "truncation=0.2 is outside the standing statistics, 0.3 to 1.0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_options_cost_one_line_and_no_search(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("biggan_hf.commands.directions.find_directions", None)  # a call would raise another error
    tiny_generator(standing_truncations=[0.3, 1.0]).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["directions", str(tmp_path), *options, "--save", "--output", str(tmp_path / "sheet.png")])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "sheet.png").exists() and not (tmp_path / FILE).exists()


def test_where_directions_may_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = ["--save", "--output", str(tmp_path / "sheet.png")]
    with pytest.raises(SystemExit):
        main(["directions", "user/biggan", *sheet])
    assert "--save writes into the folder of a model, and 'user/biggan' is no folder here" in capsys.readouterr().err
    save_directions(axes("direction 1"), tmp_path)
    with pytest.raises(SystemExit):
        main(["directions", str(tmp_path), *sheet])
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
