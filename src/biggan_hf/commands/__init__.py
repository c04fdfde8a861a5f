"""
The sub-commands of `biggan-hf`, a file each: `add_arguments`, `run`, and a docstring, which is the command's help.

What imports `datasets` or the networks is imported in `run`, so that `--help` and the commands that do without them do
not wait for it.
"""
