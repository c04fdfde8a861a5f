"""Models that go to the Hub while a run goes on, and what a token must not get into."""

import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from common import tiny_generator
from fake_hub import FakeHub
from training_runs import Capture, Patch, arguments, error_line

from biggan_hf import BigGANDiscriminator, BigGANModel, BigGANPipeline
from biggan_hf.cli import main as cli
from biggan_hf.training import loop, main
from biggan_hf.training.uploads import THREAD


EVERY = ["--hub_model_id", "user/cats", "--push_to_hub_every"]


def on_the_way(hub: FakeHub, revision: str = "training") -> dict[str, bytes]:
    return hub.files("user/cats", revision)


def test_models_go_to_a_branch_while_the_run_goes_on(
    pictures: Path, tmp_path: Path, fake_hub: FakeHub, capsys: Capture
) -> None:
    main(arguments(pictures, tmp_path / "model", *EVERY, "2", steps=2))
    assert on_the_way(fake_hub, "main").keys() == {".gitattributes"}
    networks = {
        f"{folder}{name}" for folder in ("", "discriminator/") for name in ("config.json", "model.safetensors")
    }
    assert on_the_way(fake_hub).keys() == {".gitattributes", "README.md", "samples.png", *networks}
    assert fake_hub.repos["models", "user/cats"].messages == ["Step 2"]
    assert re.search(r"step 2 on the Hub: http://\S+/commit/\w+\n", capsys.readouterr().out)
    card = on_the_way(fake_hub)["README.md"].decode()
    assert "| steps | 2 |" in card and card.count("'user/cats', revision='training'") == 2
    assert str(tmp_path) not in card and "push_to_hub_every" not in card
    assert BigGANModel.from_pretrained("user/cats", revision="training").saved_step == 2
    assert BigGANDiscriminator.from_pretrained("user/cats", revision="training").saved_step == 2
    # A run that goes on goes on uploading, and its end goes to the main branch.
    main(arguments(pictures, tmp_path / "model", "--resume_from_checkpoint", "latest", "--push_to_hub", steps=4))
    assert fake_hub.repos["models", "user/cats"].messages[1:] in (
        ["Step 4", "Upload BigGAN"],
        ["Upload BigGAN", "Step 4"],
    )
    assert BigGANModel.from_pretrained("user/cats").saved_step == 4
    assert b"revision=" not in on_the_way(fake_hub, "main")["README.md"]
    assert not list(tmp_path.rglob(".unfinished-*"))


def test_a_hub_that_refuses_is_told_once_and_stops_no_run(
    pictures: Path, tmp_path: Path, fake_hub: FakeHub, capsys: Capture
) -> None:
    fake_hub.refuses.add("commit")
    main(arguments(pictures, tmp_path / "model", *EVERY, "1", "--sample_steps", "0", steps=6))
    told = [line for line in capsys.readouterr().err.splitlines() if "on the Hub" in line]
    assert len(told) == 1 and "403" in told[0] and "the run goes on" in told[0]
    assert BigGANModel.from_pretrained(tmp_path / "model").saved_step == 6
    assert not list(tmp_path.rglob(".unfinished-*"))


def test_a_slow_hub_is_not_waited_for(
    pictures: Path, tmp_path: Path, fake_hub: FakeHub, monkeypatch: Patch, capsys: Capture
) -> None:
    fake_hub.accepts.clear()
    monkeypatch.setattr(loop, "PATIENCE", 0.1)
    main(arguments(pictures, tmp_path / "model", *EVERY, "1", steps=6))
    assert BigGANModel.from_pretrained(tmp_path / "model").saved_step == 6
    assert "takes longer than 0.1 s, and is given up" in capsys.readouterr().err
    assert [line for line in fake_hub.asked if "/commit/" in line] == ["POST /api/models/user/cats/commit/training"]
    fake_hub.accepts.set()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()
    assert fake_hub.repos["models", "user/cats"].messages == ["Step 1"]


def test_uploads_need_a_repository(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    line = error_line(arguments(pictures, tmp_path / "model", "--push_to_hub_every", "1"), capsys)
    assert "push_to_hub_every needs hub_model_id" in line
    for repo_id in ("user/cats\n# Mine", "a/b/c", "user/<b>"):
        line = error_line(arguments(pictures, tmp_path / "model", "--hub_model_id", repo_id), capsys)
        assert "Repo id must" in line
    assert not (tmp_path / "model").exists()


# A token

TOKEN, OTHER = "hf_NoOneMayReadThisTokenAtAll", "hf_NorMayAnyoneReadThisOther"


def test_a_token_is_in_no_log_card_configuration_or_error(
    pictures: Path,
    tmp_path: Path,
    fake_hub: FakeHub,
    monkeypatch: Patch,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    output, model = tmp_path / "model", str(tmp_path / "model")
    main(arguments(pictures, output, *EVERY, "1", "--push_to_hub"))
    cli(["push", model, "user/dogs", "--token", OTHER])
    BigGANPipeline(tiny_generator()).push_to_hub("user/birds", token=OTHER)
    assert {TOKEN, OTHER} <= fake_hub.tokens  # they were used
    fake_hub.refuses |= {"commit", "branch"}
    main(arguments(pictures, tmp_path / "again", *EVERY, "1"))
    failing = [
        ["push", model, "user/dogs", "--token", OTHER],
        ["push", model, "user/dogs"],
        ["push", model, "user/dogs", "--token", f"{OTHER}\nX"],  # which no header can hold
        ["push", model, "user/dogs", "--token", f"{OTHER}é"],
        ["push", model, "user/dogs", "--tokn", OTHER],
    ]
    for argv in failing:
        with pytest.raises(SystemExit):
            cli(argv)
    printed = "".join(capsys.readouterr())
    printed += error_line(["--token", OTHER], capsys)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    commits = [commit for repo in fake_hub.repos.values() for commit in repo.commits.values()]
    said: dict[Any, bytes] = {**files, "out": printed.encode(), "log": caplog.text.encode()}
    said |= {f"{number}/{name}": text for number, commit in enumerate(commits) for name, text in commit.items()}
    assert len(files) > 20 and len(commits) > 5 and b"cannot upload to" in said["out"]
    assert not [name for name, text in said.items() if re.search(b"NoOneMayRead|NorMayAnyone", text)]
