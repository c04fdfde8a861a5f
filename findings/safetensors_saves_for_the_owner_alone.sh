#!/usr/bin/env bash
# safetensors 0.8.0: `save_file` writes files that only their owner can read, whatever the umask.
#
# The guess: `save_file`, and so transformers' `save_pretrained` and peft's, gives a file the mode that `open` would, 0644
# under the usual umask 022, and a file that is there keeps its mode. `config.json` beside it has 0644, and safetensors
# 0.7.0 did so too. So a model in a folder that a group shares loads for all of the group.
# What happens: since 0.8.0 the file is written under another name, with the mode 0600 of a temporary file, and renamed.
# Others read the configuration, and are refused the weights. A file that was there loses its mode, too. The project
# safetensors has it as issue 782, open.
# Seen with: safetensors 0.8.0 (0600, 0600) beside 0.7.0 (0644, 0640), Python 3.11, Linux, 2026-11-28.
# Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
umask 022

modes() { # of a new file, and of one that had the mode 0640, in a version of safetensors
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet "safetensors==$1" numpy==2.3.5
    "$folder/$1/bin/python" - "$folder/$1/" <<'PYTHON'
import os
import sys

import numpy as np
from safetensors.numpy import save_file

found = []
for name in ("new", "old"):
    path = f"{sys.argv[1]}{name}.safetensors"
    if name == "old":
        open(path, "wb").close()
        os.chmod(path, 0o640)
    save_file({"weight": np.zeros(4, np.float32)}, path)
    found.append(f"{os.stat(path).st_mode & 0o777:04o}")
print(*found)
PYTHON
}

before=$(modes 0.7.0)
now=$(modes 0.8.0)
echo "mode of a new file, and of one saved over a file of mode 0640:"
echo "safetensors 0.7.0: $before"
echo "safetensors 0.8.0: $now"
[ "$before" = "0644 0640" ] && [ "$now" = "0600 0600" ]
