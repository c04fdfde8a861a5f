"""findings/: each script stands on its page, with what it pins; `make findings` says which of them changed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from documented import without_make


ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "findings").iterdir())
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
SECTIONS = {name: text for text in PAGE.split("\n## ")[1:] for name in re.findall(r"\]\(\.\./findings/(\S+)\)", text)}


def test_the_page_has_a_section_for_each_script() -> None:
    assert [*SECTIONS] == [path.name for path in SCRIPTS] and PAGE.count("\n## ") == len(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_shows_and_with_what(script: Path) -> None:
    assert script.suffix == ".sh" and os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    comment = " ".join(re.findall(r"^# (.*)$", text.partition("\nset -euo pipefail\n")[0], re.MULTILINE))
    for words in ("The guess: ", "What happens: ", "Seen with: ", "Exits with 1 if this changes."):
        assert words in comment
    # The package and its version, as they are installed, stand first; so they do on the page.
    package, version = re.match(r"(\w+) ([\d.]+): ", comment).groups()  # type: ignore[union-attr]
    assert SECTIONS[script.name].split("\n\n")[1].startswith(f"{package} {version}. ")
    installed = re.findall(r"install .*", text)
    assert any(f"{package}=={version}" in line for line in installed) or f"modes {version}" in text
    # In a folder of its own, which goes; without this project.
    assert "mktemp -d" in text and "trap 'rm -rf" in text and "biggan" not in text


@pytest.mark.parametrize(("statuses", "expected"), [((0, 0), 0), ((0, 1), 2), ((3, 0), 2)])
def test_make_findings_runs_all_and_names_those_that_changed(
    statuses: tuple[int, int], expected: int, tmp_path: Path
) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy2(ROOT / "Makefile", tmp_path)
    (tmp_path / "findings").mkdir()
    for name, status in zip("ab", statuses, strict=True):
        script = tmp_path / "findings" / f"{name}.sh"
        script.write_text(f"#!/bin/sh\necho {name} was run\nexit {status}\n")
        script.chmod(0o755)
    done = subprocess.run(["make", "findings"], cwd=tmp_path, env=without_make(), capture_output=True, text=True)
    assert done.returncode == expected
    assert "a was run" in done.stdout and "b was run" in done.stdout
    changed = [f"findings/{name}.sh" for name, status in zip("ab", statuses, strict=True) if status]
    assert ("changed, or could not be tried: " + " ".join(changed) in done.stdout) == bool(changed)
