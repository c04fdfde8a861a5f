"""`python -m biggan_hf`: the command `biggan-hf`."""

from .cli import main


if __name__ == "__main__":
    main()
