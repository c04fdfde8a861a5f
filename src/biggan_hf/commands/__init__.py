"""
The sub-commands of `biggan-hf`, a file each: `add_arguments`, `run`, and a docstring, which is the command's help.

What imports `datasets` is imported in `run`, so that `--help` does not wait for it.
"""
