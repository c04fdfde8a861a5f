"""Sampling beside pytorch-pretrained-biggan and BigGAN-PyTorch: same weights, same inputs, outputs compared first.

python benchmarks/sampling.py --peers BigGAN-PyTorch --biggan_pytorch PATH --batch_sizes 1 8
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import (
    DTYPES,
    TOLERANCE,
    Contestant,
    Result,
    compare,
    count_flops,
    environment,
    matrix_product,
    output_of,
    parser,
    positive,
    profile,
    report,
    require_same,
    run,
    set_up,
    tensor_float32,
    timed,
    weigh,
)
from peers import (
    BIGGAN_PYTORCH,
    PRETRAINED_BIGGAN,
    Pair,
    Sample,
    biggan_pytorch_config,
    biggan_pytorch_pair,
    biggan_pytorch_settings,
    draw,
    import_checkout,
    import_pretrained_biggan,
    pretrained_biggan_config,
    pretrained_biggan_pair,
)
from torch import Tensor, nn
from transformers.utils import logging

from biggan_hf import BigGANConfig
from biggan_hf.eval_mode import fold


PEERS = (PRETRAINED_BIGGAN, BIGGAN_PYTORCH)

Inputs = tuple[Tensor, Tensor]


def architectures(args: argparse.Namespace) -> dict[str, BigGANConfig]:
    """Each peer's, in the order of measuring; raises where a peer is missing or can't build what is asked for."""
    if args.first_image and BIGGAN_PYTORCH not in args.peers:
        raise ValueError(f"--first_image is measured beside {BIGGAN_PYTORCH}, got --peers {' '.join(args.peers)}")
    configs = {}
    if PRETRAINED_BIGGAN in args.peers:
        configs[PRETRAINED_BIGGAN] = pretrained_biggan_config(args.image_size, args.channels)
        import_pretrained_biggan()
    if BIGGAN_PYTORCH in args.peers:
        configs[BIGGAN_PYTORCH] = biggan_pytorch_config(f"biggan-{args.image_size}", args.channels)
        biggan_pytorch_settings(configs[BIGGAN_PYTORCH])
        import_checkout(args.biggan_pytorch, "BigGAN")
    return configs


def build_pair(peer: str, config: BigGANConfig, args: argparse.Namespace, folder: Path) -> Pair:
    """Both programs with one set of weights, in float32 on the CPU."""
    if peer == BIGGAN_PYTORCH:
        return biggan_pytorch_pair(args.biggan_pytorch, config, folder)
    return pretrained_biggan_pair(config, folder)


@torch.no_grad()
def check_outputs(pair: Pair, device: torch.device) -> None:
    """Compares two images of each in float32; raises `ValueError` where they show two functions."""
    inputs = draw(pair.ours.config, 2, device)
    networks: list[nn.Module] = [pair.ours, pair.theirs]
    for network in networks:
        network.to(device)
    with tensor_float32(False):
        ours, theirs = pair.sample_ours(pair.ours, *inputs), pair.sample_theirs(pair.theirs, *inputs)
    require_same(ours, theirs, f"the images of biggan_hf and {pair.peer}")
    for network in networks:
        network.cpu()


def flops_of(network: nn.Module, sample: Sample, inputs: Inputs) -> int:
    """Of a run on the device of the inputs, by what one image takes."""
    latents, labels = inputs
    network.to(latents.device)
    flops = count_flops(lambda: sample(network, latents[:1], labels[:1]))
    network.cpu()
    return flops * len(labels)


def arrange(network: nn.Module, dtype: torch.dtype, args: argparse.Namespace) -> nn.Module:
    """Our network as the options ask for it."""
    if args.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if args.compile:
        network.compile(mode="reduce-overhead" if args.device.startswith("cuda") else None, dynamic=False)
    return network.to(dtype)


def contestant(
    name: str, network: nn.Module, sample: Sample, inputs: Inputs, setting: str, flops: int
) -> tuple[Contestant, Tensor]:
    """The network on the device of the inputs, weighed, and its images."""
    latents, labels = inputs
    device, dtype = latents.device, next(network.parameters()).dtype
    latents = latents.to(dtype)

    def build() -> Callable[[], Tensor]:
        network.to(device)
        fold(network)  # as a pipeline does at its first call; the network of another program has nothing to fold
        return lambda: sample(network, latents, labels)

    sample_once, memory = weigh(build, device)
    number, product = len(labels), matrix_product(device, dtype)
    ready = Contestant(name, setting, timed(sample_once, device), number, flops, product, memory)
    return ready, sample_once().float().cpu()


@torch.no_grad()
def measure_pair(pair: Pair, args: argparse.Namespace, device: torch.device) -> list[Result]:
    """A result a batch size, after the outputs were found to be the same."""
    check_outputs(pair, device)
    config = pair.ours.config
    batches = [draw(config, batch_size, device) for batch_size in args.batch_sizes]
    flops = [flops_of(pair.ours, pair.sample_ours, inputs) for inputs in batches]
    peer_flops = [flops_of(pair.theirs, pair.sample_theirs, inputs) for inputs in batches]
    ours = arrange(pair.ours, DTYPES[args.dtype], args)
    theirs = pair.theirs.to(DTYPES[args.peer_dtype])
    what = f"sampling {config.architecture}-{config.image_size}, ch {config.generator_base_channels}"
    is_exact = not args.tf32 and args.dtype == args.peer_dtype == "float32"
    results = []
    setting, peer_setting = settings_in_words(args)
    for inputs, work, peer_work in zip(batches, flops, peer_flops, strict=True):
        left, images = contestant("biggan_hf", ours, pair.sample_ours, inputs, setting, work)
        right, peer_images = contestant(pair.peer, theirs, pair.sample_theirs, inputs, peer_setting, peer_work)
        # What is timed is compared as well: exactly as fast paths and compilation leave it, or for the record.
        tolerance = TOLERANCE if is_exact else float("inf")
        difference = require_same(images, peer_images, f"the images of biggan_hf and {pair.peer}", tolerance)
        results.append(compare(what, left, right, args.repeats, difference))
        for side in (left, right) if args.profile else ():
            print(profile(side, device))
        ours.cpu(), theirs.cpu()
    return results


def settings_in_words(args: argparse.Namespace) -> tuple[str, str]:
    tf32 = " in TF32" if args.tf32 else ""
    options = [name for name in ("channels_last", "compile") if getattr(args, name)]
    precisions = [f"{dtype}{tf32 if dtype == 'float32' else ''}" for dtype in (args.dtype, args.peer_dtype)]
    return ", ".join([precisions[0], *options]), precisions[1]


# From a checkpoint to the first image


def in_new_process(pair: Pair, args: argparse.Namespace, name: str, *others: str) -> Callable[[], float]:
    """A program's run, which leaves its image beside its checkpoint; `name` is "ours" or "theirs"."""
    command = [sys.executable, str(Path(__file__).with_name("first_image.py")), str(pair.folder / name), *others]
    command += ["--config", str(pair.folder / "ours"), "--output", str(pair.folder / f"{name}.pt")]
    command += ["--device", args.device, "--threads", str(torch.get_num_threads()), *(["--tf32"] if args.tf32 else [])]

    return lambda: float(output_of("first_image.py", command).splitlines()[-1])


def measure_first_image(pair: Pair, args: argparse.Namespace) -> Result:
    """Both programs by turns, each time in a new process, the clock running from after the imports."""
    run_ours = in_new_process(pair, args, "ours")
    run_theirs = in_new_process(pair, args, "theirs", "--biggan_pytorch", str(args.biggan_pytorch))
    run_ours(), run_theirs()
    image, peer_image = (torch.load(pair.folder / f"{name}.pt") for name in ("ours", "theirs"))
    tolerance = float("inf") if args.tf32 else TOLERANCE
    difference = require_same(image, peer_image, f"the first images of biggan_hf and {pair.peer}", tolerance)
    ours = Contestant("biggan_hf", "from_pretrained", run_ours, 1)
    theirs = Contestant(pair.peer, "build, torch.load, load_state_dict", run_theirs, 1)
    config = pair.ours.config
    what = f"checkpoint to first image, {config.image_size} px, ch {config.generator_base_channels}"
    return compare(what, ours, theirs, args.repeats, difference)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="programs to measure beside")
    arguments.add_argument("--biggan_pytorch", type=Path, metavar="FOLDER", help="a checkout of BigGAN-PyTorch")
    arguments.add_argument("--batch_sizes", type=positive, nargs="+", default=[1, 8], help="images a run")
    arguments.add_argument("--image_size", type=int, default=128, help="pixels")
    arguments.add_argument("--channels", type=positive, help="base width (default: 96, and 128 in the deep model)")
    arguments.add_argument("--dtype", choices=DTYPES, default="float32", help="our precision")
    arguments.add_argument("--peer_dtype", choices=DTYPES, default="float32", help="the other program's precision")
    arguments.add_argument("--compile", action="store_true", help="compile our network; on a GPU with CUDA graphs")
    arguments.add_argument("--profile", action="store_true", help="print where the time of one more run goes")
    arguments.add_argument("--channels_last", action="store_true", help="our convolutions in channels-last layout")
    arguments.add_argument("--first_image", action="store_true", help="measure checkpoint to first image, too")
    args = arguments.parse_args(argv)
    device = set_up(args)
    logging.disable_progress_bar()
    results = []
    for peer, config in architectures(args).items():
        with tempfile.TemporaryDirectory() as folder, tensor_float32(args.tf32):
            pair = build_pair(peer, config, args, Path(folder))
            results += measure_pair(pair, args, device)
            if args.first_image and peer == BIGGAN_PYTORCH:
                results.append(measure_first_image(pair, args))
    report("sampling", results, environment(device, {PRETRAINED_BIGGAN} & {*args.peers}), args.json)


if __name__ == "__main__":
    run(main)
