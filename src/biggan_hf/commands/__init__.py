"""The sub-commands of `biggan-hf`: a file each, with `add_command` and the function that it runs.

Modules that load torch are imported where they are used, so that `--help` is quick.
"""
