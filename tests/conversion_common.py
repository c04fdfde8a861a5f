"""What the tests of conversion/ share: the checkpoints and the answers of the original programs."""

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor


ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
ORIGINALS = FIXTURES / "originals"
# More original checkpoints, beside the repository where there are any.
SHARED = ROOT.parent / "shared" / "golden"


def convert(script: ModuleType, source: Path, output: Path, *options: str) -> Path:
    """Runs a script in this process; returns the folder that it wrote."""
    script.main([str(source), "--output", str(output), *options])
    return output


def answers(folder: Path) -> dict[str, Tensor]:
    """The original program's answers."""
    return {key: torch.from_numpy(value) for key, value in np.load(folder / "expected.npz").items()}


def weights(folder: Path, network: str = "") -> dict[str, Tensor]:
    """The tensors of a model folder, of the generator or of `network="discriminator"`."""
    return load_file(folder / network / "model.safetensors")


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To the bit; the γ of self-attention is a number in a file and a vector in a network."""
    assert ours.keys() == theirs.keys()
    pairs = {
        name: (tensor.flatten(), theirs[name].flatten()) if name.endswith(".gamma") else (tensor, theirs[name])
        for name, tensor in ours.items()
    }
    assert [name for name, pair in pairs.items() if not torch.equal(*pair)] == []


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-4 of the largest entry."""
    assert ours.numel() == theirs.numel()
    assert (ours.reshape(theirs.shape) - theirs).abs().max() <= 1e-4 * theirs.abs().max()
