"""
What only a GPU shows: its kernels beside the CPU's in float64, folded weights and CUDA graphs that follow the weights,
training steps that never wait for the device.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from common import VARIANTS, tiny_config, tiny_discriminator, tiny_generator, tiny_inputs
from torch import Tensor, nn
from training_runs import arguments, read_log

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.layers import conv2d
from biggan_hf.spectral_norm import iterate_in_training
from biggan_hf.training import main, parse_arguments, set_up
from biggan_hf.training.ema import update_ema
from biggan_hf.training.loop import train_step


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

DEVICE = "cuda"
CHANNELS = [(3, 8), (24, 16), (1024, 32)]


@pytest.fixture(autouse=True)
def as_precise_as_it_gets(tf32_switches: Any) -> None:
    torch.manual_seed(0)


@pytest.fixture
def new_accelerator() -> Iterator[None]:
    """The precision of a process is set once."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def on_gpu(network: Any, dtype: torch.dtype | None = None, order: Any = torch.preserve_format) -> Any:
    """A copy there."""
    return copy.deepcopy(network).to(device=DEVICE, dtype=dtype, memory_format=order)


def with_gradients(module: nn.Module, inputs: Tensor, *others: Any) -> list[Tensor]:
    """The answer and the gradients of the input and all parameters, on the CPU."""
    leaf = inputs.clone().requires_grad_()
    out = module(leaf, *others)
    out = out if isinstance(out, Tensor) else next(iter(out.values()))
    upstream = torch.arange(out.numel(), dtype=out.dtype).cos().view_as(out).to(out.device)
    gradients = torch.autograd.grad((out * upstream).sum(), [leaf, *module.parameters()], allow_unused=True)
    return [x.detach().cpu() for x in (out, *gradients) if x is not None]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Relative to the largest value of each, or to one."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


# The same function as on a CPU


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_convolutions(resample: Any, order: torch.memory_format, channels: tuple[int, int]) -> None:
    layer = conv2d(*channels, 3, sn_eps=1e-6, resample=resample).double()
    maps = torch.randn(2, channels[0], 8, 8, dtype=torch.float64)
    moved = on_gpu(layer, order=order)
    for one in (layer, moved):
        iterate_in_training(one)
    expected = with_gradients(layer, maps)
    assert_same(with_gradients(moved, maps.to(DEVICE, memory_format=order)), expected, 1e-11)
    with torch.no_grad():
        ours = moved.eval()(maps.to(DEVICE, memory_format=order))
        assert_same([ours.cpu()], [layer.eval()(maps)], 1e-11)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator])
def test_networks(build: Callable[..., Any], variant: str, training: bool) -> None:
    on_cpu = build(**VARIANTS[variant]).double().train(training)
    inputs, labels = tiny_inputs(on_cpu)
    moved = on_gpu(on_cpu)
    expected = with_gradients(on_cpu, inputs.double(), labels)
    gpu_labels = None if labels is None else labels.to(DEVICE)
    assert_same(with_gradients(moved, inputs.double().to(DEVICE), gpu_labels), expected, 1e-9)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_samples(variant: str, dtype: torch.dtype, tolerance: float, order: torch.memory_format) -> None:
    on_cpu = tiny_generator(**VARIANTS[variant])
    latents, labels = tiny_inputs(on_cpu)
    moved = on_gpu(on_cpu, dtype, order)
    number = 1 if labels is not None else len(latents)
    expected = on_cpu.sample(labels, number, latents=latents)
    for _ in range(2):
        images = moved.sample(labels, number, latents=latents)
        assert images.dtype == dtype and images.is_contiguous()
        assert_same([images.cpu()], [expected], tolerance)


# Folded weights and CUDA graphs


def other_generator() -> BigGANModel:
    torch.manual_seed(1)
    return on_gpu(BigGANModel(tiny_config(**VARIANTS["attention"])))


def step_of_adam(model: BigGANModel, fused: bool | None = True) -> None:
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.Adam(model.parameters(), lr=0.1, fused=fused).step()


CHANGES: dict[str, Callable[[BigGANModel], object]] = {
    "in place": lambda model: model.get_parameter("stages.0.blocks.0.conv1.weight").detach().mul_(1.5),
    "state dict": lambda model: model.load_state_dict(other_generator().state_dict()),
    "average": lambda model: update_ema(model, other_generator(), 0.5),
    "fused Adam": step_of_adam,
    "Adam as it is by default": lambda model: step_of_adam(model, fused=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_pipeline_follows_the_weights(change: str) -> None:
    pipe = BigGANPipeline(on_gpu(tiny_generator(**VARIANTS["attention"])))
    latents, labels = tiny_inputs(pipe.model)
    options: dict[str, Any] = {"latents": latents, "output_type": "pt"}
    before = pipe(labels, **options).images
    CHANGES[change](pipe.model)
    after, fresh = pipe(labels, **options).images, BigGANPipeline(copy.deepcopy(pipe.model))(labels, **options).images
    assert torch.equal(after, fresh) and not torch.equal(after, before)


def test_cuda_graphs_follow_the_weights_and_keep_what_they_gave() -> None:
    plain = on_gpu(tiny_generator(**VARIANTS["attention"]))
    compiled = copy.deepcopy(plain)
    compiled.compile(mode="reduce-overhead", dynamic=False)
    given = []
    for seed in range(4):
        latents, labels = tiny_inputs(plain, seed=seed)
        if seed == 2:
            for model in (plain, compiled):
                CHANGES["in place"](model)
        given.append((compiled.sample(labels, latents=latents), plain.sample(labels, latents=latents)))
    for ours, expected in given:
        assert_same([ours.cpu()], [expected.cpu()], 1e-4)


def test_the_pipeline_compiles_with_cuda_graphs() -> None:
    plain = BigGANPipeline(on_gpu(tiny_generator(**VARIANTS["attention"])))
    compiled = BigGANPipeline(copy.deepcopy(plain.model)).compile(mode="reduce-overhead")
    latents, labels = tiny_inputs(plain.model, 9)
    options: dict[str, Any] = {"latents": latents, "batch_size": 4, "output_type": "pt"}
    ours, expected = (pipe(labels, **options).images.cpu() for pipe in (compiled, plain))
    assert_same([ours], [expected], 1e-4)


# Training


FLAGS: dict[str, list[str]] = {
    "float32": [],
    "bf16": ["--mixed_precision", "bf16"],
    "fp16": ["--mixed_precision", "fp16"],
    "channels_last": ["--channels_last"],
    "flips": ["--horizontal_flip", "--dataloader_num_workers", "2"],
    "diff_augment": ["--diff_augment"],
    "orthogonality": ["--generator_orthogonality", "0.1"],
    "two micro-batches": ["--global_batch_size", "8"],
}


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_steps_do_not_wait_for_the_device(pictures: Path, tmp_path: Path, flags: list[str]) -> None:
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model", *flags)))
    train_step(run)  # makes the optimisers' state
    steps = "error" if run.accelerator.scaler is None else "default"  # float16's scaler looks whether to step
    torch.cuda.set_sync_debug_mode(steps)
    try:
        metrics = train_step(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda for value in metrics.values())
    # float16's scaler starts at a factor that makes gradients overflow.
    assert run.accelerator.scaler is not None or all(value.isfinite() for value in metrics.values())


GRAPHS: dict[str, list[str]] = {
    "float32": [],
    "bf16": ["--mixed_precision", "bf16", "--channels_last"],
    "augmented": ["--diff_augment", "--horizontal_flip"],
    "two micro-batches": ["--global_batch_size", "8", "--power_iteration", "every_forward"],
    "R1": ["--r1_gamma", "1", "--r1_interval", "4"],
    "consistent": ["--consistency", "10"],
    "relativistic": ["--loss", "relativistic", "--r1_gamma", "1", "--r2_gamma", "1", "--r1_interval", "1"],
    "recomputed": ["--gradient_checkpointing"],
    "the average begins": ["--ema_start_step", "8", "--ema_decay", "0.9"],
}


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("flags", GRAPHS.values(), ids=GRAPHS)
def test_replayed_updates_are_those_of_a_run_without_graphs(
    pictures: Path, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    runs = {}
    for graphs in ("on", "off"):
        line = arguments(pictures, tmp_path / graphs, "--cuda_graphs", graphs, *flags, steps=20)
        runs[graphs] = run = set_up(*parse_arguments(line))
        metrics = [train_step(run) for _ in range(20)]
        assert (run.graphs.recorder is not None) == (graphs == "on")
        assert all(value.isfinite() for value in metrics[-1].values())
    for ours, theirs in zip(runs["on"].networks, runs["off"].networks, strict=True):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run(pictures: Path, tmp_path: Path, precision: str) -> None:
    main(arguments(pictures, tmp_path / "model", "--mixed_precision", precision))
    more = ["--mixed_precision", precision, "--resume_from_checkpoint", "latest"]
    main(arguments(pictures, tmp_path / "model", *more, steps=4))
    assert [line["step"] for line in read_log(tmp_path / "model")] == [1, 2, 3, 4]
    images = BigGANPipeline.from_pretrained(tmp_path / "model").to(DEVICE)(0, output_type="pt").images
    assert images.is_cuda and images.isfinite().all()
