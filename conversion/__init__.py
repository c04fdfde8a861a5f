"""Checkpoints of other programs in and out. `src/biggan_hf/conversion` is a link to this folder."""
