"""The card that a push leaves on the Hub: for each way to push, each card in the folder, and each card on the Hub."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from common import tiny_discriminator, tiny_generator
from fake_hub import FakeHub

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.cards import is_by_hand, with_metadata, with_part, without_part
from biggan_hf.cli import main
from biggan_hf.hub import add_code, model_card
from biggan_hf.training.publishing import publish


MODEL = tiny_generator(id2label={0: "cat", 1: "dog"})
GENERATED = with_part(model_card(MODEL.config, datasets=["user/pets"]), "## Training\n\n| steps | 7 |")
BY_HAND = "---\nlicense: mit\n---\n\n# Pets\n\nfrom_pretrained('path/to/this/folder')\n"
CARDS: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "generated": GENERATED.encode(),
    "edited": GENERATED.replace("# BigGAN", "# Pets").encode(),
    "by hand": BY_HAND.encode(),
    "windows": BY_HAND.replace("\n", "\r\n").encode(),
    "latin": b"---\nlicense: mit\n---\ncaf\xe9\n",
    "of an earlier version": GENERATED.rpartition("<!--")[0].encode(),
}
NOBODYS = {"none", "empty", "generated"}
TRAINED = {"generated", "edited", "of an earlier version"}  # they have the part of a run
WITH_A_FOLDER = {"biggan-hf push", "train.py"}
WAYS = ["model", "pipeline", "save_pretrained", *sorted(WITH_A_FOLDER)]


def on_the_hub(hub: FakeHub, **files: bytes) -> None:
    """Puts files into user/x, by their names without the ending."""
    hub.create("models", "user/x")
    named = {next(name for name in ("README.md", "modeling_biggan.py") if name.startswith(stem)): content
             for stem, content in files.items()}  # fmt: skip
    hub.repos["models", "user/x"].commit("main", {**hub.files("user/x"), **named})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    MODEL.save_pretrained(folder)
    tiny_discriminator(id2label={0: "cat", 1: "dog"}).save_pretrained(folder / "discriminator")
    (folder / "samples.png").write_bytes(b"")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def push(way: str, folder: Path, include_code: bool = False) -> None:
    if way == "biggan-hf push":
        main(["push", str(folder), "user/x", *["--include-code"] * include_code])
    elif way == "train.py":
        args = SimpleNamespace(hub_model_id="user/x", include_code=include_code)
        run: Any = SimpleNamespace(output_dir=folder, args=args)
        publish(run)
    elif way == "save_pretrained":
        MODEL.save_pretrained(folder / "again", push_to_hub=True, repo_id="user/x", include_code=include_code)
    else:
        pusher: Any = MODEL if way == "model" else BigGANPipeline(MODEL)
        pusher.push_to_hub("user/x", include_code=include_code)


@pytest.mark.parametrize(
    ("way", "here", "there"),
    [(way, here, there) for way in WAYS for here in (CARDS if way in WITH_A_FOLDER else ["none"]) for there in CARDS],
)
def test_whose_card_is_published(
    way: str, here: str, there: str, folder: Path, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    of_folder, of_hub = CARDS[here], CARDS[there]
    if of_hub is not None:
        on_the_hub(fake_hub, README=of_hub)
    if of_folder is not None:
        (folder / "README.md").write_bytes(of_folder)
    push(way, folder)
    published = fake_hub.files("user/x")["README.md"]
    text, named = published.decode("latin-1"), (of_folder or b"").replace(b"path/to/this/folder", b"user/x")
    if there == "latin" or (there not in NOBODYS and here not in TRAINED):
        assert published == of_hub
    elif there not in NOBODYS:
        body = (of_hub or b"").decode().rpartition("---")[2]
        assert without_part(text).endswith(without_part(body)) and "| steps | 7 |" in text
    elif here not in NOBODYS | {"latin"}:
        assert published == named
    else:
        assert not is_by_hand(published.decode())
        assert "# x" in text and text.count("'user/x'") == 2 and "path/to" not in text and "](samples.png)" in text
        assert ("| steps | 7 |" in text) == ("- user/pets" in text) == ("generated" in (here, there))
    # The folder keeps a card by hand; only a run brings it another one in the place of a generated one.
    follows = way == "train.py" and here in NOBODYS and there != "latin"
    kept = (folder / "README.md").read_bytes() if (folder / "README.md").exists() else None
    assert kept == (published if follows else of_folder)
    # What does not go up is told.
    both = here not in NOBODYS and there not in NOBODYS and "latin" not in (here, there)
    differ = both and without_part(named.decode()) != without_part((of_hub or b"").decode())
    assert ("each keeps its own text" in caplog.text) == differ
    assert caplog.text.count("it is no text in UTF-8") == [here, there].count("latin")
    if here not in NOBODYS or there not in NOBODYS:
        push(way, folder)
        assert fake_hub.files("user/x")["README.md"] == published  # a second push changes nothing


@pytest.mark.parametrize("way", WAYS)
def test_code_on_the_hub_is_kept_and_renewed(way: str, folder: Path, fake_hub: FakeHub) -> None:
    push(way, folder)
    assert "auto_map" not in json.loads(fake_hub.files("user/x")["config.json"])
    assert b"trust_remote_code" not in fake_hub.files("user/x")["README.md"]
    on_the_hub(fake_hub, modeling=b"old = True\n")
    push(way, folder)
    files = fake_hub.files("user/x")
    assert b"class BigGANModel" in files["modeling_biggan.py"] and b"trust_remote_code" in files["README.md"]
    assert json.loads(files["config.json"])["auto_map"]["AutoModel"] == "modeling_biggan.BigGANModel"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("here", "there"), [(GENERATED, ""), (BY_HAND, ""), (GENERATED, BY_HAND), (BY_HAND, BY_HAND)])
def test_the_card_tells_of_code_that_comes(way: str, here: str, there: str, folder: Path, fake_hub: FakeHub) -> None:
    (folder / "README.md").write_text(here)
    on_the_hub(fake_hub, README=there.encode())
    push(way, folder, include_code=True)
    card = fake_hub.files("user/x")["README.md"].decode()
    assert card.count("AutoModel.from_pretrained('user/x', trust_remote_code=True)") == 1
    assert ("# Pets" in card) == (BY_HAND == there or (BY_HAND == here and way in WITH_A_FOLDER))
    push(way, folder, include_code=True)
    assert fake_hub.files("user/x")["README.md"].decode() == card


def test_code_in_the_folder_is_published_as_it_is(folder: Path, fake_hub: FakeHub) -> None:
    add_code(folder)
    (folder / "layers.py").write_text("mine = True")
    on_the_hub(fake_hub, modeling=b"old = True\n")
    push("biggan-hf push", folder)
    assert fake_hub.files("user/x")["layers.py"] == b"mine = True"


def test_a_discriminator_goes_to_its_folder(folder: Path, fake_hub: FakeHub) -> None:
    disc = folder / "discriminator"
    (disc / "README.md").write_text(GENERATED)
    (disc / "notes.txt").write_text("mine")
    main(["push", str(disc), "user/x", "--also", "*.txt", "--include-code"])
    names = fake_hub.files("user/x").keys() - {".gitattributes"}
    code = {name for name in names if name.endswith(".py")}
    assert "modeling_biggan.py" in code
    inner = {f"discriminator/{name}" for name in ("config.json", "model.safetensors", "notes.txt")}
    assert names - code == inner
    push("biggan-hf push", folder)
    assert isinstance(BigGANModel.from_pretrained("user/x"), BigGANModel)


def test_a_branch_without_a_card_takes_that_of_main_into_account(folder: Path, fake_hub: FakeHub) -> None:
    on_the_hub(fake_hub, README=BY_HAND.encode())
    main(["push", str(folder), "user/x", "--revision", "next"])
    assert fake_hub.files("user/x", "next")["README.md"] == BY_HAND.encode()
    MODEL.push_to_hub("user/x", revision="later")
    assert fake_hub.files("user/x", "later")["README.md"] == BY_HAND.encode()
    assert "samples.png" not in fake_hub.files("user/x", "later")


# The parts of a card


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("# Mine\n", "# Mine\n\n{}\n"),
        ("# Mine\n\n## Training\n\nOn a Sunday.\n", "# Mine\n\n## Training\n\nOn a Sunday.\n\n{}\n"),
        ("a\n\n## Intended use and limits\n", "a\n\n{}\n\n## Intended use and limits\n"),
        ("a <!-- biggan_hf: begin --> b <!-- biggan_hf: end --> c", "a {} c"),
        ("a <!-- biggan_hf: begin --> mine", "a <!-- biggan_hf: begin --> mine\n\n{}\n"),
        (
            "<!-- biggan_hf: begin --> mine\n<!-- biggan_hf: begin -->\nx\n<!-- biggan_hf: end -->\n",
            "<!-- biggan_hf: begin --> mine\n{}\n",
        ),
        ("", "\n\n{}\n"),
    ],
)
def test_the_part_of_the_run_takes_its_own_place(card: str, expected: str) -> None:
    once = with_part(card, r"new \1 part")
    begin, end = once.rindex("<!-- biggan_hf: begin"), once.rindex("<!-- biggan_hf: end -->") + 23
    assert once == expected.format(once[begin:end]) and "new \\1 part" in once[begin:end]
    assert with_part(once, r"new \1 part") == once


def test_a_card_is_by_hand_after_any_edit_outside_the_part_of_the_run() -> None:
    assert not is_by_hand(GENERATED) and not is_by_hand(GENERATED.replace("\n", "\r\n")) and not is_by_hand("\n")
    assert not is_by_hand(with_part(GENERATED, "new")) and not is_by_hand(GENERATED.rstrip())
    for edit in ("biggan", "A BigGAN", "- user/pets", "## Citation", "<!-- biggan_hf: generated"):
        assert is_by_hand(GENERATED.replace(edit, f"{edit}!", 1))
        assert is_by_hand(GENERATED.replace(edit, "", 1))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\na: 1 # one\n---\nbody", "---\na: 1 # one\nb: 2\n---\nbody"),
        ("---\na: 1\nb: 3\n---\nbody", "---\na: 1\nb: 3\n---\nbody"),
        ("body", "---\na: 0\nb: 2\n---\n\nbody"),
        ("---\na: [\n---\nbody", None),  # no YAML
        ("---\na: 2026-13-45\n---\nbody", None),
        ("---\n- a\n---\nbody", None),
        ("---\n{a: 1}\n---\nbody", None),  # a line after it is no YAML
        ("---\n  a: 1\n---\nbody", None),
        ("---\na: 1\nc: |\n  text\n...\n---\nbody", None),
        ("---\na: 1\nbody", None),  # it does not end
        ("\ufeff---\na: 1\n---\nbody", "\ufeff---\na: 1\nb: 2\n---\nbody"),
        ("---  \na: 1\n---  \nbody", "---  \na: 1\nb: 2\n---  \nbody"),
        ("---\na: &x 1\nc: *x\n---\nbody", "---\na: &x 1\nc: *x\nb: 2\n---\nbody"),
        ("---\n---\nbody", "---\na: 0\nb: 2\n---\nbody"),
        ("---\n# a comment\n---\nbody", "---\n# a comment\na: 0\nb: 2\n---\nbody"),
    ],
)
def test_metadata_that_is_missing_is_added(card: str, expected: str | None) -> None:
    assert with_metadata(card, "---\na: 0\nb: 2\n---\n\n# other") == (card if expected is None else expected)
