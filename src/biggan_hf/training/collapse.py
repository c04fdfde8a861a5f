"""What is done when the rule calls a collapse: what is known is saved, and the run stops or rolls back."""

import json
from pathlib import Path

from tqdm.auto import tqdm

from .checkpoints import list_checkpoints, load_training_state, save_checkpoint, set_aside, step_of
from .players import load_networks
from .run import Run, cut_logs, training_state
from .stability import all_finite


def respond(run: Run, why: str) -> bool:
    """
    Called by every process. Says what happened, notes it in collapses.jsonl, and keeps the weights of the collapse
    apart, as `collapsed-{step}`; then rolls back, if the run is told to and may still.

    Returns:
        Whether the run goes on.
    """
    good = last_good_checkpoint(run)
    rolls_back = run.args.on_collapse == "rollback" and good is not None and run.rollbacks < run.args.max_rollbacks
    if run.is_main:
        tqdm.write(f"collapse at {why}")  # first, and the weights last: the disk may be full
        note = {"step": run.global_step, "why": why, "rolled_back_to": step_of(good) if good and rolls_back else None}
        with open(run.output_dir / "collapses.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
        save(run, run.output_dir / f"collapsed-{run.global_step}")
    run.accelerator.wait_for_everyone()
    if rolls_back:
        assert good is not None
        roll_back(run, good)
    run.accelerator.wait_for_everyone()
    run.collapsed = not rolls_back
    return rolls_back


def last_good_checkpoint(run: Run) -> Path | None:
    """The newest from before the lines that made the rule speak, else the oldest; of those without NaN."""
    checkpoints = list_checkpoints(run.output_dir)
    old_enough = [folder for folder in checkpoints if step_of(folder) <= run.onset]
    by_preference = [*reversed(old_enough), *checkpoints[len(old_enough) :]]
    return next((folder for folder in by_preference if is_good(folder)), None)


def is_good(checkpoint: Path) -> bool:
    try:
        return all_finite(load_networks(checkpoint))
    except (ValueError, OSError):  # damaged
        return False


def roll_back(run: Run, good: Path) -> None:
    """Networks, average, optimisers, counters and the watch as they were; lower learning rates, other latents and
    pictures."""
    players = run.players
    networks = (players.bare_generator, players.bare_discriminator, run.ema)
    for network, saved in zip(networks, load_networks(good), strict=True):
        network.load_state_dict(saved.state_dict())
    run.restore({**load_training_state(good), "rollbacks": run.rollbacks + 1})
    run.accelerator.wait_for_everyone()  # all have read the checkpoint that is now replaced
    if run.is_main:
        set_aside(run.output_dir, run.global_step, "before-collapse")
        cut_logs(run)
        save(run, good)  # so that a resumed run knows of the rollback


def save(run: Run, folder: Path) -> None:
    players = run.players
    save_checkpoint(
        folder,
        ema=run.ema,
        generator=players.bare_generator,
        discriminator=players.bare_discriminator,
        training_state=training_state(run),
    )
