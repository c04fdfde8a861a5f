#!/usr/bin/env bash
# huggingface_hub 2.4.0: `hf jobs uv run` takes an option that it does not know for the name of the script.
#
# The guess: an option that is misspelt ends the command with status 2 and "No such option", as in every other command of
# `hf`, `hf jobs ps` among them. (The option is `--detach`.)
# What happens: the command passes whatever it does not know to the script, and so it takes the first unknown word for
# the script, too. `--dry-run` shows `--detached` as the script, the real script as its argument, and exits with 0;
# without `--dry-run` this Job would be submitted.
# Write `--` in front of the script: `hf jobs uv run --detach -- script.py`.
# Seen with: huggingface_hub 2.4.0, Python 3.11, Linux, 2026-11-28.
# Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "huggingface_hub==2.4.0"
export HF_HOME="$folder/home" HF_TOKEN=hf_no_token HF_HUB_OFFLINE=1
cd "$folder"
echo 'print("hello")' > script.py

"venv/bin/hf" version
status=0
"venv/bin/hf" jobs uv run --detached --dry-run script.py > shown 2>&1 || status=$?
echo "hf jobs uv run --detached --dry-run script.py: status $status"
cat shown
other=0
"venv/bin/hf" jobs ps --detached > refused 2>&1 || other=$?
echo "hf jobs ps --detached: status $other"
grep -i "no such option" refused
[ "$status" = 0 ] && [ "$other" = 2 ] && grep -Eq "script +--detached" shown
