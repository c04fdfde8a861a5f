"""What is done after a collapse: the weights are kept, and the run stops or rolls back."""

from pathlib import Path

from tqdm.auto import tqdm

from ..files import append_line
from . import stability
from .checkpoints import list_checkpoints, load_training_state, set_aside, step_of
from .logs import COLLAPSES, cut_logs
from .players import load_networks
from .run import Run


def stop_or_roll_back(run: Run, why: str) -> bool:
    """
    Says what happened, notes it in collapses.jsonl, and keeps the weights as `collapsed-{step}`. Then the run rolls
    back, if `on_collapse` says so, a good checkpoint is there, and it has not done so too often. Every process calls
    this.

    Returns:
        Whether the run goes on.
    """
    good = last_good_checkpoint(run)
    rolls_back = run.args.on_collapse == "rollback" and good is not None and run.rollbacks < stability.MAX_ROLLBACKS
    if run.is_main:
        tqdm.write(f"collapse at {why}")  # this comes first and the weights last: the disk may be full
        note = {"step": run.global_step, "why": why, "rolled_back_to": step_of(good) if good and rolls_back else None}
        append_line(run.output_dir / COLLAPSES, note)
        run.save(run.output_dir / f"collapsed-{run.global_step}")
    run.accelerator.wait_for_everyone()
    if rolls_back:
        assert good is not None
        roll_back(run, good)
    run.accelerator.wait_for_everyone()
    run.collapsed = not rolls_back
    return rolls_back


def last_good_checkpoint(run: Run) -> Path | None:
    """The newest one from before the lines in which the rule saw the collapse, else the oldest; none with NaN."""
    checkpoints = list_checkpoints(run.output_dir)
    old_enough = [folder for folder in checkpoints if step_of(folder) <= run.onset]
    by_preference = [*reversed(old_enough), *checkpoints[len(old_enough) :]]
    return next((folder for folder in by_preference if is_good(folder)), None)


def is_good(checkpoint: Path) -> bool:
    try:
        return stability.all_finite(load_networks(checkpoint))
    except (ValueError, OSError):  # it is damaged
        return False


def roll_back(run: Run, good: Path) -> None:
    """
    Brings back the networks, the average, the optimisers, the counters and the watch. Learning rates are lower from
    here on, and latents and pictures are others.
    """
    players = run.players
    networks = (players.bare_generator, players.bare_discriminator, run.ema)
    for network, saved in zip(networks, load_networks(good), strict=True):
        network.load_state_dict(saved.state_dict())
    run.restore({**load_training_state(good), "rollbacks": run.rollbacks + 1})
    run.accelerator.wait_for_everyone()  # until all have read the checkpoint, which is replaced now
    if run.is_main:
        set_aside(run.output_dir, run.global_step, "before-collapse")
        cut_logs(run.output_dir, run.global_step)
        run.save(good)  # so that a resumed run knows of the rollback
