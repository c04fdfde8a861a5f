"""What those who contribute, report or release read: the files and names that are told of exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import biggan_hf


ROOT = Path(__file__).parents[1]
PAGES = ["AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir())
# A list's item, with the lines that go on with it.
ITEM = re.compile(r"^(?:\d\.|-) .*(?:\n +.*)*", re.MULTILINE)
FILE = re.compile(r"[\w.-]+(?:/[\w.-]*)+|\w+\.(?:txt|py|md)")  # `src/x.py`, `setup.py`, `findings/`


def text_of(page: str) -> str:
    """The page without its blocks of commands, which test_documented.py tries."""
    return re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def files_in(text: str) -> list[str]:
    return [name for name in re.findall(r"`([^`\s]+)`", text) if FILE.fullmatch(name)]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = text_of(page)
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    places = [ROOT, *{(ROOT / name).parent for name in files_in(text)}, *folders_in(text)]
    missing = [name for name in {*files_in(text), *linked} if not any((place / name).exists() for place in places)]
    assert not missing, f"{page} names {missing}"


def folders_in(text: str) -> list[Path]:
    """The folders that a page names, beside whose names it may name their files alone."""
    return [ROOT / name for name in files_in(text) if (ROOT / name).is_dir()]


def test_names_stand_in_the_files_that_an_item_tells_of() -> None:
    checked = 0
    for item in ITEM.findall(text_of("CONTRIBUTING.md")):
        files = [path for name in files_in(item) for path in with_inside(ROOT / name)]
        names = set(re.findall(r"`([A-Za-z_]\w+)`", item)) if files else set()
        checked += len(names)
        texts = [path.read_text(encoding="utf-8") for path in files]
        missing = {name for name in names if not any(re.search(rf"\b{name}\b", text) for text in texts)}
        assert not missing, f"{sorted(missing)} in none of the files of: {item}"
    assert checked > 30


def with_inside(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def test_the_changelog_has_the_form_and_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "https://keepachangelog.com/en/1.1.0/" in text
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "") and len(versions) == text.count("\n## ")
    # Before 1.0.0 nothing is released.
    assert len(versions) == 1 or versions[1][0] == biggan_hf.__version__ and all(date for _, date in versions[1:])
    parts = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert set(parts) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_security_points_to_what_is_guarded_and_names_no_address() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "](docs/guarantees.md)" in text and not re.search(r"\S@\S|https?://", text)


def test_each_guarantee_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").partition("\n## The test of each\n")[2]
    named = re.findall(r"`(tests/test_\w+\.py)::(\w+)`", table.partition("\n## ")[0])
    assert len(named) > 20
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_issues_are_short_and_ask_for_the_environment(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form.keys() == {"name", "description", "labels", "body"} and len(form["body"]) <= 4
    ids = [part["id"] for part in form["body"]]
    assert len({*ids}) == len(ids) and all(part["type"] == "textarea" for part in form["body"])
    for part in form["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"} and part["attributes"]["label"]
    assert "`biggan-hf env`" in form["body"][-1]["attributes"]["label"]


def test_there_is_a_template_for_each_kind() -> None:
    assert [path.name for path in TEMPLATES] == ["bug.yml", "feature.yml"]
