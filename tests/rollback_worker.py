"""A run of several processes that collapses, rolls back and collapses again; what each then has is saved."""

import sys
from pathlib import Path

import torch

from biggan_hf.training import parse_arguments, set_up, stability, train


def main(path: str, *argv: str) -> None:
    stability.WINDOW, stability.LOSS_FLOOR, stability.MAX_ROLLBACKS = 2, 1e9, 1
    run = set_up(*parse_arguments(argv))
    train(run)
    assert run.collapsed and not torch.distributed.is_initialized()  # or gloo's threads may abort it at its exit
    networks = {"ema": run.ema, "g": run.players.bare_generator, "d": run.players.bare_discriminator}
    state = {f"{name}.{key}": v for name, network in networks.items() for key, v in network.state_dict().items()}
    state["counters"] = torch.tensor([run.global_step, run.rollbacks, run.batch_seed, run.batches.samples_seen])
    state["latents"] = run.batches.latents(0, 0).z
    own = Path(path)
    torch.save(state, own if run.is_main else own.with_stem("other"))


if __name__ == "__main__":
    main(*sys.argv[1:])
