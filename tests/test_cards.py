"""The card that a push leaves on the Hub: for each way to push, each card in the folder, and each card on the Hub."""

import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from common import tiny_discriminator, tiny_generator, with_standing_statistics
from fake_hub import FakeHub
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.cards import is_by_hand, metadata, settings_table, with_metadata, with_part, without_part
from biggan_hf.cli import main
from biggan_hf.evaluation import Measure, Report, add_to_card
from biggan_hf.evaluation.reports import write_eval_results
from biggan_hf.hub import add_code
from biggan_hf.images import image_grid
from biggan_hf.model_card import SHEETS, model_card
from biggan_hf.sheets import MOST_BYTES, save_small, truncation_sweep
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
    for sheet in SHEETS:
        (folder / sheet).write_bytes(b"")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def push(way: str, folder: Path, include_code: bool = False) -> None:
    if way == "biggan-hf push":
        main(["push", str(folder), "user/x", *["--include-code"] * include_code])
    elif way == "train.py":
        args = SimpleNamespace(hub_model_id="user/x", include_code=include_code, license=None)
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


# Licences, numbers, sheets, names


def test_a_licence_is_asked_for(folder: Path, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    push("biggan-hf push", folder)
    card = fake_hub.files("user/x")["README.md"].decode()
    assert "## License\n\nNone is stated" in card and caplog.text.count("names no license") == 1
    caplog.clear()
    main(["push", str(folder), "user/x", "--license", "cc-by-4.0"])
    card = fake_hub.files("user/x")["README.md"].decode()
    assert metadata(card)["license"] == "cc-by-4.0" and "## License" not in card and "no license" not in caplog.text
    BigGANPipeline(MODEL).push_to_hub("user/x")  # what was named stays
    assert metadata(fake_hub.files("user/x")["README.md"].decode())["license"] == "cc-by-4.0"
    on_the_hub(fake_hub, README=BY_HAND.encode())
    MODEL.push_to_hub("user/x", license="cc-by-4.0")
    assert fake_hub.files("user/x")["README.md"] == BY_HAND.encode()
    assert "names the license 'mit', and keeps it" in caplog.text
    on_the_hub(fake_hub, README=b"# Mine\n")
    MODEL.push_to_hub("user/x", license="cc-by-4.0")
    assert metadata(fake_hub.files("user/x")["README.md"].decode())["license"] == "cc-by-4.0"


def evaluated(folder: Path, value: float, source: str = "user/pets") -> None:
    protocol = {"reference": {"source": source, "split": "test"}, "samples": {"truncation": 0.5}, "date": "2026-11-28"}
    report = Report([Measure("fid", "FID", value), Measure("floor_fid", "FID, real", 1.0)], protocol)
    add_to_card(report, folder / "README.md", "pets")
    write_eval_results(report, folder)


def results_of(card: ModelCard) -> list[Any]:
    data: Any = card.data
    return data.eval_results or []


@pytest.mark.parametrize("there", ["generated", "by hand", "windows"])
def test_numbers_of_an_evaluation_reach_the_hub_each_time(there: str, folder: Path, fake_hub: FakeHub) -> None:
    on_the_hub(fake_hub, README=CARDS[there] or b"")
    (folder / "README.md").write_text(GENERATED)
    for value in (12.5, 9.25):
        evaluated(folder, value)
        assert not is_by_hand((folder / "README.md").read_text())
        push("biggan-hf push", folder)
        card = ModelCard(fake_hub.files("user/x")["README.md"].decode())
        (result,) = results_of(card)
        assert (result.metric_name, result.metric_value, result.dataset_type) == ("FID", value, "user/pets")
        assert result.metric_args == {"reference.source": "user/pets", "reference.split": "test",
                                      "samples.truncation": 0.5, "date": "2026-11-28"}  # fmt: skip
        assert card.text.count("## Evaluation") == 1 and f"| {value} " in card.text
        (name,) = [name for name in fake_hub.files("user/x") if name.startswith(".eval_results/")]
        (entry,) = parse_eval_result_entries(yaml.safe_load(fake_hub.files("user/x")[name]))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("user/pets", "fid", value)
        assert entry.notes and "samples.truncation: 0.5; date: 2026-11-28" in entry.notes
    assert is_by_hand(fake_hub.files("user/x")["README.md"].decode()) == (there != "generated")
    BigGANPipeline(MODEL).push_to_hub("user/x")  # without numbers: those that are there stay
    assert results_of(ModelCard(fake_hub.files("user/x")["README.md"].decode()))[0].metric_value == 9.25


def test_numbers_beside_private_pictures_are_no_results_of_the_hub(folder: Path) -> None:
    (folder / "README.md").write_text(GENERATED)
    for source in (str(folder), "pets", "user/pets; also"):
        evaluated(folder, 3.0, source)
    assert not (folder / ".eval_results").exists()


def test_numbers_on_the_hub_stay_beside_new_ones(folder: Path, fake_hub: FakeHub) -> None:
    theirs = "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: x}\n    dataset: {type: a, name: a}\n" \
             "    metrics:\n    - {type: fid, value: 1}\nlicense: mit  # mine\n---\n# Pets\n"  # fmt: skip
    on_the_hub(fake_hub, README=theirs.encode())
    (folder / "README.md").write_text(GENERATED)
    evaluated(folder, 2.5)
    push("biggan-hf push", folder)
    card = fake_hub.files("user/x")["README.md"].decode()
    assert [result.metric_value for result in results_of(ModelCard(card))] == [1, 2.5]
    assert "license: mit  # mine\n" in card and "# Pets\n" in card
    on_the_hub(fake_hub, README=theirs.replace("results:", "wrong:").encode())  # what can't be read stays as it is
    push("biggan-hf push", folder)
    assert "  wrong:\n" in fake_hub.files("user/x")["README.md"].decode()


def test_a_push_draws_the_sheets_that_the_folder_lacks(folder: Path, fake_hub: FakeHub) -> None:
    (folder / "truncation.png").unlink()
    push("biggan-hf push", folder)
    files = fake_hub.files("user/x")
    assert files["samples.png"] == b"" and not (folder / "truncation.png").exists()
    assert Image.open(io.BytesIO(files["truncation.png"])).width > 4 * 64
    assert all(f"]({name})" in files["README.md"].decode() for name in SHEETS)


def test_sheets_are_small_and_their_columns_are_one_draw(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (20, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_small(image_grid(noise, 5), tmp_path / "noise.png")
    assert 200_000 < (tmp_path / "noise.png").stat().st_size <= MOST_BYTES
    assert truncation_sweep(tiny_generator(num_labels=0)).size[0] == 4 * 66 + 2
    model = with_standing_statistics(tiny_generator(standing_truncations=[0.4, 0.6, 1.0]))
    assert truncation_sweep(model).width < truncation_sweep(tiny_generator()).width  # 1 and 0.5


NAMES = ["a|b", "<img src=x onerror=y>", "`code`", "[free](http://x.test)", "![](http://x.test/y.png)", "```",
         "# title", "--> # x", "<!-- biggan_hf: begin --> x <!-- biggan_hf: end -->",
         "<!-- biggan_hf: generated 0 -->", "'); x('", "\\|", "a\nb", "---"]  # fmt: skip


def test_names_of_classes_break_no_card(tmp_path: Path) -> None:
    found = {"classes": ", ".join(NAMES), "pictures": NAMES[3]}
    for index, name in enumerate(NAMES):
        names = [name, *NAMES[:index], *NAMES[index + 1 :]]
        model = tiny_generator(id2label=dict(enumerate(names)))
        model.save_pretrained(tmp_path / "model")
        card = with_part(model_card(model.config, repo_id=str(tmp_path / "model")), settings_table(found))
        namespace: dict[str, Any] = {}
        exec(re.split(r"^```.*\n", card, flags=re.MULTILINE)[3], namespace)
        assert len(namespace["images"]) == 4
        assert not is_by_hand(card) and without_part(card) == without_part(with_part(card, "new"))
    rows = settings_table(found).splitlines()
    assert [row.count("|") for row in rows] == [3] * 4
    assert not re.search(r"<|`|\]\(", "".join(rows)) and len(rows) == 4


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
