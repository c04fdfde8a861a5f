"""The sub-commands of `biggan-hf`, a file each: what `--help` says, `add_arguments`, and `run`.

Modules that load torch are imported where they are used, so that `--help` is quick.
"""
