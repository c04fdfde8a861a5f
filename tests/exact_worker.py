"""What processes of test_training_exact.py do: three alternating updates in float64 on one global batch, however it
is split; the bytes of an exchange; a batch norm in bfloat16; what a run joins, averages and draws."""

import sys
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.layers import BatchNorm2d, ConditionalBatchNorm2d
from biggan_hf.ops import batch_norm_in_training
from biggan_hf.training import parse_arguments, set_up
from biggan_hf.training.logs import fetch
from biggan_hf.training.loop import train_step
from biggan_hf.training.replicas import average_running_statistics, join_batch_norms
from biggan_hf.training.run import Run
from biggan_hf.training.steps import Latents, Objective, Pictures, Players, discriminator_step, generator_step


BATCH = 8
LOSSES = ("hinge", "logistic", "relativistic")
PENALISED = Objective(loss="relativistic", r1_gamma=1.0, r2_gamma=2.0, generator_orthogonality=1e-2)
CONFIG = BigGANConfig.preset(
    "demo",
    num_labels=3,
    generator_base_channels=4,
    discriminator_base_channels=4,
    generator_attention_resolutions=[16],
    discriminator_attention_resolutions=[16],
)


def play(accelerator: Accelerator, accumulation: int, batch_norm: str, objective: Objective) -> dict[str, Tensor]:
    """
    Every gradient of every update, by name. Batch norm has "fixed" statistics, or those of so many processes as
    `join_batch_norms` joins.
    """
    players = _players(accelerator, batch_norm)
    gradients: dict[str, Tensor] = {}
    for update in range(3):
        latents, pictures = _micro_batches(accelerator, accumulation, update)
        discriminator_step(players, list(zip(latents, pictures, strict=True)), objective)
        _keep(gradients, f"{update}.discriminator", players.bare_discriminator)
        generator_step(players, latents, objective, pictures)
        _keep(gradients, f"{update}.generator", players.bare_generator)
    for name, buffer in [*players.bare_generator.named_buffers(), *players.bare_discriminator.named_buffers()]:
        gradients[f"buffer.{name}"] = buffer.clone()
    return gradients


def _players(accelerator: Accelerator, batch_norm: str) -> Players:
    torch.manual_seed(0)
    generator, discriminator = BigGANModel(CONFIG).double().train(), BigGANDiscriminator(CONFIG).double().train()
    for network in (generator, discriminator):  # attention that starts at nothing would have no gradients inside
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.data.fill_(0.5)
    for module in generator.modules():
        if batch_norm == "fixed" and isinstance(module, BatchNorm2d | ConditionalBatchNorm2d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
            module.training = False
    # Steps that move every gradient, yet saturate neither tanh nor loss: no gradient fades to nothing but rounding.
    optimizers = [torch.optim.SGD(network.parameters(), 1e-4) for network in (generator, discriminator)]
    players = Players(accelerator, *accelerator.prepare(generator, discriminator, *optimizers))
    if batch_norm != "fixed":
        join_batch_norms(players.bare_generator, batch_norm)
    return players


def _micro_batches(accelerator: Accelerator, accumulation: int, update: int) -> tuple[list[Latents], list[Pictures]]:
    """This process's part: micro-batch after micro-batch, and within each process after process."""
    generator = torch.Generator().manual_seed(update)
    z = torch.randn(BATCH, CONFIG.z_dim, generator=generator, dtype=torch.float64)
    x = torch.rand(BATCH, 1, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(3, (BATCH,), generator=generator)
    size = BATCH // accumulation // accelerator.num_processes
    parts = [torch.arange(BATCH).split(size)[a * accelerator.num_processes + accelerator.process_index]
             for a in range(accumulation)]  # fmt: skip
    return [Latents(z[part], labels[part]) for part in parts], [Pictures(x[part], labels[part]) for part in parts]


def _keep(gradients: dict[str, Tensor], prefix: str, network: torch.nn.Module) -> None:
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gradients[f"{prefix}.{name}"] = parameter.grad.clone()


def exchanged(accelerator: Accelerator, accumulation: int) -> dict[str, Tensor]:
    """The bytes of gradients that an update of each player sends, and of its weights."""
    players = _players(accelerator, "fixed")
    networks: dict[str, Any] = {"discriminator": players.discriminator, "generator": players.generator}
    sent: dict[str, list[int]] = {name: [] for name in networks}

    def counted(sizes: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sizes.append(bucket.buffer().nbytes)
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]  # joined, hence not None

    calls: list[str] = []
    for name, network in networks.items():
        network.register_comm_hook(sent[name], counted)
        network.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    latents, pictures = _micro_batches(accelerator, accumulation, update=0)
    discriminator_step(players, list(zip(latents, pictures, strict=True)), Objective())
    generator_step(players, latents, Objective())
    weights = {name: sum(weight.nbytes for weight in network.parameters()) for name, network in networks.items()}
    # The generator learns through the discriminator without its wrapper, which only its own update calls.
    assert calls == ["discriminator"] * accumulation + ["generator"] * accumulation, calls
    return {name: torch.tensor([sum(sent[name]), weights[name]]) for name in networks}


def batch_norm(
    rank: int, num_processes: int, dtype: torch.dtype, group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """
    A process's part of maps in bfloat16, normalised in that dtype or a finer one, with the gradients. Means are large
    beside what varies, of the maps and of the gradient: sums in bfloat16 would be seen.
    """
    draw = torch.Generator().manual_seed(0)
    maps, upstream = (mean + 0.1 * torch.randn(8, 3, 4, 4, generator=draw) for mean in (3.0, 1.0))
    maps, upstream = (x.bfloat16().chunk(num_processes)[rank].to(dtype) for x in (maps, upstream))
    wide = torch.promote_types(dtype, torch.float32)
    gain, bias = (0.5 + torch.rand(1, 3, generator=draw).to(wide) for _ in range(2))
    inputs = [tensor.requires_grad_() for tensor in (maps, gain, bias)]
    out, mean, var = batch_norm_in_training(maps, gain, bias, 1e-5, group)
    gradients = torch.autograd.grad(out, inputs, upstream)
    values = {"out": out, "of_maps": gradients[0], "of_gain": gradients[1], "of_bias": gradients[2]}
    return {name: value.detach() for name, value in (values | {"mean": mean, "var": var}).items()}


def fetched(accelerator: Accelerator) -> dict[str, Tensor]:
    """What is logged of a scalar that is the number of the process."""
    values = fetch(accelerator, {"rank": torch.tensor(float(accelerator.process_index))})
    return {name: torch.tensor(value) for name, value in values.items()}


def new_run(argv: list[str], setting: str) -> Run:
    return set_up(*parse_arguments([*argv, "--cross_replica_batch_norm", setting]))


def statistics(argv: list[str]) -> dict[str, Tensor]:
    """The running statistics of a run after two steps, (processes, channels), and means of 0 and 1 over processes."""
    run = new_run(argv, "off")
    gather, generator = run.accelerator.gather, run.players.bare_generator
    train_step(run)
    train_step(run)
    networks = {"generator": generator, "ema": run.ema}
    kept = {f"{name}.{key}": gather(value[None].contiguous()) for name, network in networks.items()
            for key, value in network.named_buffers() if "running" in key}  # fmt: skip
    generator.output_bn.running_mean.fill_(run.accelerator.process_index)
    average_running_statistics(generator)
    return {**kept, "mean": gather(generator.output_bn.running_mean[None])}


def joined(argv: list[str], setting: str) -> Tensor:
    """
    (processes, channels): the last batch norm's running mean, which was the number of the process, after a forward of
    a run's generator, in which each process has latents of its own.
    """
    run = new_run([*argv, "--output_dir", f"{argv[argv.index('--output_dir') + 1]}-{setting}"], setting)
    mean, latents = run.players.bare_generator.output_bn.running_mean, run.batches.latents(0, 0)
    mean.fill_(run.accelerator.process_index)
    run.players.generator(latents.z, latents.class_labels)
    return run.accelerator.gather(mean[None].contiguous())


def main(path: str, *argv: str) -> None:
    """What the processes of a launch do: each case of the test, written by the first of them."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    cases = {2: two_processes, 4: four_processes}[accelerator.num_processes]
    results = cases(accelerator, list(argv))
    if accelerator.is_main_process:
        torch.save(results, path)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # or gloo's threads may abort a process at its exit


def gathered(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of all processes, (processes, …)."""
    return {name: accelerator.gather(value[None].contiguous()) for name, value in values.items()}


def two_processes(accelerator: Accelerator, argv: list[str]) -> dict[str, dict[str, Tensor]]:
    played = {
        f"{loss}-{batch_norm}-{accumulation}": play(accelerator, accumulation, batch_norm, Objective(loss=loss))
        for loss in LOSSES
        for batch_norm in ("fixed", "on")
        for accumulation in (1, 2)
    }
    return {
        **played,
        "penalised-fixed-2": play(accelerator, 2, "fixed", PENALISED),
        "exchanged-1": exchanged(accelerator, 1),
        "exchanged-2": exchanged(accelerator, 2),
        "bfloat16": gathered(accelerator, batch_norm(accelerator.process_index, 2, torch.bfloat16, dist.group.WORLD)),
        "fetched": gathered(accelerator, fetched(accelerator)),
        "statistics": statistics(argv),
        "joined": {setting: joined(argv, setting) for setting in ("on", "off")},
    }


def four_processes(accelerator: Accelerator, argv: list[str]) -> dict[str, dict[str, Tensor]]:
    return {"pairs": play(accelerator, 1, "2", Objective()), "joined": {"2": joined(argv, "2")}}


if __name__ == "__main__":
    main(*sys.argv[1:])
