"""A run of several processes that collapses, rolls back and collapses again; what each then has is compared."""

import sys

import torch

from biggan_hf.training import parse_arguments, set_up, train


def main(path: str, *argv: str) -> None:
    run = set_up(*parse_arguments(argv))
    train(run)
    networks = {"ema": run.ema, "g": run.players.bare_generator, "d": run.players.bare_discriminator}
    state = {f"{name}.{key}": v for name, network in networks.items() for key, v in network.state_dict().items()}
    state["counters"] = torch.tensor([run.global_step, run.rollbacks, run.batch_seed, run.batches.samples_seen])
    state["latents"] = run.batches.latents(0, 0).inputs
    gathered = {name: run.accelerator.gather(value[None].contiguous()) for name, value in state.items()}
    if run.is_main:
        torch.save(gathered, path)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()  # or gloo's threads may abort a process at its exit


if __name__ == "__main__":
    main(*sys.argv[1:])
