"""A run: what it consists of between two steps, and what of it a checkpoint holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANModel
from . import stability
from .arguments import TrainingArguments
from .batches import BatchSource
from .checkpoints import rotate_checkpoints, save_checkpoint
from .players import set_adam
from .quality import Quality
from .stability import SigmaClamp, Watch
from .steps import Objective, Players


@dataclass
class Run:
    """A run between two steps."""

    args: TrainingArguments
    accelerator: Accelerator
    config: BigGANConfig
    players: Players
    ema: BigGANModel
    batches: BatchSource
    accumulation_steps: int
    watch: Watch
    clamp: SigmaClamp | None
    quality: Quality | None
    settings: dict[str, Any]  # all arguments, for training_settings.json and the card
    global_step: int = 0
    rollbacks: int = 0
    collapsed: bool = False
    overflows: Tensor | float = 0.0  # the steps in a row in which float16 overflowed

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def batch_seed(self) -> int:
        """After a rollback the run sees other latents and another order of pictures, or it would collapse again."""
        return self.args.seed + 1_000_003 * self.rollbacks

    @property
    def onset(self) -> int:
        """The last step before the lines of the log in which the rule looks for a collapse."""
        return self.global_step - stability.WINDOW * self.args.logging_steps

    def objective(self) -> Objective:
        """What this step minimises. R1 comes every `r1_interval` steps, and weighs as many times more."""
        args = self.args
        return Objective(
            loss=args.loss,
            generator_orthogonality=args.generator_orthogonality,
            r1_gamma=0.0 if self.global_step % args.r1_interval else args.r1_gamma * args.r1_interval,
            diff_augment=args.diff_augment,
            iterate_every_forward=args.power_iteration == "every_forward",
        )

    # Checkpoints

    def checkpoint(self) -> Path:
        """Saves a checkpoint of this step, and removes the oldest ones."""
        folder = self.output_dir / f"checkpoint-{self.global_step}"
        self.save(folder)
        onset = None if self.args.on_collapse == "ignore" else self.onset
        rotate_checkpoints(self.output_dir, self.args.checkpoints_total_limit, onset)
        return folder

    def save(self, folder: Path) -> None:
        networks = {"generator": self.players.bare_generator, "discriminator": self.players.bare_discriminator}
        save_checkpoint(folder, ema=self.ema, **networks, training_state=self.state())  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the networks. It needs no random state: batches follow from the counters."""
        state = {
            "global_step": self.global_step,
            "samples_seen": self.batches.samples_seen,
            "rollbacks": self.rollbacks,
            "num_pictures": len(self.batches.images),
            "pictures": self.batches.images.fingerprint,
            "generator_optimizer": self.players.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.players.discriminator_optimizer.state_dict(),
            "spectra": {"generator": self.watch.generator.bases, "discriminator": self.watch.discriminator.bases},
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
            state["overflows"] = float(self.overflows)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from the state of a checkpoint."""
        self.global_step, self.rollbacks = state["global_step"], state["rollbacks"]
        self.players.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.players.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        set_adam(self.players, self.args, stability.ROLLBACK_LEARNING_RATE_FACTOR**self.rollbacks)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.overflows = state.get("overflows", 0.0)
        spectra = state.get("spectra", {})  # older checkpoints have none
        self.watch.generator.restore(spectra.get("generator", {}))
        self.watch.discriminator.restore(spectra.get("discriminator", {}))
        self.batches.start(self.batch_seed, state["samples_seen"])
