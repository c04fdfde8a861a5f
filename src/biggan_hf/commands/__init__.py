"""The sub-commands of `biggan-hf` that sample: a file each, with `add_command` and what it runs.

Modules that load torch are imported where they are used.
"""
