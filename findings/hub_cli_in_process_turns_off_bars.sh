#!/usr/bin/env bash
# huggingface_hub 2.4.0: a command of `hf` that runs in a program turns off the progress bars of the whole program.
#
# The guess: click's `CliRunner`, or a call of the command, runs `hf` in a program's own process, to test what it says or
# to save a start. Its option `--format json`, like `--quiet`, is about this command's output.
# What happens: the option calls `disable_progress_bars()` for the process, and nothing calls `enable_progress_bars()`
# when the command ends. Later downloads of the program, and the bars of datasets and of transformers that obey the
# same switch, show nothing, without a word. The import alone sets the switch, too: it turns on bars that the program had
# turned off, and turns them off where it finds the variables of a coding agent.
# Look up `are_progress_bars_disabled()` before, and set the switch again after; or set HF_HUB_DISABLE_PROGRESS_BARS=0,
# which the command leaves alone.
# Seen with: huggingface_hub 2.4.0, click 8.5.1, Python 3.11, Linux, 2026-11-28.
# Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "huggingface_hub==2.4.0" "click==8.5.1"
mkdir -p "$folder/home/hub"
# Nothing of the caller's: not the switch, not the variables of an agent.
env -i PATH="$PATH" HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from click.testing import CliRunner
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars


def bars():
    return "off" if are_progress_bars_disabled() else "on"


print(f"huggingface_hub {version('huggingface_hub')}, click {version('click')}")
seen = [bars()]
disable_progress_bars()
seen.append(bars())
from huggingface_hub.cli.hf import app  # noqa: E402

seen.append(bars())
result = CliRunner().invoke(app, ["cache", "list", "--format", "json"])
seen.append(bars())
print(f"hf cache list --format json: status {result.exit_code}, {result.output.strip()}")
for when, what in zip(("at first", "turned off by the program", "after the import", "after the command"), seen):
    print(f"bars {when}: {what}")
sys.exit(seen != ["on", "off", "on", "off"] or result.exit_code)
PYTHON
