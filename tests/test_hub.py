"""The model card, and the ways to the Hub and back, against a Hub in memory."""

from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from huggingface_hub import ModelCard, snapshot_download
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from biggan_hf.configuration_biggan import BigGANConfig
from biggan_hf.files import staged_folder
from biggan_hf.hub import has_card, model_card, upload_folder


class TinyConfig(PreTrainedConfig):
    model_type = "tiny-for-hub-tests"


class TinyModel(PreTrainedModel):
    config: TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.post_init()


def tiny_model(value: float) -> TinyModel:
    """A model whose first weight says which one it is."""
    model = TinyModel(TinyConfig())
    nn.init.constant_(model.first.weight, value)
    return model


def value_of(model: TinyModel) -> float:
    return model.first.weight[0, 0].item()


SHARDED = "20KB"


# The card


def test_card_metadata_parses_back() -> None:
    card = model_card(BigGANConfig(), license="mit", tags=["birds"], datasets=["user/birds"])
    assert ModelCard(card).data.to_dict() == {
        "license": "mit",
        "library_name": "biggan_hf",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["biggan", "gan", "image-generation", "class-conditional-image-generation", "birds"],
        "datasets": ["user/birds"],
    }


def test_card_claims_nothing_it_was_not_told() -> None:
    card = model_card(BigGANConfig.preset("biggan-128", num_labels=0))
    data = ModelCard(card).data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}
    assert data["tags"] == ["biggan", "gan", "image-generation"]
    assert "![" not in card and "## Training" not in card


def test_card_body() -> None:
    training = {"batch_size": 64, "note": "a|b\nc"}
    card = model_card(BigGANConfig.preset("biggan-deep-128"), sample_image="samples.png", training=training)
    assert "![samples](samples.png)" in card
    assert "A BigGAN-deep generator of 128×128 images in 1000 classes" in card
    assert "| z_dim | 128 |" in card
    assert "| batch_size | 64 |" in card
    assert "| note | a\\|b c |" in card
    assert "1809.11096" in card


@pytest.mark.parametrize(
    "labels", [{"num_labels": 0}, {"num_labels": 2}, {"id2label": {0: "tench, Tinca tinca", 1: "hen"}}]
)
def test_usage_example_of_the_card_runs(labels: dict, tmp_path: Path) -> None:
    from biggan_hf import BigGANModel

    config = BigGANConfig.preset("cifar10", generator_base_channels=4, discriminator_base_channels=4, **labels)
    BigGANModel(config).save_pretrained(tmp_path)
    names: dict = {}
    exec(model_card(config, repo_id=str(tmp_path)).split("```python\n")[1].split("```")[0], names)
    assert names["images"].shape == (4, 3, 32, 32)


# To the Hub and back


def test_upload_and_load(fake_hub: FakeHub, tmp_path: Path) -> None:
    tiny_model(1.0).save_pretrained(tmp_path / "new")
    tiny_model(2.0).save_pretrained(tmp_path / "new" / "discriminator")
    commit = upload_folder(tmp_path / "new", "user/x")
    assert commit.oid
    assert value_of(TinyModel.from_pretrained("user/x")) == 1.0
    assert "discriminator/model.safetensors" not in fake_hub.downloads
    assert value_of(TinyModel.from_pretrained("user/x", subfolder="discriminator")) == 2.0
    folder = Path(snapshot_download("user/x"))
    assert value_of(TinyModel.from_pretrained(folder)) == 1.0


@pytest.mark.parametrize(
    ("upload", "load"),
    [({"path_in_repo": "inner"}, {"subfolder": "inner"}), ({"revision": "step-100"}, {"revision": "step-100"})],
)
def test_upload_elsewhere_leaves_what_is_there(
    fake_hub: FakeHub, tmp_path: Path, upload: dict[str, Any], load: dict[str, Any]
) -> None:
    for place, value in (({}, 1.0), (upload, 2.0)):
        tiny_model(value).save_pretrained(tmp_path / "new")
        upload_folder(tmp_path / "new", "user/x", **place)
    assert value_of(TinyModel.from_pretrained("user/x")) == 1.0
    assert value_of(TinyModel.from_pretrained("user/x", **load)) == 2.0


def test_pull_request_leaves_main(fake_hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("new")
    commit = upload_folder(tmp_path, "user/x", create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    assert "README.md" not in fake_hub.files("user/x")
    assert fake_hub.files("user/x", "refs/pr/1")["README.md"] == b"new"


def test_upload_passes_on_who_and_how(fake_hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("new")
    upload_folder(tmp_path, "user/x", token="hf_other", private=True, commit_message="a card")
    assert fake_hub.tokens == {"hf_other"}
    assert fake_hub.repos["models", "user/x"].private
    assert fake_hub.repos["models", "user/x"].messages == ["a card"]
    upload_folder(tmp_path, "user/y")
    assert not fake_hub.repos["models", "user/y"].private


def test_upload_ignores(fake_hub: FakeHub, tmp_path: Path) -> None:
    for name in ["README.md", "checkpoint-5/optimizer.bin", ".unfinished-abc/model.safetensors"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    patterns = ["checkpoint-*"]
    upload_folder(tmp_path, "user/x", ignore_patterns=patterns)
    assert fake_hub.files("user/x").keys() == {".gitattributes", "README.md"}
    assert patterns == ["checkpoint-*"]


def test_sharded_upload_replaces_the_single_file(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.create("models", "user/x")
    for value, size in [(1.0, "1GB"), (2.0, SHARDED)]:
        folder = tmp_path / size
        tiny_model(value).save_pretrained(folder, max_shard_size=size)
        tiny_model(value).save_pretrained(folder / "discriminator", max_shard_size=size)
        upload_folder(folder, "user/x")
    assert not {"model.safetensors", "discriminator/model.safetensors"} & fake_hub.files("user/x").keys()
    assert value_of(TinyModel.from_pretrained("user/x")) == 2.0


def test_upload_of_a_card_keeps_the_weights(fake_hub: FakeHub, tmp_path: Path) -> None:
    tiny_model(1.0).save_pretrained(tmp_path / "model")
    upload_folder(tmp_path / "model", "user/x")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("new")
    upload_folder(tmp_path / "card", "user/x")
    assert value_of(TinyModel.from_pretrained("user/x")) == 1.0


def test_has_card(fake_hub: FakeHub, tmp_path: Path) -> None:
    assert not has_card("user/x")
    fake_hub.create("models", "user/x")
    assert not has_card("user/x")
    (tmp_path / "README.md").write_text("new")
    upload_folder(tmp_path, "user/x", revision="next")
    assert not has_card("user/x")
    assert has_card("user/x", revision="next")


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_upload(fake_hub: FakeHub, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=name):
        upload_folder(tmp_path / name, "user/x")
    assert not fake_hub.repos


def test_no_network_without_the_fake_hub() -> None:
    with pytest.raises(OSError, match="offline"):
        TinyModel.from_pretrained("user/not-in-any-cache")


# Saving over an earlier save


@pytest.mark.parametrize(("before", "after"), [("1GB", SHARDED), (SHARDED, "1GB"), ("1GB", "1GB"), (SHARDED, "30KB")])
def test_staged_folder_replaces_all_weights(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    for value, size in [(1.0, before), (2.0, after)]:
        with staged_folder(tmp_path) as folder:
            tiny_model(value).save_pretrained(folder, max_shard_size=size)
            tiny_model(value).save_pretrained(folder / "discriminator", max_shard_size=size)
    tiny_model(2.0).save_pretrained(tmp_path / "clean", max_shard_size=after)
    expected = {path.name for path in (tmp_path / "clean").iterdir()}
    assert {path.name for path in (tmp_path / "discriminator").iterdir()} == expected
    assert {path.name for path in tmp_path.iterdir()} == expected | {"discriminator", "notes.txt", "clean"}
    assert value_of(TinyModel.from_pretrained(tmp_path)) == 2.0
    assert value_of(TinyModel.from_pretrained(tmp_path, subfolder="discriminator")) == 2.0
