#!/usr/bin/env bash
# huggingface_hub 2.4.0: without a network, a revision that is not in the cache raises an error that is no `OSError`.
#
# The guess: whatever the Hub's client raises because a file or a commit can't be had is an `OSError`, as transformers
# relies on: `LocalEntryNotFoundError` of `hf_hub_download`, `OfflineModeIsEnabled` and `HfHubHTTPError` are. A program
# that resolves a revision once, to pin all its downloads to one commit, then catches `OSError`.
# What happens: `HfApi.resolve_revision`, which is there for that, raises `RevisionResolutionError`, a plain `Exception`.
# `except OSError` misses it, and the program ends with a traceback where `hf_hub_download` gave a line.
# Seen with: huggingface_hub 2.4.0, Python 3.11, Linux, 2026-11-28.
# Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "huggingface_hub==2.4.0"
HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from huggingface_hub import HfApi, hf_hub_download


def raised(function):
    try:
        function()
    except Exception as error:
        return type(error)
    raise SystemExit("no error")


file = raised(lambda: hf_hub_download("user/name", "config.json", local_files_only=True))
revision = raised(lambda: HfApi().resolve_revision("user/name", local_files_only=True))
print(f"huggingface_hub {version('huggingface_hub')}")
print(f"hf_hub_download: {file.__name__}, an OSError: {issubclass(file, OSError)}")
print(f"HfApi.resolve_revision: {revision.__name__}, an OSError: {issubclass(revision, OSError)}")
raise SystemExit(not (issubclass(file, OSError) and not issubclass(revision, OSError)))
PYTHON
