"""Checkpoints of other programs on the Hub: found by their names, downloaded, converted, loaded."""

import re
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from common import tiny_generator
from conversion_common import FIXTURES, ORIGINALS, SHARED, answers, assert_close, assert_equal, convert, weights
from fake_hub import FakeHub
from huggingface_hub import constants

from biggan_hf import BigGANDiscriminator, BigGANModel, BigGANPipeline
from biggan_hf.cards import SOURCE, is_by_hand, part_of
from biggan_hf.cli import main
from biggan_hf.conversion import convert as convert_any


# A row a layout: a folder, and the files in it that the converter reads.
LAYOUTS = {
    "BigGAN-PyTorch": (ORIGINALS / "biggan_shared", {"G_ema.pth", "D.pth", "state_dict.pth"}),
    "pytorch-pretrained-biggan": (ORIGINALS / "pretrained_biggan", {"config.json", "pytorch_model.bin"}),
    "StudioGAN": (
        FIXTURES / "golden" / "studiogan_c10",
        {"model=G_ema-best-weights-step=20.pth", "model=D-best-weights-step=20.pth", "config.yaml"},
    ),
    "TFHub": (
        FIXTURES / "tfhub_module" / "module",
        {"saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"},
    ),
}
# What lies beside a checkpoint and is of no use here.
BESIDE = {"README.md": b"# GANs", "G_optim.pth": b"moments", "samples/step=1.png": b"a picture", "train.py": b"raise"}

NESTED = "gans/run 1"
PLACES = [(layout, "" if layout == "TFHub" else NESTED) for layout in LAYOUTS]
each_layout = pytest.mark.parametrize(("layout", "subfolder"), [("BigGAN-PyTorch", ""), *PLACES])


def publish(hub: FakeHub, folders: dict[str, Path], repo_id: str = "user/x", branch: str = "main") -> None:
    """A repository with these folders, by their paths in it."""
    files = dict(BESIDE)
    for place, folder in folders.items():
        for path in (path for path in folder.rglob("*") if path.is_file()):
            files[f"{place}/{path.relative_to(folder).as_posix()}".lstrip("/")] = path.read_bytes()
    hub.create("models", repo_id)
    hub.repos["models", repo_id].commit(branch, files)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]  # bars of downloads stand before it
    assert line.startswith("biggan-hf: error: ")
    return line


def cached() -> list[Path]:
    """The folders of converted checkpoints in the cache."""
    return [path for path in (Path(constants.HF_HOME) / "biggan_hf" / "converted").glob("*") if path.is_dir()]


# The command


@each_layout
def test_the_command_downloads_what_is_needed(
    layout: str, subfolder: str, fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, needed = LAYOUTS[layout]
    fake_hub.create("models", "user/x")
    publish(fake_hub, {subfolder: folder}, branch="v1")
    argv = ["convert", "user/x", "--output", str(tmp_path / "model"), "--revision", "v1", "--token", "hf_other"]
    main(argv)
    assert {*fake_hub.downloads} == {f"{subfolder}/{name}".lstrip("/") for name in needed}
    assert fake_hub.tokens == {"hf_other"}
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith(f"{'user/x/' if subfolder else 'user/x'}") and output[-1] == str(tmp_path / "model")
    assert_equal(weights(tmp_path / "model"), weights(convert(convert_any, folder, tmp_path / "local")))
    _, commit, _ = fake_hub.resolve("models", "user/x", "v1")
    place = f"user/x/{subfolder}".rstrip("/")
    assert f"- read from {place} on the Hub, commit {commit}\n" in (tmp_path / "model" / "README.md").read_text()
    assert "already holds something; --overwrite" in refused(argv, capsys)


def test_options_choose_the_files(fake_hub: FakeHub, tmp_path: Path) -> None:
    publish(fake_hub, {"": ORIGINALS / "biggan_shared"})
    main(["convert", "user/x", "--output", str(tmp_path / "model"), "--weights", "live"])
    assert {*fake_hub.downloads} == {"G.pth", "D.pth", "state_dict.pth"}
    local = convert(convert_any, ORIGINALS / "biggan_shared", tmp_path / "local", "--weights", "live")
    assert_equal(weights(tmp_path / "model"), weights(local))


def test_a_name_that_is_not_there_is_told_before_a_download(
    fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(fake_hub, {"a": ORIGINALS / "biggan_shared"})
    publish(fake_hub, {"": FIXTURES / "golden" / "studiogan_c10"}, "user/y")
    output = ["--output", str(tmp_path / "model")]
    error = refused(["convert", "user/x", *output, "--suffix", "best0"], capsys)
    assert "'user/x/a' holds no G_ema_best0.pth" not in error  # without it the live weights are meant
    assert "'user/x/a' holds no G_best0.pth" in error and "there are G.pth, G_ema.pth: choose with --suffix" in error
    assert "'user/y' holds no model=G_ema" in refused(["convert", "user/y", *output, "--step", "7"], capsys)
    for argv, told in [
        (["user/nowhere"], "'user/nowhere' is no file or folder here, and cannot be read on the Hub: "),
        (["user/x", "--revision", "v9"], "'user/x' is no file or folder here, and cannot be read on the Hub: "),
        (["nowhere"], "there is no file or folder 'nowhere'"),
        (["user/x/a"], "there is no file or folder 'user/x/a'"),
        (["../x"], "cannot be read on the Hub"),
        ([str(ORIGINALS / "biggan_thin"), "--subfolder", "a"], "--subfolder is for a repository on the Hub"),
    ]:
        assert told in refused(["convert", *argv, *output], capsys)
    assert not fake_hub.downloads and not (tmp_path / "model").exists()


def test_several_checkpoints(fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fake_hub, {"b/deep": ORIGINALS / "biggan_deep", "a": FIXTURES / "golden" / "studiogan_c10"})
    several = "chooses one of: a (a StudioGAN checkpoint), b/deep (a BigGAN-PyTorch checkpoint)"
    output = ["--output", str(tmp_path / "model")]
    assert several in refused(["convert", "user/x", *output], capsys)
    assert f"no checkpoint in 'c'; --subfolder, or in Python subfolder=, {several}" in refused(
        ["convert", "user/x", *output, "--subfolder", "c"], capsys
    )
    with pytest.raises(ValueError, match=re.escape(several)):
        BigGANModel.from_pretrained("user/x")
    assert not fake_hub.downloads
    main(["convert", "user/x", *output, "--subfolder", "b/deep/"])
    assert {*fake_hub.downloads} == {"b/deep/G_ema.pth", "b/deep/D.pth", "b/deep/state_dict.pth"}
    # At the root, a checkpoint comes before those in folders.
    publish(fake_hub, {"": ORIGINALS / "biggan_thin", "a": ORIGINALS / "biggan_deep"}, "user/y")
    assert BigGANModel.from_pretrained("user/y", convert=True).config.architecture == "biggan"
    assert BigGANModel.from_pretrained("user/y", subfolder="a", convert=True).config.architecture == "biggan-deep"


def test_what_holds_no_checkpoint(fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"embeddings": torch.zeros(1)}, tmp_path / "bert" / "pytorch_model.bin")
    (tmp_path / "nothing").mkdir()
    tiny_generator().save_pretrained(tmp_path / "ours")
    for name in ("bert", "nothing", "ours"):
        publish(fake_hub, {"": tmp_path / name}, f"user/{name}")
    output = ["--output", str(tmp_path / "model")]
    assert "config.json' has no 'z_dim'" in refused(["convert", "user/bert", *output], capsys)
    for name in ("nothing", "ours"):
        assert "holds none of the known checkpoints" in refused(["convert", f"user/{name}", *output], capsys)
    assert "pytorch_model.bin" not in fake_hub.downloads
    for converts in (False, True):
        with pytest.raises(ValueError, match="is no BigGAN's: its model_type is 'bert'"):
            BigGANModel.from_pretrained("user/bert", convert=converts)
        with pytest.raises((OSError, ValueError), match="config.json"):
            BigGANModel.from_pretrained("user/nothing", convert=converts)
        BigGANModel.from_pretrained("user/ours", convert=converts)
        with pytest.raises(OSError, match="user/nowhere"):
            BigGANModel.from_pretrained("user/nowhere", convert=converts)


def test_help(fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fake_hub, {"": ORIGINALS / "biggan_thin"})
    for source, of_hub in (("user/x", True), (str(ORIGINALS / "biggan_thin"), False)):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", source, "--help"])
        text = capsys.readouterr().out
        assert not stopped.value.code and "--suffix" in text and ("--subfolder" in text) == of_hub
    for run, argv in ((main, ["convert", "--help"]), (convert_any.main, ["--help"])):
        with pytest.raises(SystemExit):
            run(argv)
        assert "a repository on the Hub" in capsys.readouterr().out


# Loading


@each_layout
def test_a_load_names_the_command_that_converts(
    layout: str, subfolder: str, fake_hub: FakeHub, tmp_path: Path
) -> None:
    folder, needed = LAYOUTS[layout]
    publish(fake_hub, {subfolder: folder})
    for load in (BigGANModel.from_pretrained, BigGANPipeline.from_pretrained, BigGANDiscriminator.from_pretrained):
        with pytest.raises(ValueError, match=r"^'user/x[^`]*' holds a [^`]*: `biggan-hf convert user/x ") as told:
            load("user/x")
    assert {*fake_hub.downloads} <= {f"{subfolder}/config.json".lstrip("/")}
    (command,) = re.findall("`(.*)`", str(told.value))
    argv = [str(tmp_path / "model") if word == "DIR" else word for word in shlex.split(command)]
    main(argv[1:])
    local = convert(convert_any, folder, tmp_path / "local")
    assert_equal(weights(tmp_path / "model"), weights(local))
    with pytest.raises(ValueError, match=re.escape(f"`biggan-hf convert {shlex.quote(str(folder))} --output DIR`")):
        BigGANModel.from_pretrained(folder)


@each_layout
def test_convert_does_so_once(
    layout: str,
    subfolder: str,
    fake_hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, needed = LAYOUTS[layout]
    publish(fake_hub, {subfolder: folder})
    model = BigGANModel.from_pretrained("user/x", convert=True, token="hf_other")
    assert {*fake_hub.downloads} == {f"{subfolder}/{name}".lstrip("/") for name in needed}
    assert fake_hub.tokens == {"hf_other"} and model.hub_id == "user/x"
    expected = BigGANModel.from_pretrained(convert(convert_any, folder, tmp_path / "local"))
    capsys.readouterr()
    assert_equal(model.state_dict(), expected.state_dict())
    fake_hub.downloads.clear()
    again = BigGANPipeline.from_pretrained("user/x", convert=True)
    assert_equal(again.model.state_dict(), expected.state_dict())
    assert not fake_hub.downloads and not capsys.readouterr().out and len(cached()) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fake_hub.asked.clear()
    assert_equal(BigGANModel.from_pretrained("user/x", convert=True).state_dict(), expected.state_dict())
    assert not fake_hub.asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if (tmp_path / "local" / "discriminator").exists():
        theirs = BigGANDiscriminator.from_pretrained(tmp_path / "local").state_dict()
        assert_equal(BigGANDiscriminator.from_pretrained("user/x", convert=True).state_dict(), theirs)
    # Another commit is another entry.
    publish(fake_hub, {subfolder: folder, "more": tmp_path / "local"})
    BigGANModel.from_pretrained("user/x", convert=True)
    assert len(cached()) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} does not exist: no further original checkpoints")
@pytest.mark.parametrize("name", ["biggan_i64_shared_hier", "biggandeep_i64", "studiogan_c10"])
def test_golden_checkpoints_answer_as_their_programs(name: str, fake_hub: FakeHub) -> None:
    publish(fake_hub, {f"runs/{name}": SHARED / name})
    expected = answers(SHARED / name)
    model = BigGANModel.from_pretrained("user/x", convert=True)
    with torch.no_grad():
        assert_close(model(expected["latents"], expected["labels"]).images, expected["images_ema"])


def test_processes_that_convert_at_once(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    publish(fake_hub, {"": ORIGINALS / "biggan_thin"})
    found: list[Any] = []
    load = lambda: found.append(BigGANModel.from_pretrained("user/x", convert=True).state_dict())  # noqa: E731
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and caplog.text.count("converted 'user/x', a BigGAN-PyTorch checkpoint, to ") == 1
    for state in found[1:]:
        assert_equal(found[0], state)


def test_engines_take_what_was_converted(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(fake_hub, {"": ORIGINALS / "biggan_thin"})
    publish(fake_hub, {"": ORIGINALS / "pretrained_biggan"}, "user/y")
    for source in ("user/x", "user/y"):
        with pytest.raises(ValueError, match=f"`biggan-hf convert {source} --output DIR`"):
            BigGANPipeline.from_pretrained(source, engine="onnx")
    seen: list[Any] = []

    def spied(source: str, engine: str, precision: str, **kwargs: Any) -> Any:
        seen.append((source, kwargs))
        raise ValueError("that is all")

    monkeypatch.setattr("biggan_hf.pipeline_biggan.load_engine", spied)
    with pytest.raises(ValueError, match="that is all"):
        BigGANPipeline.from_pretrained("user/x", engine="onnx", convert=True, revision="main")
    assert seen == [(str(folder), {}) for folder in cached()] and len(seen) == 1


# Strangers' files


class Code:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path(self.path),)


@pytest.mark.parametrize("file", ["G_ema.pth", "state_dict.pth", "pytorch_model.bin"])
def test_nothing_is_executed(file: str, fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fake_hub, {"": ORIGINALS / ("pretrained_biggan" if file.endswith("bin") else "biggan_thin")})
    torch.save({"config": Code(tmp_path / "executed")}, tmp_path / file)
    files = {**fake_hub.files("user/x"), file: (tmp_path / file).read_bytes()}
    fake_hub.repos["models", "user/x"].commit("main", files)
    with pytest.raises(ValueError, match=f"{file}' holds the class .*; nothing in it was executed"):
        BigGANModel.from_pretrained("user/x", convert=True)
    with pytest.raises(ValueError, match="`biggan-hf convert user/x"):
        BigGANPipeline.from_pretrained("user/x")
    assert "nothing in it was executed" in refused(["convert", "user/x", "--output", str(tmp_path / "model")], capsys)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "model").exists()
    assert not cached()


def test_names_of_files_stay_in_the_cache(
    fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (ORIGINALS / "biggan_thin" / "G_ema.pth").read_bytes()
    fake_hub.create("models", "user/x")
    fake_hub.repos["models", "user/x"].commit("main", {"../../../../../../G_ema.pth": content})
    before = {path for path in tmp_path.parent.rglob("*") if path.name == "G_ema.pth"}
    refused(["convert", "user/x", "--output", str(tmp_path / "model")], capsys)
    with pytest.raises((OSError, ValueError)):
        BigGANModel.from_pretrained("user/x", convert=True)
    assert {path for path in tmp_path.parent.rglob("*") if path.name == "G_ema.pth"} == before
    assert not (tmp_path / "model").exists()


def test_names_of_folders_break_no_card(fake_hub: FakeHub, tmp_path: Path) -> None:
    odd = "<!-- biggan_hf: end of source --> `<img src=x onerror=y>` [free](x)"
    publish(fake_hub, {odd: ORIGINALS / "biggan_thin"})
    main(["convert", "user/x", "--output", str(tmp_path / "model")])
    card = (tmp_path / "model" / "README.md").read_text()
    (told,) = [line for line in part_of(card, SOURCE).splitlines() if "on the Hub" in line]
    assert (
        told.startswith("- read from user/x/&lt;!-- biggan_hf: end of source --> &#96;&lt;img ") and "](" not in told
    )
    assert not is_by_hand(card)
