"""A run: what it consists of between two steps, what of it a checkpoint holds, and how it goes back to one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from ..cards import is_path
from ..configuration_biggan import BigGANConfig
from ..files import step_of
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from . import stability
from .adapters import base_of, learned, load_learned, merged
from .arguments import TrainingArguments
from .batches import BatchSource
from .checkpoints import (
    BASE,
    list_checkpoints,
    load_training_state,
    rotate_checkpoints,
    save_checkpoint,
    set_aside,
    why_unreadable,
)
from .compile_cache import CompileCache
from .graphs import Graphs
from .logs import cut_logs
from .players import load_networks, set_adam
from .quality import Quality
from .report import Report
from .stability import SigmaClamp, Spectra
from .steps import Objective, Pictures, Players
from .uploads import Uploads


@dataclass
class Run:
    args: TrainingArguments
    accelerator: Accelerator
    config: BigGANConfig
    players: Players
    ema: BigGANModel
    batches: BatchSource
    accumulation_steps: int
    spectra: dict[str, Spectra]  # of both networks, by name
    watched: dict[str, Pictures]  # `held_out` pictures, which no step trains on, and as many `training` ones
    clamp: SigmaClamp | None
    quality: Quality | None
    settings: dict[str, Any]  # all arguments, for training_settings.json and, without what is private, the card
    graphs: Graphs = field(default_factory=Graphs)
    uploads: Uploads = field(default_factory=Uploads)
    global_step: int = 0
    rollbacks: int = 0
    collapsed: bool = False
    report: Report | None = None  # what the run found before its first step; the first process has it
    compile_cache: CompileCache | None = None
    exit_status: int = 0  # of a run that a signal, or the end of its launcher, has stopped
    overflows: Tensor | float = 0.0  # the steps in a row in which float16 overflowed

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def networks(self) -> tuple[BigGANModel, BigGANDiscriminator, BigGANModel]:
        """In the order of `load_networks`."""
        return self.players.bare_generator, self.players.bare_discriminator, self.ema

    @property
    def base_model(self) -> str | None:
        """The id on the Hub of the model that is fine-tuned, or its name in this package."""
        model = self.settings["init_from"]
        return None if is_path(model) else model

    @property
    def batch_seed(self) -> int:
        """After a rollback the run sees other latents and another order of pictures, or it would collapse again."""
        return self.args.seed + 1_000_003 * self.rollbacks

    @property
    def onset(self) -> int:
        """The last step before the lines of the log in which the rule looks for a collapse."""
        return self.global_step - stability.WINDOW * self.args.logging_steps

    def is_due(self, steps: int) -> bool:
        """Whether this step is one of every so many. 0: never."""
        return steps > 0 and self.global_step % steps == 0

    def objective(self) -> Objective:
        return objective_at(self.args, self.global_step)

    # Checkpoints

    def checkpoint(self) -> Path:
        """Saves a checkpoint of this step, and removes the oldest ones."""
        folder = self.output_dir / f"checkpoint-{self.global_step}"
        self.save(folder)
        onset = None if self.args.on_collapse == "ignore" else self.onset
        rotate_checkpoints(self.output_dir, self.args.checkpoints_total_limit, onset)
        return folder

    def save(self, folder: Path) -> None:
        generator, discriminator, ema = self.networks
        networks = {"": merged(ema), "generator": merged(generator), "discriminator": merged(discriminator)}
        if self.args.lora_rank:
            networks |= {BASE: base_of(generator), f"{BASE}/discriminator": base_of(discriminator)}
        save_checkpoint(folder, networks, self.state())

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the networks. It needs no random state: batches follow from the counters."""
        state = {
            "global_step": self.global_step,
            "samples_seen": self.batches.samples_seen,
            "rollbacks": self.rollbacks,
            "num_pictures": len(self.batches.images),
            "pictures": self.batches.images.fingerprint,
            "spectra": {name: spectra.bases for name, spectra in self.spectra.items()},
        }
        state |= {f"{name}_optimizer": optimizer.state_dict() for name, optimizer in self.players.optimizers.items()}
        if self.args.lora_rank:
            adapters = [learned(network) for network in self.networks]
            state |= {"lora_rank": self.args.lora_rank, "adapters": adapters}
        if self.accelerator.scaler is not None:
            state |= {"scaler": self.accelerator.scaler.state_dict(), "overflows": float(self.overflows)}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from the state of a checkpoint."""
        self.graphs.forget()  # the optimisers get other tensors and constants
        self.global_step, self.rollbacks = state["global_step"], state["rollbacks"]
        if self.args.lora_rank:
            networks: Any = self.networks
            for network, saved in zip(networks, state["adapters"], strict=True):
                load_learned(network, saved)
        for name, optimizer in self.players.optimizers.items():
            optimizer.load_state_dict(state[f"{name}_optimizer"])
            for parameter, moments in optimizer.state.items():
                for key in ("exp_avg", "exp_avg_sq"):
                    # In the memory format of the weight, which the fused kernel takes for given: the run may have
                    # begun in another one. Older checkpoints have () for the γ of self-attention.
                    moments[key] = torch.empty_like(parameter).copy_(moments[key].view_as(parameter))
        set_adam(self.players, self.args, stability.ROLLBACK_LEARNING_RATE_FACTOR**self.rollbacks)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.overflows = state.get("overflows", 0.0)
        for name, spectra in self.spectra.items():
            spectra.restore(state.get("spectra", {}).get(name, {}))  # older checkpoints have none
        self.batches.start(self.batch_seed, state["samples_seen"])

    # Rollbacks

    def last_good_checkpoint(self) -> Path | None:
        """The newest one from before the lines in which the rule saw the collapse, else the oldest; none with NaN."""
        checkpoints = list_checkpoints(self.output_dir)
        old_enough = [folder for folder in checkpoints if step_of(folder) <= self.onset]
        by_preference = [*reversed(old_enough), *checkpoints[len(old_enough) :]]
        return next((folder for folder in by_preference if is_good(folder)), None)

    def roll_back(self, good: Path) -> None:
        """
        Brings back the networks, the average, the optimisers, the counters and the watch. Learning rates are lower
        from here on, and latents and pictures are others.
        """
        if not self.args.lora_rank:  # else only the adapters change, which the state brings back
            for network, saved in zip(self.networks, load_networks(good), strict=True):
                network.load_state_dict(saved.state_dict())
        self.restore({**load_training_state(good), "rollbacks": self.rollbacks + 1})
        self.accelerator.wait_for_everyone()  # until all have read the checkpoint, which is replaced now
        if self.is_main:
            set_aside(self.output_dir, self.global_step, "before-collapse")
            cut_logs(self.output_dir, self.global_step)
            self.save(good)  # so that a resumed run knows of the rollback


def objective_at(args: TrainingArguments, step: int) -> Objective:
    """What a step minimises. R1 and R2 come every `r1_interval` steps, and weigh as many times more."""
    weight = 0.0 if step % args.r1_interval else args.r1_interval
    return Objective(
        loss=args.loss,
        generator_orthogonality=0.0 if args.lora_rank else args.generator_orthogonality,  # it is of whole weights
        r1_gamma=weight * args.r1_gamma,
        r2_gamma=weight * args.r2_gamma,
        consistency=args.consistency,
        diff_augment=args.diff_augment,
        iterate_every_forward=args.power_iteration == "every_forward",
    )


def is_good(checkpoint: Path) -> bool:
    try:
        return why_unreadable(checkpoint) is None and stability.all_finite(load_networks(checkpoint))
    except (ValueError, OSError, SafetensorError):  # it is damaged
        return False
