"""The model card, and the ways to the Hub and back, against a Hub in memory."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from common import tiny_discriminator, tiny_generator
from conversion_common import ORIGINALS
from fake_hub import FakeHub
from huggingface_hub import ModelCard, snapshot_download
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.cli import main
from biggan_hf.configuration_biggan import BigGANConfig
from biggan_hf.files import staged_folder
from biggan_hf.hub import upload_folder
from biggan_hf.images import to_pil
from biggan_hf.model_card import model_card


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
    card = model_card(BigGANConfig.preset("biggan-deep-128"), sheets=["samples.png"])
    assert "![samples](samples.png)" in card and "truncation.png" not in card
    assert "A BigGAN-deep generator of 128×128 images in 1000 classes" in card
    assert "| z_dim | 128 |" in card
    assert "1809.11096" in card


@pytest.mark.parametrize(
    "labels",
    [
        {"num_labels": 0},
        {"num_labels": 2},
        {"id2label": {0: "tench, Tinca tinca", 1: "hen"}},
        {"id2label": {0: "", 1: 7}},
        {"standing_truncations": [1.0, 2.0]},
    ],
)
def test_usage_example_of_the_card_runs(labels: dict, tmp_path: Path) -> None:
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


def test_upload_to_a_branch_leaves_main(fake_hub: FakeHub, tmp_path: Path) -> None:
    for value, revision in ((1.0, None), (2.0, "step-100")):
        tiny_model(value).save_pretrained(tmp_path / "new")
        upload_folder(tmp_path / "new", "user/x", revision=revision)
    assert value_of(TinyModel.from_pretrained("user/x")) == 1.0
    assert value_of(TinyModel.from_pretrained("user/x", revision="step-100")) == 2.0


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


# All that may lie in the folder of a run, by whether it is published.
IN_A_FOLDER = {
    True: """README.md LICENSE samples.png truncation.png .eval_results/user--data-0a1b2c3d.yaml config.json
        model.safetensors model.safetensors.index.json
        model-00001-of-00002.safetensors discriminator/config.json discriminator/model.safetensors
        discriminator/model.safetensors.index.json discriminator/model-00002-of-00002.safetensors""".split(),
    False: """training_settings.json log.jsonl spectra.jsonl evaluations.jsonl collapses.jsonl curves.png
        samples/step-0000100.png checkpoint-5/optimizer.bin checkpoint-5/model.safetensors checkpoint-5/config.json
        abandoned-checkpoint-7/training_state.pt before-collapse-3/model.safetensors collapsed-3/model.safetensors
        best/model.safetensors best/config.json best/best.json abandoned-best/model.safetensors
        evaluation/train-0a1b.safetensors evaluation/moments.npz training_state.pt generator/model.safetensors
        generator/config.json biggan_hf/events.out.tfevents.1 runs/events.out.tfevents.2 wandb/run-1/logs/debug.log
        .unfinished-abc/model.safetensors .replaced-best/model.safetensors .cache/huggingface/x .env token
        discriminator/log.jsonl discriminator/.unfinished-1/model.safetensors optimizer.pt train.py secret.py
        pytorch_model.bin .run.lock""".split(),
}


def test_what_is_published_is_the_model(fake_hub: FakeHub, tmp_path: Path) -> None:
    for name in sum(IN_A_FOLDER.values(), []):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    upload_folder(tmp_path, "user/x")
    assert fake_hub.files("user/x").keys() == {".gitattributes", *IN_A_FOLDER[True]}
    upload_folder(tmp_path, "user/y", also=["curves.png", "samples/*", "*.safetensors"])
    more = fake_hub.files("user/y").keys() - fake_hub.files("user/x").keys()
    assert {"curves.png", "samples/step-0000100.png", "best/model.safetensors"} <= more
    assert not any(part.startswith((".unfinished", ".replaced")) for name in more for part in name.split("/"))
    page = (Path(__file__).parents[1] / "docs" / "publishing.md").read_text(encoding="utf-8")
    listed = page.partition("## What is published")[2].partition("\n## ")[0]
    assert all(
        f"`{name}`" in listed for name in ("README.md", "LICENSE", "samples.png", "truncation.png", "config.json")
    )


def test_no_path_of_this_machine_is_published(
    fake_hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private: dict[str, Any] = {
        "_name_or_path": str(tmp_path),
        "made": [{"by": "~/secret/train.py"}],
        "note": "of cats",
    }
    private["told"] = "see /home/bob/notes"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    words = {"base_model_name_or_path": str(tmp_path), "target_modules": r".*\.conv", "notes": ["of /home/bob"]}
    (adapter / "adapter_config.json").write_text(json.dumps(words))
    (adapter / "README.md").write_text(f"---\nbase_model: {tmp_path}\n---\nAdapters")
    weights = {"x": torch.ones(2)}
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt", "made in": "~/secret"})
    for folder in (tmp_path, tmp_path / "discriminator"):
        tiny_model(1.0).save_pretrained(folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **private}))
    before = (tmp_path / "config.json").read_text()
    upload_folder(tmp_path, "user/x")
    files = fake_hub.files("user/x")
    for name in ("config.json", "discriminator/config.json"):
        assert json.loads(files[name]) == {**settings, "note": "of cats"}
    assert json.loads(files["adapter/adapter_config.json"]) == {"target_modules": r".*\.conv"}
    assert "adapter/README.md" not in files and not [name for name, content in files.items() if b"bob" in content]
    (tmp_path / "sent").write_bytes(files["adapter/adapter_model.safetensors"])
    with safe_open(tmp_path / "sent", "pt") as sent, safe_open(adapter / "adapter_model.safetensors", "pt") as kept:
        assert sent.metadata() == {"format": "pt"} and torch.equal(sent.get_tensor("x"), weights["x"])
        assert kept.metadata() == {"format": "pt", "made in": "~/secret"}
    assert (tmp_path / "config.json").read_text() == before
    told = "not published of config.json, since it names files of this machine: _name_or_path, made, told"
    assert told in caplog.text


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


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_upload(fake_hub: FakeHub, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=name):
        upload_folder(tmp_path / name, "user/x")
    assert not fake_hub.repos


def test_no_network_without_the_fake_hub() -> None:
    with pytest.raises(OSError, match="offline"):
        TinyModel.from_pretrained("user/not-in-any-cache")


def test_a_push_asks_once_for_the_card(fake_hub: FakeHub) -> None:
    tiny_generator().push_to_hub("user/x")
    fake_hub.downloads.clear()
    fake_hub.asked.clear()
    tiny_generator().push_to_hub("user/x")
    assert fake_hub.downloads == ["README.md"]
    assert fake_hub.asked.count("HEAD /user/x/resolve/main/README.md") == 2  # is it there, and which one
    assert fake_hub.asked.count("POST /api/repos/create") == 1


def test_push_of_a_pipeline(fake_hub: FakeHub, tmp_path: Path) -> None:
    pipe = BigGANPipeline(tiny_generator(id2label={0: "cat", 1: "dog"}))
    push: dict[str, Any] = {"private": True, "token": "hf_other", "revision": "next", "commit_message": "cats"}
    pipe.push_to_hub("user/x", **push)
    assert fake_hub.tokens == {"hf_other"} and fake_hub.repos["models", "user/x"].private
    assert fake_hub.repos["models", "user/x"].messages == ["cats"]
    names = {".gitattributes", "README.md", "config.json", "model.safetensors", "samples.png", "truncation.png"}
    assert fake_hub.files("user/x", "next").keys() == names
    assert b"pip install" in fake_hub.files("user/x", "next")["README.md"]
    loaded = BigGANPipeline.from_pretrained("user/x", revision="next")
    expected = pipe("cat", output_type="pt", generator=torch.Generator().manual_seed(0)).images
    again = loaded("cat", output_type="pt", generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(again, expected)
    pipe.save_pretrained(tmp_path / "x", push_to_hub=True, repo_id="user/y")
    assert fake_hub.files("user/y").keys() == names


# Code on the Hub

WITHOUT_THE_PACKAGE = """
import sys
source, folder, *absent = sys.argv[1:]
sys.modules |= dict.fromkeys(absent)  # an import of these fails
import torch
from transformers import AutoModel, pipeline

model = AutoModel.from_pretrained(source, trust_remote_code=True)
disc = AutoModel.from_pretrained(source, subfolder="discriminator", trust_remote_code=True)
assert type(model).__name__ == "BigGANModel" and type(disc).__name__ == "BigGANDiscriminator"
images = model.sample(["dog"], generator=torch.Generator().manual_seed(0))
pipe = pipeline(model=source, trust_remote_code=True)
(picture,) = pipe("dog", generator=torch.Generator().manual_seed(0))
picture.save(folder + "/picture.png")
assert [len(drawn) for drawn in pipe(["cat", 1], truncation=0.5, num_images_per_prompt=3)] == [3, 3]
assert len(pipe(None, truncation=0.5, num_images_per_prompt=4)) == 4  # as the card says
pipe.save_pretrained(folder + "/from-pipeline")
torch.save((images, disc(images, 1).logits.detach()), folder + "/output.pt")
"""


def modules_without(line: str) -> list[str]:
    """The modules that are installed here, and which a line of `pip install` would not bring."""
    waiting, brought = line.split()[2:], set()
    while waiting:
        if (name := canonicalize_name(waiting.pop())) not in brought:
            brought.add(name)
            needed = [Requirement(one) for one in distribution(name).requires or []]
            waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    owners = {module: {canonicalize_name(one) for one in names} for module, names in packages_distributions().items()}
    assert "transformers" in brought
    return ["biggan_hf", *(module for module, names in owners.items() if not names & brought)]


@pytest.mark.parametrize("way", ["push_to_hub", "biggan-hf push", "save_pretrained"])
def test_pushed_code_needs_no_package(way: str, fake_hub: FakeHub, tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "cat", 1: "dog"}}
    model, disc, folder = tiny_generator(**names), tiny_discriminator(**names), tmp_path / "model"
    source = "user/x"
    if way == "push_to_hub":
        model.push_to_hub(source, include_code=True)
        disc.push_to_hub(source, include_code=True)
    else:
        model.save_pretrained(folder, include_code=way == "save_pretrained")
        disc.save_pretrained(folder / "discriminator", include_code=way == "save_pretrained")
        source = str(folder) if way == "save_pretrained" else source
    if way == "biggan-hf push":
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        main(["push", str(folder), source, "--include-code", "--commit-message", "with code"])
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    absent = ["biggan_hf"]
    if way != "save_pretrained":
        card = fake_hub.files(source)["README.md"].decode()
        assert "trust_remote_code=True" in card
        absent = modules_without(re.findall("^pip install .*", card, re.MULTILINE)[-1])
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, source, str(tmp_path), *absent]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    images, logits = torch.load(tmp_path / "output.pt")
    expected = model.sample(["dog"], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(images, expected)
    assert Image.open(tmp_path / "picture.png").tobytes() == to_pil(images)[0].tobytes()
    torch.testing.assert_close(logits, disc(expected, 1).logits, rtol=1e-4, atol=1e-4)
    # Saved again without the code, the configuration does not name it.
    BigGANModel.from_pretrained(source).save_pretrained(tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert all("--" in name for name in settings.get("auto_map", {}).values())


NOT_TRUSTED = """
import sys
sys.modules["biggan_hf"] = None  # an import of it fails
from transformers import AutoModel

try:
    AutoModel.from_pretrained("user/x")
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("the code was loaded")
"""


def test_code_of_a_repository_runs_only_where_it_is_trusted(fake_hub: FakeHub, tmp_path: Path) -> None:
    tiny_generator().push_to_hub("user/x", include_code=True)
    marker = tmp_path / "executed"
    line = f"\n__import__('os').mkdir({str(marker)!r})\n".encode()
    files = {name: code + line * name.endswith(".py") for name, code in fake_hub.files("user/x").items()}
    fake_hub.repos["models", "user/x"].commit("main", files)
    for load in (BigGANModel, BigGANPipeline, AutoModel, AutoConfig):
        load.from_pretrained("user/x")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", NOT_TRUSTED]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert not marker.exists()


def test_push_of_what_is_no_model(fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["push", str(tmp_path), "user/x"])
    assert stopped.value.code == 2 and "there is no config.json" in capsys.readouterr().err
    assert not fake_hub.repos


# What strangers may read, and what they may write

OF_ARGUMENT, OF_ENVIRONMENT = "hf_" + "argument" * 4, "hf_" + "environment" * 3


def test_no_token_is_written(
    fake_hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", OF_ENVIRONMENT)
    monkeypatch.setenv("HF_DEBUG", "1")
    for name in ("", "huggingface_hub", "transformers", "httpx2"):
        caplog.set_level("DEBUG", logger=name)
    tiny_generator().save_pretrained(tmp_path / "ours")
    fake_hub.create("models", "user/theirs")
    theirs = {path.name: path.read_bytes() for path in (ORIGINALS / "biggan_thin").glob("*.pth")}
    fake_hub.repos["models", "user/theirs"].commit("main", theirs)
    told = []
    arguments: list[dict[str, Any]] = [{}, {"token": OF_ARGUMENT}]
    for number, given in enumerate(arguments):
        option, output = ["--token", OF_ARGUMENT] if given else [], str(tmp_path / f"output-{number}")
        main(["push", str(tmp_path / "ours"), f"user/x{number}", "--include_code", *option])
        main(["convert", "user/theirs", "--output", output, *option])
        model = BigGANModel.from_pretrained("user/theirs", convert=True, **given)
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=f"user/y{number}", **given)
        BigGANPipeline.from_pretrained(f"user/x{number}", **given).push_to_hub(f"user/z{number}", **given)
        for load in (BigGANModel, BigGANPipeline, AutoModel):
            for source in ("user/nowhere", "user/not a name"):
                with pytest.raises((OSError, ValueError)) as error:
                    load.from_pretrained(source, **given)
                told.append(error.getrepr(style="short"))
        for argv in (
            ["push", str(tmp_path / "ours"), "user/not a name", *option],
            ["convert", "user/nowhere", "--output", output, *option],
            ["convert", "user/theirs", "--output", output, "--toke", OF_ARGUMENT],
            ["convert", "user/theirs", "--output", output, f"--tokens={OF_ARGUMENT}"],
            ["push", str(tmp_path / "ours"), "user/x", f"--tokens={OF_ARGUMENT}"],
            ["sample", "user/nowhere", "--output", f"{output}.png"],
        ):
            with pytest.raises(SystemExit) as stopped:
                main(argv)
            assert stopped.value.code == 2
    assert fake_hub.tokens >= {OF_ARGUMENT, OF_ENVIRONMENT}
    with pytest.raises(TypeError, match="takes no keyword 'hf_token': did you mean token=?") as wrong:
        model.push_to_hub("user/x", hf_token=OF_ARGUMENT)
    files = [
        content for repo in fake_hub.repos.values() for held in repo.commits.values() for content in held.values()
    ]
    for place in (tmp_path, Path(os.environ["HF_HOME"])):
        files += [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    words = [*map(str, told), str(wrong.value), caplog.text, *capfd.readouterr()]
    assert len(files) > 50 and "'user/nowhere'" in "".join(words)
    for secret in (OF_ARGUMENT, OF_ENVIRONMENT):
        assert not [text for text in words if secret in text]
        assert not [content for content in files if secret.encode() in content]


EVIL = [
    "../../evil",
    "```\n# Evil\n![x](http://evil.example)",
    "---\nlicense: mit\n---",
    "|",
    "'" * 3 + '"',
    "<script>",
]


def test_class_names_break_no_card_and_leave_no_folder(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(["cat", *EVIL]):
        model = tiny_generator(id2label={0: name, 1: "dog"})
        model.push_to_hub(f"user/x{number}")
    cards = [fake_hub.files(f"user/x{number}")["README.md"].decode() for number in range(len(EVIL) + 1)]
    expected = ModelCard(cards[0]).data.to_dict()
    for card in cards:
        assert ModelCard(card).data.to_dict() == expected
        assert [line[:3] for line in card.splitlines()] == [line[:3] for line in cards[0].splitlines()]
        compile(card.split("```python\n")[1].split("\n```")[0], "card", "exec")
    (inside := tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(inside)
    tiny_generator(id2label=dict(enumerate(EVIL))).save_pretrained("model")
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside)}
    main(["sample", "model", "--output", "samples.png", "--images_per_class", "1"])
    main(["push", "model", "user/evil"])
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside)} == before
    assert sorted(path.name for path in inside.iterdir()) == ["model", "samples.png"]


@pytest.mark.parametrize(
    "repo_id", ["../x", "user/../x", "user/x/../../y", "user/x)\n# Evil", "user/`x`", "user/..", "/x"]
)
def test_a_name_of_a_repository_is_checked_first(repo_id: str, fake_hub: FakeHub, tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError):
        tiny_generator().push_to_hub(repo_id)
    with pytest.raises(ValueError):
        upload_folder(tmp_path / "model", repo_id, include_code=True)
    with pytest.raises((OSError, ValueError)):
        BigGANModel.from_pretrained(repo_id, convert=True)
    assert not fake_hub.repos and not fake_hub.downloads


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


@pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator])
def test_a_save_pushes_what_it_saves(build: Any, fake_hub: FakeHub, tmp_path: Path) -> None:
    network = build()
    given = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    name = next(name for name in given if name.endswith(".bias"))
    given[name] += 1
    folder, options = tmp_path / "x", {"state_dict": given, "max_shard_size": SHARDED, "global_step": 7}
    network.save_pretrained(folder, push_to_hub=True, repo_id="user/x", **options)
    inner = "discriminator/" * (build is tiny_discriminator)
    there = {path: content for path, content in fake_hub.files("user/x").items() if "model" in path}
    assert there == {f"{inner}{path.name}": path.read_bytes() for path in folder.glob("model*")} and len(there) > 2
    loaded = type(network).from_pretrained("user/x", subfolder=inner.rstrip("/"))
    assert loaded.saved_step == 7 and torch.equal(loaded.state_dict()[name], given[name])
    if not inner:  # the sheets, too, are of these weights
        loaded.push_to_hub("user/y")
        assert fake_hub.files("user/x")["samples.png"] == fake_hub.files("user/y")["samples.png"]


def test_weights_that_no_push_publishes(fake_hub: FakeHub, tmp_path: Path) -> None:
    model = tiny_generator()
    for name in ("alone", "pickle", "shards", "variant"):
        model.save_pretrained(tmp_path / name, max_shard_size=SHARDED if name == "shards" else "1GB")
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "variant" / "model.safetensors").rename(tmp_path / "variant" / "model.fp16.safetensors")
    for file in ("alone/model.safetensors", "pickle/model.safetensors", "shards/model-00001-of-00005.safetensors"):
        (tmp_path / file).unlink()
    tiny_discriminator().save_pretrained(tmp_path / "variant" / "discriminator")
    (tmp_path / "inner").mkdir()
    (tmp_path / "alone").rename(tmp_path / "inner" / "discriminator")
    for name, told in {
        "inner": "inner/discriminator' holds no model.safetensors, nor its shards with their index, which a push publ",
        "pickle": r"from_pretrained\('.*pickle'\).save_pretrained\(DIR\) writes one from pytorch_model.bin",
        "shards": "names 'model-00001-of-00005.safetensors', which is not there",
        "variant": r"BigGANModel.from_pretrained\('.*', variant='fp16'\).save_pretrained\(DIR\) writes one from mod",
    }.items():
        with pytest.raises(FileNotFoundError, match=told):
            upload_folder(tmp_path / name, "user/x")
    assert not fake_hub.repos
    upload_folder(tmp_path / "pickle", "user/x", also=["*.bin"])  # asked for by name
    assert "pytorch_model.bin" in fake_hub.files("user/x")


def test_a_variant_lies_beside_other_weights(fake_hub: FakeHub, tmp_path: Path) -> None:
    models = [tiny_generator() for _ in range(4)]
    for number, (model, size) in enumerate(zip(models, ("1GB", "1GB", SHARDED, SHARDED), strict=True)):
        nn.init.constant_(model.get_parameter("output_conv.bias"), number)
        variant = "fp16" if number else None
        model.save_pretrained(tmp_path, variant=variant, max_shard_size=size, global_step=number)
    assert not (tmp_path / "model.fp16.safetensors").exists()
    for variant, number in ((None, 0), ("fp16", 3)):
        loaded = BigGANModel.from_pretrained(tmp_path, variant=variant)
        assert loaded.get_parameter("output_conv.bias")[0] == loaded.saved_step == number
    shard = next(tmp_path.glob("model.fp16-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"damg")
    BigGANModel.from_pretrained(tmp_path)  # reads none of it
    with pytest.raises(ValueError, match="model.fp16-00001-of-00005.safetensors' is damaged"):
        BigGANModel.from_pretrained(tmp_path, variant="fp16")
    models[1].save_pretrained(tmp_path / "new", variant="fp16", push_to_hub=True, repo_id="user/x")
    assert BigGANModel.from_pretrained("user/x").get_parameter("output_conv.bias")[0] == 1
