"""The speed of this checkout beside another checkout of the project, by turns.

    python benchmarks/turns.py ../biggan_hf-before --threads 2

Both packages stay loaded, one in a process of its own each, and run one after the other. Each builds the same networks
with random weights. The speeds say nothing unless `same_function.py` finds that both compute the same.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from measuring import Result, Worker, alternate, device_name, environment, positive, ratio, run, set_up, timed, write
from torch import Tensor
from torch.nn import functional as F

import biggan_hf
from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel, BigGANPipeline


HERE = Path(__file__).resolve()


def work(checkout: Path, device: torch.device, channels: int | None) -> None:
    """Reads the name of a measurement a line, runs it once, and prints its seconds."""
    package = Path(biggan_hf.__file__ or "").resolve()
    if not package.is_relative_to(checkout.resolve()):
        raise ValueError(f"expected the package of {checkout}, and Python imports {package}")
    runs: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in runs:
            runs.clear()  # one network in memory at a time
            runs[name] = timed(MEASUREMENTS[name](device, channels), device)
        print(runs[name](), flush=True)


# What is measured: each builds its networks with the package of its process, and returns a run


def config_of(preset: str, channels: int | None) -> BigGANConfig:
    widths = {"generator_base_channels": channels, "discriminator_base_channels": channels} if channels else {}
    return BigGANConfig.preset(preset, initializer="normal", **widths)


def pipeline(batch_size: int, dtype: torch.dtype = torch.float32) -> Callable[..., Callable[[], object]]:
    def build(device: torch.device, channels: int | None) -> Callable[[], object]:
        torch.manual_seed(0)
        pipe = BigGANPipeline(BigGANModel(config_of("biggan-128", channels)).eval()).to(device, dtype)
        labels = list(range(batch_size))
        return lambda: pipe(labels, output_type="pt", progress_bar=False)

    return build


def sample(device: torch.device, channels: int | None) -> Callable[[], object]:
    torch.manual_seed(0)
    model = BigGANModel(config_of("biggan-128", channels)).eval().to(device=device)
    return lambda: model.sample([0])


def training(preset: str, batch_size: int, discriminator_steps: int) -> Callable[..., Callable[[], object]]:
    """An iteration: so many updates of the discriminator, and one of the generator, both by Adam."""

    def build(device: torch.device, channels: int | None) -> Callable[[], object]:
        torch.manual_seed(0)
        config = config_of(preset, channels)
        generator, discriminator = (
            network(config).train().to(device=device) for network in (BigGANModel, BigGANDiscriminator)
        )
        of_generator, of_discriminator = (
            torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.999))
            for network in (generator, discriminator)
        )
        pixels = 2 * torch.rand(batch_size, config.num_channels, config.image_size, config.image_size) - 1
        labels, pixels = torch.arange(batch_size, device=device) % (config.num_labels or 1), pixels.to(device)

        def generate() -> Tensor:
            return generator(torch.randn(batch_size, config.z_dim, device=device), labels).images

        def iterate() -> None:
            for _ in range(discriminator_steps):
                with torch.no_grad():
                    images = generate()
                of_discriminator.zero_grad()
                real, fake = discriminator(torch.cat([pixels, images]), labels.repeat(2)).logits.chunk(2)
                (F.relu(1 - real).mean() + F.relu(1 + fake).mean()).backward()
                of_discriminator.step()
            of_generator.zero_grad()
            discriminator.requires_grad_(False)
            (-discriminator(generate(), labels).logits.mean()).backward()
            discriminator.requires_grad_(True)
            of_generator.step()

        return iterate

    return build


MEASUREMENTS: dict[str, Callable[[torch.device, int | None], Callable[[], object]]] = {
    "pipeline-1": pipeline(1),
    "pipeline-8": pipeline(8),
    "pipeline-1-bf16": pipeline(1, torch.bfloat16),
    "sample-1": sample,
    "training-cifar10": training("cifar10", 50, 4),
    "training-128": training("biggan-128", 4, 1),
}


# By turns


def start(checkout: Path, options: argparse.Namespace) -> Worker:
    """This script under a checkout's package, in a process that waits for the name of a measurement."""
    if not (checkout / "src" / "biggan_hf").is_dir():
        raise ValueError(f"expected a checkout of the project with src/biggan_hf, got {str(checkout)!r}")
    command = [sys.executable, str(HERE), str(checkout), "--worker", "--device", options.device]
    command += ["--threads", str(torch.get_num_threads())]
    command += [] if options.channels is None else ["--channels", str(options.channels)]
    return Worker(f"the package of {checkout}", command, {"PYTHONPATH": str(checkout / "src")})


def measure(before: Worker, now: Worker, name: str, rounds: int) -> Result:
    old, new = alternate([lambda: float(before.ask(name)), lambda: float(now.ask(name))], rounds, name)
    middle, least, greatest = ratio(new, old)
    return {"what": name, "before": old, "now": new, "ratio": middle, "ratio_range": [least, greatest]}


def table(results: list[Result]) -> str:
    def milliseconds(seconds: list[float]) -> str:
        return f"{1000 * sorted(seconds)[len(seconds) // 2]:.4g}"

    rows = ["| what | before, ms | now, ms | before / now (range) |", "|---|---|---|---|"]
    for r in results:
        low, high = r["ratio_range"]
        cells = [r["what"], milliseconds(r["before"]), milliseconds(r["now"])]
        rows.append(f"| {' | '.join(cells)} | **{r['ratio']:.2f}** ({low:.2f}–{high:.2f}) |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("baseline", type=Path, metavar="CHECKOUT", help="the other checkout, with src/biggan_hf")
    arguments.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=[*MEASUREMENTS], help="what to measure")
    arguments.add_argument("--rounds", type=positive, default=7, help="runs of each side that count")
    arguments.add_argument("--channels", type=positive, help="base width (default: the preset's)")
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.add_argument("--device", type=device_name, default=usual, help="cpu or cuda")
    arguments.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
    arguments.add_argument("--json", type=Path, metavar="FILE.json", help="write all that was measured")
    arguments.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args(argv)
    device = set_up(options)
    if options.worker:
        return work(options.baseline, device, options.channels)
    with ExitStack() as stack:
        before, now = (
            stack.enter_context(start(checkout, options)) for checkout in (options.baseline.resolve(), HERE.parents[1])
        )
        results = [measure(before, now, name, options.rounds) for name in options.only]
    print(table(results))
    where = environment(device)
    print(f"{where['device']}, {where['threads']} threads, {where['versions']}, {where['date']}\n{where['command']}")
    write("turns", results, where, options.json)


if __name__ == "__main__":
    run(main)
