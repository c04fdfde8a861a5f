"""The card of a run: what a person wrote stays, here and on the Hub, and nothing of the machine is published."""

import getpass
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from training_runs import Capture, arguments

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.cards import EVALUATION, is_by_hand, metadata, names_path, part_of, settings_table, without_part
from biggan_hf.evaluation import Measure, Report, add_to_card
from biggan_hf.training import main
from biggan_hf.training.report import seconds_trained
from biggan_hf.training.settings import public_settings


PUSH = ["--push_to_hub", "--hub_model_id", "user/cats"]
AGAIN = ["--resume_from_checkpoint", "latest"]
BY_HAND = """\
---
license: cc-by-4.0  # of the pictures
tags: [cats, art]
model-index:
- name: cats
  results: []
---

# My cats

Drawn by my daughter.

## Training

On a Sunday.
"""


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_bytes().decode()


def card_on(hub: FakeHub) -> str:
    return hub.files("user/cats")["README.md"].decode()


def keeps(card: str, text: str = BY_HAND) -> bool:
    """Whether the card has all lines of a text, in their order, and one part of the run."""
    lines = iter(card.splitlines())
    return all(line in lines for line in text.splitlines()) and card.count("| loss | hinge |") == 1


def put(hub: FakeHub, text: str) -> None:
    hub.create("models", "user/cats")
    hub.repos["models", "user/cats"].commit("main", {**hub.files("user/cats"), "README.md": text.encode()})


def test_a_new_card_is_written_anew_by_every_run(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    first = card_of(output)
    main(arguments(pictures, output, *AGAIN, steps=3))
    second = card_of(output)
    assert "| steps | 2 |" in first and "| steps | 3 |" in second and "| steps | 2 |" not in second
    assert without_part(first) == without_part(second) and second.count("## Training") == 1
    assert second.index("## Training") < second.index("## Intended use and limits")
    assert "library_name: biggan_hf" in second
    told = r"Trained on 10 pictures of 2 classes \(the local folder 'pictures\d*'\): 3 steps, 12 pictures shown"
    assert re.search(rf"\n{told} to the discriminator, in \d+\.\d seconds, on CPU\. A step is one", second)


def test_the_time_of_a_run_is_that_of_the_steps_that_count(tmp_path: Path) -> None:
    assert seconds_trained(tmp_path) == 0
    starts = [datetime(2026, 11, 28, 9, 0, 0), datetime(2026, 11, 28, 10, 30, 0)]
    text = "".join(f"{start.isoformat(' ')}, step {7 * i}\nweights     new\n\n" for i, start in enumerate(starts))
    (tmp_path / "report.txt").write_text(text)
    at = [(starts[0], 60.0), (starts[0], 600.0), (starts[1], 30.5)]  # it stood still from 9:10 to 10:30
    losses = {"discriminator_loss": 1.0, "generator_loss": 1.0}
    lines = [{"step": i, "time": start.timestamp() + seconds, **losses} for i, (start, seconds) in enumerate(at)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds_trained(tmp_path) == pytest.approx(630.5)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_resumed_run_keeps_a_card_by_hand(pictures: Path, tmp_path: Path, ends: str) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    by_hand = BY_HAND.replace("\n", ends).encode()
    (output / "README.md").write_bytes(by_hand)
    for steps in (3, 4):
        main(arguments(pictures, output, *AGAIN, steps=steps))
        card = (output / "README.md").read_bytes()
        body = by_hand.split(f"{ends}---{ends}".encode())[1]
        assert body.rstrip() in card and keeps(card.decode()) and f"| steps | {steps} |".encode() in card
    assert b"library_name: biggan_hf" in card and card.count(b"\ntags:") == 1


PROTOCOL = {"reference": {"source": "user/data", "split": "train"}, "samples": {"number": 10}}
MEASURED = Report([Measure("fid", "FID", 12.5), Measure("score", "score", float("nan"))], PROTOCOL)


def test_text_around_the_part_of_the_run_and_evaluated_numbers_stay(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    path = output / "README.md"
    path.write_text(card_of(output).replace("# BigGAN\n", "# Cats\n\nMine.\n").replace("\n## Citation", "\n## Thanks"))
    add_to_card(MEASURED, path, "cats")
    before = card_of(output)
    main(arguments(pictures, output, *AGAIN, steps=3))
    assert without_part(card_of(output)) == without_part(before) and "| steps | 3 |" in card_of(output)
    assert "# Cats\n\nMine." in before and "12.5" in before and "model-index" in before


def test_evaluated_numbers_stay_in_a_card_that_nobody_has_written(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    add_to_card(MEASURED, output / "README.md", "cats")
    (index,), section = metadata(card_of(output))["model-index"], part_of(card_of(output), EVALUATION)
    main(arguments(pictures, output, *AGAIN, steps=3))
    assert not is_by_hand(card_of(output)) and "| steps | 3 |" in card_of(output)
    assert metadata(card_of(output))["model-index"] == [index] and part_of(card_of(output), EVALUATION) == section
    (metric,) = index["results"][0]["metrics"]  # and not the one that is no number
    assert metric["value"] == 12.5


def test_a_card_that_is_no_text_stays_and_is_told(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    (output / "README.md").write_bytes(b"caf\xe9")
    main(arguments(pictures, output, *AGAIN, steps=3))
    assert (output / "README.md").read_bytes() == b"caf\xe9"
    assert "README.md' stays as it is: it is no text in UTF-8" in capsys.readouterr().err


def test_a_card_by_hand_tells_of_code_that_comes_later(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    (output / "README.md").write_text(BY_HAND)
    for steps in (3, 4):
        main(arguments(pictures, output, *AGAIN, "--include_code", "--hub_model_id", "user/cats", steps=steps))
        assert keeps(card_of(output)) and card_of(output).count("AutoModel.from_pretrained('user/cats',") == 1


def test_all_weights_of_a_run_say_their_step(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, *PUSH))
    main(arguments(pictures, output, *AGAIN, steps=3))
    folders: dict[str | Path, int] = {"user/cats": 3, output: 3, output / "checkpoint-2": 2}
    folders[output / "checkpoint-2" / "generator"] = 2
    assert {folder: BigGANModel.from_pretrained(folder).saved_step for folder in folders} == folders
    assert BigGANDiscriminator.from_pretrained(output).saved_step == 3


# The Hub


def test_a_card_on_the_hub_stays_and_comes_into_the_folder(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    put(fake_hub, BY_HAND)
    main(arguments(pictures, tmp_path / "model", *PUSH))
    assert keeps(card_on(fake_hub)) and card_on(fake_hub) == card_of(tmp_path / "model")
    # It changes on the Hub, and the run goes on: the folder follows.
    changed = card_on(fake_hub).replace("Drawn by my daughter.", "Drawn by my son.")
    (tmp_path / "model" / "README.md").unlink()
    put(fake_hub, changed)
    main(arguments(pictures, tmp_path / "model", *AGAIN, steps=3))
    assert "Drawn by my son." in card_of(tmp_path / "model") and "| steps | 3 |" in card_on(fake_hub)


def test_a_card_by_hand_in_the_folder_goes_to_the_hub(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, *PUSH))
    assert "# cats" in card_on(fake_hub)
    (output / "README.md").write_text(BY_HAND)
    main(arguments(pictures, output, *AGAIN, steps=3))
    assert keeps(card_on(fake_hub)) and card_on(fake_hub) == card_of(output)


def test_a_card_of_a_push_elsewhere_is_written_anew(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, *PUSH))
    main(arguments(pictures, output, *AGAIN, "--hub_model_id", "user/felines", steps=3))
    card = fake_hub.files("user/felines")["README.md"].decode()
    assert card == card_of(output) and "user/felines" in card and "user/cats" not in card


def test_two_cards_by_hand_keep_their_own_text(
    pictures: Path, tmp_path: Path, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    (output / "README.md").write_text(BY_HAND)
    put(fake_hub, "# On the Hub\n\nThanks to all.\n")
    main(arguments(pictures, output, *PUSH, *AGAIN, steps=3))
    assert keeps(card_of(output)) and "Thanks to all." not in card_of(output)
    assert keeps(card_on(fake_hub), "# On the Hub\n\nThanks to all.") and "daughter" not in card_on(fake_hub)
    assert "differs from that of 'user/cats': each keeps its own text" in caplog.text


def test_nothing_of_the_machine_is_published(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard, which the extra dev installs")
    base, output = tmp_path / "base", tmp_path / "model"
    main(arguments(pictures, base))
    main(arguments(pictures, output, "--init_from", str(base), "--report_to", "tensorboard", *PUSH))
    (output / ".env").write_text("HF_TOKEN=secret")
    (output / "LICENSE").write_text("mine")
    main(arguments(pictures, output, *AGAIN, steps=3))
    published = fake_hub.files("user/cats")
    files = {"README.md", "LICENSE", "samples.png", "truncation.png", "config.json", "model.safetensors"}
    assert published.keys() - {".gitattributes"} == {
        *files,
        "discriminator/config.json",
        "discriminator/model.safetensors",
    }
    private = {str(tmp_path), str(pictures), str(Path.home()), f"/{getpass.getuser()}/"}
    for name, content in published.items():
        assert not [word for word in private if word.encode() in content], name
    card = published["README.md"].decode()
    assert (
        "| init_from | the local folder 'base' |" in card and "| loss | hinge |" in card and "output_dir" not in card
    )
    assert json.loads((output / "training_settings.json").read_text())["dataset_name"] == str(pictures)
    assert BigGANModel.from_pretrained("user/cats").config.num_labels == 2


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("dataset_name", "s3://user:key@bucket/cats", "s3://bucket/cats"),
        ("dataset_name", "https://user:tok@host/cats.zip?key=1", "https://host/cats.zip"),
        ("dataset_name", "https://host/users/@cats", "https://host/users/@cats"),
        ("dataset_name", "file:///home/bob/cats", "the local folder 'cats'"),
        ("dataset_config_name", "/home/bob/cats", "the local folder 'cats'"),
        ("revision", "src", "src"),  # a folder here has this name
        ("config_overrides", ["id2label=/home/bob/names.json"], ["it names a local path"]),
        ("loss", "hinge", "hinge"),
    ],
)
def test_settings_are_shown_without_paths_and_passwords(name: str, value: Any, shown: Any) -> None:
    assert public_settings({name: value, "output_dir": "/home/bob/model"}) == {name: shown}


@pytest.mark.parametrize(
    "text", ["see /home/bob", "~/notes", "(~bob/x)", "C:\\Users", '"/data/x"', "file:/x", "a=/mnt"]
)
def test_a_path_is_found_in_a_text(text: str) -> None:
    assert names_path(text)


@pytest.mark.parametrize(
    "text", ["https://host/a/b", "user/cats", "and/or 1 / 2", "4 /s", "<b>x</b>", "128x128, ~3 h"]
)
def test_no_path_is_found_in_a_text(text: str) -> None:
    assert not names_path(text)


def test_a_table_has_a_line_for_each_setting() -> None:
    assert settings_table({"note": "a|b\nc"}).splitlines()[2:] == ["| note | a&#124;b c |"]
