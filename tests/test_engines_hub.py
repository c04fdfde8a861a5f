"""Exported graphs on their ways to the Hub and back, and what a card says of them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import seeded, tiny_discriminator, tiny_generator
from fake_hub import FakeHub
from huggingface_hub import ModelCard

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.cards import is_by_hand
from biggan_hf.engine_files import Index, read_index, write_index
from biggan_hf.exporting import _checksum as checksum
from biggan_hf.exporting import export_model
from biggan_hf.files import checksum_of_weights
from biggan_hf.hub import upload_folder
from biggan_hf.model_card import SHEETS, model_card, on_engines


MODEL = tiny_generator(id2label={0: "cat", 1: "dog"})
MODEL.saved_step = 7  # as if it had been loaded from the folder of `exported`
OF_OPENVINO = {f"openvino/openvino_model{of}.{end}" for of in ("", "_bf16") for end in ("xml", "bin")}
OF_OPENVINO |= {"openvino/export.json", "openvino/class_embeddings.npy"}
OF_ONNX = {"onnx/export.json", "onnx/model.onnx", "onnx/class_embeddings.npy"}
OF_MODEL = {".gitattributes", "README.md", "config.json", "model.safetensors"}
BY_HAND = "---\nlicense: mit\n---\n\n# Pets\n"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    MODEL.save_pretrained(folder, global_step=7)
    for engine, precision in [("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32")]:
        export_model(MODEL, folder, engine, precision)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def without_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


def change(index_of: Path, of_entry: Callable[[dict[str, Any]], object]) -> None:
    index: Index = read_index(index_of)
    for entry in index.values():
        of_entry(entry)
    write_index(index_of, index)


def save_other_weights(folder: Path) -> None:
    other = tiny_generator(id2label={0: "cat", 1: "dog"})
    for weight in other.parameters():
        torch.nn.init.ones_(weight)
    other.save_pretrained(folder)


def card_of(hub: FakeHub, repo_id: str = "user/x") -> str:
    return hub.files(repo_id)["README.md"].decode()


def images_of(pipe: BigGANPipeline) -> torch.Tensor:
    return pipe(["cat", {"cat": 0.5, "dog": 0.5}], output_type="pt", generator=seeded(0)).images


# To the Hub


def test_what_is_published_are_the_files_that_an_index_names(folder: Path, fake_hub: FakeHub) -> None:
    for name in ("onnx/model_int8.onnx", "openvino/model_int8.bin", "openvino/notes.txt", "onnx/a/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    upload_folder(folder, "user/x")
    assert fake_hub.files("user/x").keys() == OF_MODEL | OF_OPENVINO | OF_ONNX
    tiny_discriminator().push_to_hub("user/x")
    upload_folder(folder, "user/x", also=["openvino/*.txt"])
    added = {"openvino/notes.txt", "discriminator/config.json", "discriminator/model.safetensors"}
    assert fake_hub.files("user/x").keys() == OF_MODEL | OF_OPENVINO | OF_ONNX | added


def test_graphs_of_other_weights_are_not_published(
    folder: Path, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    upload_folder(folder, "user/x")
    save_other_weights(folder)
    upload_folder(folder, "user/x")
    assert "openvino' in bf16, fp32 is not uploaded: it was exported from other weights" in caplog.text
    assert fake_hub.files("user/x").keys() == OF_MODEL
    assert "## Engines" not in card_of(fake_hub)


def test_graphs_of_the_same_weights_stay_on_the_hub(folder: Path, fake_hub: FakeHub) -> None:
    # A load and a save keep the step of the training, of which the graphs know.
    pipe = BigGANPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder)
    BigGANPipeline.from_pretrained(folder, engine="onnx")
    upload_folder(folder, "user/x")
    pipe.model.push_to_hub("user/x")
    assert fake_hub.files("user/x").keys() == OF_MODEL | OF_OPENVINO | OF_ONNX | {*SHEETS}
    assert "| openvino | bf16 |" in card_of(fake_hub) and "| onnx | fp32 |" in card_of(fake_hub)
    save_other_weights(folder)
    upload_folder(folder, "user/x", revision="next")
    assert fake_hub.files("user/x", "next").keys() == OF_MODEL | {*SHEETS}
    assert OF_OPENVINO < fake_hub.files("user/x").keys()


def test_an_index_that_is_wrong_stops_the_upload(folder: Path, fake_hub: FakeHub) -> None:
    (folder / "openvino" / "openvino_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="export.json' names 'openvino/openvino_model.bin', which is not"):
        upload_folder(folder, "user/x")
    (folder / "openvino" / "export.json").write_text("[]")
    with pytest.raises(ValueError, match="is no index of exported graphs"):
        upload_folder(folder, "user/x")
    shutil.rmtree(folder / "openvino")
    shutil.copytree(folder / "onnx", folder / "openvino")
    change(folder / "openvino", lambda entry: entry.update(weights="other"))
    with pytest.raises(ValueError, match="were exported from different weights"):
        upload_folder(without_weights(folder), "user/x")
    assert not fake_hub.repos


def test_graphs_alone_go_to_a_repository_with_their_weights(folder: Path, fake_hub: FakeHub) -> None:
    MODEL.push_to_hub("user/x", max_shard_size="20KB")
    with pytest.raises(ValueError, match="'user/x' holds other weights than those of the graphs"):
        upload_folder(without_weights(folder), "user/x", revision="next")
    assert fake_hub.repos["models", "user/x"].branches.keys() == {"main"}
    MODEL.push_to_hub("user/x")
    fake_hub.downloads.clear()
    upload_folder(folder, "user/x", revision="next")
    assert OF_OPENVINO < fake_hub.files("user/x", "next").keys()
    card = fake_hub.files("user/x", "next")["README.md"].decode()
    assert "base_model" not in card and "BigGANModel.from_pretrained" in card


def test_a_damaged_index_on_the_hub_is_replaced(folder: Path, fake_hub: FakeHub) -> None:
    upload_folder(folder, "user/x")
    repo = fake_hub.repos["models", "user/x"]
    repo.commit("main", {**fake_hub.files("user/x"), "onnx/export.json": b"{", "openvino/export.json": b"{"})
    shutil.rmtree(folder / "onnx")
    upload_folder(folder, "user/x")
    assert "onnx/export.json" not in fake_hub.files("user/x")
    assert json.loads(fake_hub.files("user/x")["openvino/export.json"]).keys() == {"fp32", "bf16"}


# The card and the files


def test_others_may_read_what_is_exported(exported: Path) -> None:
    # safetensors 0.8.0 itself writes for the owner alone: findings/safetensors_saves_for_the_owner_alone.sh
    os.umask(umask := os.umask(0))
    modes = [path.stat().st_mode & 0o777 for path in exported.rglob("*") if path.is_file()]
    assert modes == [0o666 & ~umask] * 11


def test_the_card_tells_of_the_engines(folder: Path, fake_hub: FakeHub) -> None:
    int8: dict[str, Any] = {"extractor": "Lite0@112", "images": 512, "frechet_distance": {"float": 1.25, "int8": 1.5}}
    int8 |= {"kernel_distance": {"float": 0.001, "int8": 0.002}}
    section = on_engines({"openvino": {"int8": {**int8, "bytes": 5_000_000}}}, "user/x")
    measures = "FD-Lite0@112 1.5 (the model in float32: 1.25); KD-Lite0@112 0.002 (the model in float32: 0.001)"
    assert f"| openvino | int8 | 5.0 MB | {measures}; of 512 images each |" in section
    told = {"source": "user/other", "bytes": 12_345_678, "largest_difference": 2e-6}
    change(folder / "openvino", lambda entry: entry.update(told))
    upload_folder(folder, "user/x")
    card = card_of(fake_hub)
    section = card.partition("## Engines")[2].partition("## Intended use and limits")[0]
    assert "| openvino | bf16 | 12.3 MB | images differ from the model's by at most 2e-06 in [-1, 1] |" in section
    assert "| onnx | fp32 | " in section
    assert not is_by_hand(card) and "base_model" not in card
    upload_folder(folder, "user/x")
    assert card_of(fake_hub) == card


def test_the_lines_on_the_card_load_the_engines(folder: Path) -> None:
    engines = {"openvino": read_index(folder / "openvino")}
    config = MODEL.config
    cards = [model_card(config, repo_id=str(folder), engines=engines, has_weights=has) for has in (True, False)]
    for card in (*cards, "```python\n" + cards[0].partition("## Engines")[2].partition("```python\n")[2]):
        names: dict[str, Any] = {}
        exec(card.split("```python\n")[1].split("```")[0], names)
        assert len(names["images"]) == 4 if "images" in names else names["pipe"].model.precision == "bf16"
    assert "BigGANModel" not in cards[1]
    lines = ["pip install .\n", 'pip install ".[openvino]"\n', "pip install torch\n"]
    assert [[card.count(line) for line in lines] for card in cards] == [[1, 1, 1], [0, 2, 1]]


def test_a_card_by_hand_gets_a_part_on_engines(folder: Path, fake_hub: FakeHub) -> None:
    fake_hub.create("models", "user/x")
    fake_hub.repos["models", "user/x"].commit("main", {"README.md": BY_HAND.encode()})
    upload_folder(folder, "user/x")
    first = card_of(fake_hub)
    assert first.startswith("---\nlicense: mit\n") and "# Pets\n\n<!-- biggan_hf: engines;" in first
    assert first.count("## Engines") == 1 and "library_name" in first
    change(folder / "openvino", lambda entry: entry.update(largest_difference=7e-7))
    upload_folder(folder, "user/x")
    assert "7e-07" in card_of(fake_hub) and card_of(fake_hub).count("\n") == first.count("\n")
    save_other_weights(folder)
    upload_folder(folder, "user/x")
    assert card_of(fake_hub).partition("# Pets")[2].strip() == ""
    # A card by hand in the folder gets it on its way.
    (folder / "README.md").write_text(BY_HAND)
    MODEL.save_pretrained(folder, global_step=MODEL.saved_step)
    upload_folder(folder, "user/y")
    assert card_of(fake_hub, "user/y").count("## Engines") == 1
    assert (folder / "README.md").read_text() == BY_HAND


# A pipeline with an engine


def test_save_of_a_pipeline_with_an_engine(folder: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    pipe = BigGANPipeline.from_pretrained(folder, engine="openvino", precision="bf16")
    pipe.save_pretrained(tmp_path / "new")
    BigGANPipeline.from_pretrained(folder, engine="openvino").save_pretrained(tmp_path / "new")
    BigGANPipeline.from_pretrained(folder, engine="onnx").save_pretrained(
        tmp_path / "new", push_to_hub=True, repo_id="user/x"
    )
    names = {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert names == OF_OPENVINO | OF_ONNX | {"config.json"}
    again = BigGANPipeline.from_pretrained(tmp_path / "new", engine="openvino", precision="bf16")
    assert torch.equal(images_of(again), images_of(pipe))
    assert OF_ONNX < fake_hub.files("user/x").keys() and not OF_OPENVINO & fake_hub.files("user/x").keys()
    # Beside the weights: the configuration there stays.
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "mine": 1}))
    pipe.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["mine"] == 1
    save_other_weights(tmp_path / "other")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "other").rglob("*")}
    with pytest.raises(ValueError, match="other' holds other weights than those of EngineModel"):
        pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(TypeError, match="variant"):
        pipe.save_pretrained(tmp_path / "other", variant="x")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "other").rglob("*")} == before


def test_push_of_a_pipeline_with_an_engine(folder: Path, fake_hub: FakeHub) -> None:
    pipe = BigGANPipeline.from_pretrained(folder, engine="onnx")
    pipe.push_to_hub("user/x", revision="next", private=True, token="hf_other")
    assert fake_hub.tokens == {"hf_other"} and fake_hub.repos["models", "user/x"].private
    alone = OF_ONNX | {".gitattributes", "README.md", "config.json", *SHEETS}
    assert fake_hub.files("user/x", "next").keys() == alone
    card = fake_hub.files("user/x", "next")["README.md"].decode()
    assert "base_model" not in card and 'engine="onnx", precision="fp32"' in card  # of a folder
    BigGANPipeline.from_pretrained(folder, engine="openvino").push_to_hub("user/x", revision="next")
    files = fake_hub.files("user/x", "next")
    assert files.keys() == alone | {name for name in OF_OPENVINO if "bf16" not in name}
    assert json.loads(files["openvino/export.json"]).keys() == {"fp32"}
    with pytest.raises(TypeError, match="push_to_hub"):
        pipe.push_to_hub("user/x", wrong=1)


# From the Hub


def test_a_load_downloads_the_graph_alone(
    folder: Path, fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_folder(folder, "user/x", revision="next")
    fake_hub.tokens.clear()
    load: Callable[[], BigGANPipeline] = lambda: BigGANPipeline.from_pretrained(  # noqa: E731
        "user/x", engine="openvino", precision="bf16", revision="next", token="hf_other", cache_dir=tmp_path / "cache"
    )
    pipe = load()
    of_bf16 = {name for name in OF_OPENVINO if "openvino_model." not in name}
    assert sorted(fake_hub.downloads) == sorted({"config.json", *of_bf16})
    assert not any("model.safetensors" in asked for asked in fake_hub.asked if "/resolve/next/" in asked)
    fake_hub.downloads.clear()
    local = BigGANPipeline.from_pretrained(folder, engine="openvino", precision="bf16")
    assert torch.equal(images_of(pipe), images_of(local))
    fake_hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(images_of(load()), images_of(local))
    assert not fake_hub.asked and not fake_hub.downloads
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    files = {"deep/" + name: content for name, content in fake_hub.files("user/x", "next").items()}
    fake_hub.create("models", "user/y")
    fake_hub.repos["models", "user/y"].commit("main", files)
    with pytest.raises(OSError, match="in the cached files"):
        BigGANPipeline.from_pretrained("user/y", engine="onnx", subfolder="deep", local_files_only=True)
    pipe = BigGANPipeline.from_pretrained("user/y", engine="onnx", subfolder="deep")
    assert {*fake_hub.downloads} == {f"deep/{name}" for name in {"config.json", *OF_ONNX}}
    fake_hub.asked.clear()
    pipe = BigGANPipeline.from_pretrained("user/y", engine="onnx", subfolder="deep", local_files_only=True)
    assert not fake_hub.asked and len(images_of(pipe)) == 2


def test_a_graph_that_an_index_names_is_missing(folder: Path, fake_hub: FakeHub) -> None:
    upload_folder(folder, "user/x")
    files = {name: content for name, content in fake_hub.files("user/x").items() if not name.endswith(".bin")}
    fake_hub.repos["models", "user/x"].commit("main", files)
    with pytest.raises(FileNotFoundError, match="openvino_model.bin' is missing, which export.json names"):
        BigGANPipeline.from_pretrained("user/x", engine="openvino")


def test_a_repository_without_graphs_is_exported_once(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("biggan_hf.engines.HF_HOME", tmp_path)
    MODEL.push_to_hub("user/x")
    pipe = BigGANPipeline.from_pretrained("user/x", engine="openvino")
    assert caplog.text.count("exports 'user/x' for openvino in fp32, once") == 1
    torch.testing.assert_close(images_of(pipe), images_of(BigGANPipeline(MODEL)), rtol=0, atol=1e-5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fake_hub.asked.clear()
    again = BigGANPipeline.from_pretrained("user/x", engine="openvino")
    assert torch.equal(images_of(again), images_of(pipe)) and not fake_hub.asked
    assert caplog.text.count("once") == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # It goes to its model, and to a repository of its own, which says where it comes from.
    pipe.push_to_hub("user/x")
    assert "base_model" not in ModelCard(card_of(fake_hub)).data.to_dict()
    pipe.push_to_hub("user/y")
    told = ModelCard(card_of(fake_hub, "user/y")).data.to_dict()
    assert told["base_model"] == "user/x" and told["base_model_relation"] == "quantized"
    assert str(tmp_path) not in fake_hub.files("user/y")["openvino/export.json"].decode()
    MODEL.push_to_hub("user/y")
    assert "base_model" not in card_of(fake_hub, "user/y") and "## Engines" in card_of(fake_hub, "user/y")


@pytest.mark.parametrize("step", [None, 7])
def test_a_graph_in_a_folder_of_its_own_names_the_weights_as_they_are_saved(step: int | None, tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path, global_step=step)
    assert checksum(BigGANModel.from_pretrained(tmp_path)) == checksum_of_weights(tmp_path)
