"""What processes of a run know of each other, alone and by twos."""

from pathlib import Path

import pytest
import torch
from common import in_two_processes

from biggan_hf import processes
from biggan_hf.processes import Vote, add_up, from_main, is_main_process, joined, num_processes, process_rank


def test_a_process_alone() -> None:
    assert (num_processes(), process_rank(), is_main_process()) == (1, 0, True)
    with joined(on_gpu=False):
        assert not processes.are_joined() and from_main("value") == "value"
        tensor = torch.ones(2)
        add_up([tensor])
        assert tensor.tolist() == [1, 1] and Vote()(3) == 3


def test_before_they_are_joined_the_launcher_says_who_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process() and process_rank() == 0


def agree(rank: int, folder: Path) -> None:
    with joined(on_gpu=False):
        with joined(on_gpu=False):  # the second time it does nothing
            assert (num_processes(), process_rank(), is_main_process()) == (2, rank, rank == 0)
        assert from_main({"rank": rank}) == {"rank": 0}
        sums = [torch.tensor([rank + 1.0]), torch.tensor(rank)]
        add_up(sums)
        assert [tensor.item() for tensor in sums] == [3, 1]
        vote = Vote()
        # Each call answers with the largest number of the call before.
        assert [vote(number) for number in ((1, 0, 7), (4, 2, 0))[rank]] == [0, 4, 2]
    (folder / f"done {rank}").touch()


def test_two_processes_agree(tmp_path: Path) -> None:
    in_two_processes(agree, tmp_path, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"done 0", "done 1"}
