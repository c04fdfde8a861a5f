#!/usr/bin/env bash
# transformers 5.23.0: initialisers leave loaded weights as they are, without a word.
#
# The guess: `model._init_weights(module)`, or a function of `transformers.initialization`, gives a weight new values, as
# their namesakes in `torch.nn.init` do. So one resets an embedding before fine-tuning on other classes.
# What happens: `from_pretrained` sets `_is_hf_initialized` on each loaded parameter, and the initialisers skip parameters
# with this flag. Nothing changes, nothing is logged. In a model built from its configuration the same call works, and so
# does `torch.nn.init` on a loaded parameter. So a reset that passes its test on a new model keeps the old weights.
# Seen with: transformers 5.23.0, torch 2.13.0, Python 3.11, 2026-11-28. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - "$folder/model" <<'PYTHON'
import sys

import torch
from transformers import BertConfig, BertModel
from transformers import initialization as init

torch.manual_seed(0)
config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16)
BertModel(config).save_pretrained(sys.argv[1])
loaded = BertModel.from_pretrained(sys.argv[1])


def changes(model, reset):
    embedding = model.embeddings.word_embeddings
    before = embedding.weight.detach().clone()
    with torch.no_grad():
        reset(model, embedding)
    return not torch.equal(before, embedding.weight)


seen = {
    "loaded, model._init_weights(module)": changes(loaded, lambda model, module: model._init_weights(module)),
    "loaded, transformers.initialization": changes(loaded, lambda _, module: init.normal_(module.weight)),
    "built, transformers.initialization": changes(BertModel(config), lambda _, module: init.normal_(module.weight)),
    "loaded, torch.nn.init": changes(loaded, lambda _, module: torch.nn.init.normal_(module.weight)),
}
for what, changed in seen.items():
    print(f"{what}: {'new values' if changed else 'no change'}")
sys.exit(list(seen.values()) != [False, False, True, True])
PYTHON
