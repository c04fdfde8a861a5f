"""The benchmarks at sizes where they take a second: what they compare, refuse and write. No time is asserted."""

import argparse
import contextlib
import copy
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from common import ATTENTION, tiny_discriminator, tiny_generator
from torch import Tensor
from transformers.utils import logging

from biggan_hf.training.arguments import TrainingArguments


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import engines  # noqa: E402
import first_image  # noqa: E402
import first_picture  # noqa: E402
import graphs  # noqa: E402
import layouts  # noqa: E402
import loading  # noqa: E402
import measuring  # noqa: E402
import memorised  # noqa: E402
import peers  # noqa: E402
import same_function  # noqa: E402
import sampling  # noqa: E402
import scaling  # noqa: E402
import training  # noqa: E402
import turns  # noqa: E402


CPU = torch.device("cpu")
CHECKOUT = os.environ.get("BIGGAN_PYTORCH")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="the environment variable BIGGAN_PYTORCH names no checkout of BigGAN-PyTorch"
)
needs_package = pytest.mark.skipif(
    find_spec("pytorch_pretrained_biggan") is None, reason="pytorch-pretrained-biggan, of the extra bench, is missing"
)
needs_engines = pytest.mark.skipif(
    not all(map(find_spec, ("onnxscript", "onnxruntime", "openvino"))), reason="an engine's package is missing"
)
SIDE = {
    *("program", "setting", "seconds", "median_seconds", "images_per_second", "flops", "tflops_per_second"),
    *("share_of_matrix_rate", "peak_memory_bytes"),
}


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(measuring.MATRIX_SIZE, "cpu", 32)
    yield
    logging.enable_progress_bar()  # which the programs turn off


def options(**changes: Any) -> argparse.Namespace:
    given = {
        **{"batch_sizes": [1, 2], "dtype": "float32", "peer_dtype": "float32", "repeats": 2, "device": "cpu"},
        **{"compile": False, "channels_last": False, "tf32": False, "profile": False},
    }
    return argparse.Namespace(**{**given, **changes})


# Measuring


def test_ratio_is_that_of_the_medians() -> None:
    assert measuring.ratio([1.0, 2.0, 3.0], [4.0, 4.0, 12.0]) == (2.0, 2.0, 4.0)


def test_runs_alternate_after_a_warm_up() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert measuring.alternate([lambda: run("a"), lambda: run("b")], 2, "") == [[3.0, 5.0], [4.0, 6.0]]
    assert "".join(order) == "ababab"


def test_multiplications_and_additions_count_separately() -> None:
    left, right = torch.ones(2, 3), torch.ones(3, 5)
    assert measuring.count_flops(lambda: left @ right) == 2 * 2 * 3 * 5
    query = torch.ones(1, 1, 4, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert measuring.count_flops(lambda: attend(query, query, query)) == 2 * (2 * 4 * 4 * 8)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([0.0, 1.001], [0.0, 1.0], "differ by 0.001"),
        ([0.0, float("nan")], [0.0, 1.0], "differ by nan"),
        ([0.0, 0.0, 0.0], [0.0, 1.0], "shapes"),
        ([1.0, 1.0], [1.0, 1.0], "constant"),  # which shows nothing
    ],
)
def test_two_functions_are_refused(ours: list[float], theirs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measuring.require_same(torch.tensor(ours), torch.tensor(theirs), "images")


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = measuring.Contestant("a", "float32", lambda: 0.5, 4, 10**12, lambda: 4e12, 2**30)
    theirs = measuring.Contestant("b", "bf16", lambda: 1.0, 4)
    where = measuring.environment(CPU, ["tqdm"])
    measuring.report("x", [measuring.compare("what", ours, theirs, 3, 0.25)], where, tmp_path / "x.json")
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert header.count("|") == row.count("|")
    for cell in ("| **2.00** (2.00–2.00) |", "| 2 (50%), – |", "| 1.00 GiB, not measured |", "| 8 |", "| b: bf16 |"):
        assert cell in row
    content = json.loads((tmp_path / "x.json").read_text())
    result = content["results"][0]
    assert result["ratio"] == 2 and result["largest_difference"] == 0.25
    assert result["ours"].keys() == result["theirs"].keys() == SIDE
    assert result["ours"]["seconds"] == [0.5] * 3 and result["theirs"]["flops"] is None
    assert {"device", "threads", "versions", "date", "command"} <= content["environment"].keys()
    assert content["environment"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--plot", "x.foo", r"must be a \.png file, got '.*x\.foo'"),
        ("--json", "x.png", r"must be a \.json file, got '.*x\.png'"),
        ("--json", "kept.json", r"kept\.json' exists already"),
        ("--plot", "nowhere/x.png", "there is no folder '.*nowhere'"),
    ],
)
def test_where_no_result_can_be_written(option: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("kept")
    with pytest.raises((OSError, ValueError), match=message):
        scaling.main(["--device", "cpu", option, str(tmp_path / name)])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("device", ["meta", "foo"])
def test_unusable_device(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--device", device])
    assert f"error: argument --device: expected cpu or cuda, got '{device}'" in capsys.readouterr().err


def test_a_process_that_has_ended_is_named() -> None:
    code = "print('ready', flush=True); print(int(input()) + 1)"
    with measuring.Worker("a counter", [sys.executable, "-c", code]) as worker:
        assert worker.answer() == "ready" and worker.ask("3") == "4"
        with pytest.raises(ValueError, match="a counter ended without an answer to 5"):
            worker.ask("5")


# Two checkouts of the project


VARIANT = "nothing conditions"


def test_another_function_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_side = same_function.run_side

    def without_another_process(checkout: Path, folder: Path, weights: Path, options: argparse.Namespace) -> None:
        if checkout != ROOT:
            return run_side(checkout, folder, weights, options)
        folder.mkdir()
        same_function.work(checkout, folder, weights, options.variants)

    monkeypatch.setattr(same_function, "run_side", without_another_process)
    assert same_function.main([str(ROOT), "--variants", VARIANT]) == 0
    printed = capsys.readouterr().out
    assert re.match(r"\d{3} tensors compared", printed) and printed.endswith("0 DIFFER\n")
    shutil.copytree(ROOT / "src" / "biggan_hf", tmp_path / "src" / "biggan_hf")
    file = tmp_path / "src" / "biggan_hf" / "modeling_biggan.py"
    file.write_text(file.read_text().replace("config.batch_norm_eps", "(1.01 * config.batch_norm_eps)"))
    assert same_function.main([str(ROOT), "--now", str(tmp_path), "--variants", VARIANT]) == 1
    differ = capsys.readouterr().out.partition(" DIFFER:\n")[2]
    for name in ("float32/eval/images", "float64/training/G/gradient/BigGANModel/linear.weight"):
        assert f"{VARIANT}: {name}\n" in differ
    assert "float64/eval/logits" not in differ  # the discriminator has no batch norm


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("float64/eval/images", [0.0, 1.0 + 1e-6], same_function.SAME),
        ("float64/eval/images", [0.0, 1.0 + 1e-5], same_function.DIFFERENT),
        ("float64/eval/images", [0.0, float("nan")], same_function.DIFFERENT),
        ("float64/eval/images", [0.0, 1.0, 1.0], same_function.DIFFERENT),
        ("float32/training/G/gradient/a.weight", [1.0, -1.001], same_function.ROUNDED),
        ("float32/training/G/gradient/a.weight", [1.0, -1.1], same_function.DIFFERENT),
        ("float64/training/G/gradient/a.weight", [1.0, -1.001], same_function.DIFFERENT),
        ("float32/training/G/gradient/a.bias", [-1e-7, 3e-7], same_function.BIAS),
        ("float32/training/G/gradient/a.bias", [1e-7, 2e-2], same_function.DIFFERENT),
    ],
)
def test_verdicts(name: str, value: list[float], verdict: str) -> None:
    before = {
        "float32/training/G/gradient/a.weight": torch.tensor([1.0, -1.0]),
        "float64/training/G/gradient/a.weight": torch.tensor([1.0, -1.0]),
        "float32/training/G/gradient/a.bias": torch.tensor([1e-7, 2e-7]),
        "float64/eval/images": torch.tensor([0.0, 1.0]),
    }
    found = same_function.compare("v", before, {**before, name: torch.tensor(value)})
    assert {c.name: c.verdict for c in found}[f"v: {name}"] == verdict
    missing = same_function.compare("v", before, {key: before[key] for key in before if key != name})
    assert {c.name: c.verdict for c in missing}[f"v: {name}"] == same_function.DIFFERENT


def test_two_checkouts_by_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["sample-1", "pipeline-1-bf16"]
    flags = ["--channels", "8", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    turns.main([str(ROOT), *flags, "--json", str(tmp_path / "x.json"), "--only", *only])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert [result["what"] for result in results] == only
    assert all(len(result[side]) == 1 for result in results for side in ("before", "now"))
    assert f"| {only[1]} |" in capsys.readouterr().out


@pytest.mark.parametrize("script", [same_function, turns])
def test_what_is_no_checkout_of_the_project_is_refused(script: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkout of the project with src/biggan_hf"):
        script.main([str(tmp_path)])


# Sampling


def pair_of_copies(tmp_path: Path) -> peers.Pair:
    """Our own generator in the place of a peer."""
    ours = tiny_generator(**ATTENTION)

    def sample(network: Any, latents: Tensor, labels: Tensor) -> Tensor:
        return network(latents, labels).images

    return peers.Pair("copy", ours, copy.deepcopy(ours), peers.sample_biggan_hf, sample, tmp_path)


def test_a_pair_is_measured_for_each_batch_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(dtype="bfloat16", channels_last=True, profile=True)
    results = sampling.measure_pair(pair_of_copies(tmp_path), asked, CPU)
    printed = capsys.readouterr().out
    assert printed.count("# of Calls") == 4 and "copy, float32, 2 images" in printed
    assert [result["images"] for result in results] == [1, 2]
    one, two = (result["ours"] for result in results)
    assert one["setting"] == "bfloat16, channels_last" and results[0]["theirs"]["setting"] == "float32"
    assert two["flops"] == 2 * one["flops"] > 0 and len(one["seconds"]) == 2
    assert results[0]["largest_difference"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pair_of_two_functions_is_not_measured(tmp_path: Path, dtype: str) -> None:
    pair = pair_of_copies(tmp_path)
    pair.theirs.get_parameter("output_bn.bias").data.add_(0.01)
    with pytest.raises(ValueError, match="images of biggan_hf and copy differ by"):
        sampling.measure_pair(pair, options(dtype=dtype), CPU)


def test_timed_images_are_compared_as_well(tmp_path: Path) -> None:
    pair = pair_of_copies(tmp_path)

    def sample(network: Any, latents: Tensor, labels: Tensor) -> Tensor:
        return network(latents, labels).images + 2e-4 * (len(labels) == 3)  # two are checked before

    pair.sample_theirs = sample
    with pytest.raises(ValueError, match="images of biggan_hf and copy differ by 0.0002, expected at most 0.0001"):
        sampling.measure_pair(pair, options(batch_sizes=[3]), CPU)
    (result,) = sampling.measure_pair(pair, options(batch_sizes=[3], tf32=True), CPU)  # for the record
    assert result["largest_difference"] > measuring.TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_size", "32"], "has generators of 128, 256 and 512 pixels, got 32; --peers BigGAN-PyTorch leaves"),
        (["--peers", "BigGAN-PyTorch", "--image_size", "100"], "unknown preset 'biggan-100'"),
        (["--peers", "pytorch-pretrained-biggan", "--first_image"], "--first_image is measured beside BigGAN-PyTorch"),
        pytest.param([], "--biggan_pytorch must be a checkout", marks=needs_package),
    ],
)
def test_what_no_peer_can_do_is_refused_at_once(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "build_pair", None)  # nothing may be built before everything is checked
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sampling.main([*arguments, "--device", "cpu"])


@needs_package
def test_pretrained_biggan(tmp_path: Path) -> None:
    arguments = ["--peers", "pytorch-pretrained-biggan", "--channels", "4", "--batch_sizes", "1", "--repeats", "1"]
    sampling.main([*arguments, "--device", "cpu", "--json", str(tmp_path / "x.json")])
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["largest_difference"] < measuring.TOLERANCE
    assert result["theirs"]["program"] == "pytorch-pretrained-biggan"


# Engines


def test_programs_are_laid_beside_the_first_and_their_own_graph() -> None:
    programs = [graphs.Program(*name.split()) for name in ("theirs torch fp32", "theirs onnx fp32", "ours onnx fp32")]
    measured = {"idle": [[8.0], [6.0], [2.0]], "busy": [[16.0], [12.0], [8.0]]}
    results = engines.results_of("x", "s", programs, [0.0, 1e-6, 1e-5], measured)
    assert [result["idle"]["beside_first"][0] for result in results] == [1, 8 / 6, 4]
    assert [result["idle"]["beside_same_graph"] for result in results] == [None, None, (3, 3, 3)]
    lines = engines.table(results).splitlines()
    assert {line.count("|") for line in lines} == {11}
    assert lines[-1].endswith("| 8000.0 ms | **2.00** (2.00–2.00) | **1.50** (1.50–1.50) | 4.00 | 1.0e-05 |")
    assert (
        engines.table(engines.results_of("x", "bytes", programs, [0.0] * 3, {"idle": [[2**21]] * 3})).count(
            "| 2.0 MiB |"
        )
        == 3
    )


def test_an_engine_that_computes_something_else_is_refused() -> None:
    programs = [
        graphs.Program(*name.split()) for name in ("theirs torch fp32", "ours onnx fp32", "ours openvino bf16")
    ]
    images = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    assert engines.differences(programs, [images, images, images + 2e-3])[2] == pytest.approx(2e-3, rel=1e-3)
    with pytest.raises(ValueError, match="images of ours onnx fp32 and theirs torch fp32 differ by 0.002"):
        engines.differences(programs, [images, images + 2e-3, images])
    with pytest.raises(ValueError, match="bf16 and theirs torch fp32 differ by 3.9 of their variance"):
        engines.differences(programs, [images, images, -images])


def test_the_guards_of_int8_that_noise_cannot_pass_exist() -> None:
    assert graphs.UNCHECKED.keys() <= vars(graphs.quantizing).keys()


def test_what_a_user_waits_for_and_pays(tmp_path: Path) -> None:
    model = tiny_generator(num_labels=3)
    model.save_pretrained(tmp_path / "ours")
    latents = torch.randn(2, model.config.z_dim)
    np.save(tmp_path / "z.npy", latents.numpy())
    program = graphs.Program("ours", "torch", "fp32")
    seconds, since_start, sampling = engines.from_start(
        program, tmp_path, tmp_path / "z.npy", tmp_path / "x.npy", asks=True
    )
    assert seconds > 0.1 and since_start > 2**26 and sampling > 2**26
    images = 2 * torch.from_numpy(np.load(tmp_path / "x.npy")) - 1
    expected = model(latents, torch.arange(2)).images.permute(0, 2, 3, 1)
    measuring.require_same(images, expected, "the images")


@needs_engines
@needs_package
@pytest.mark.slow  # makes seven graphs, and starts eight processes
def test_engines_beside_pretrained_biggan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--channels", "4", "--repeats", "1", "--busy", "1", "--busy_repeats", "1", "--threads", "1"]
    flags += ["--device", "cpu", "--rows", "deep-8", "--work", str(tmp_path / "graphs")]
    engines.main([*flags, "--json", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    told = capsys.readouterr()
    left_out = [line.partition(" is left out")[0] for line in told.err.splitlines() if " is left out: " in line]
    programs = [str(program) for program in graphs.PROGRAMS["biggan-deep"] if str(program) not in left_out]
    assert [result["program"] for result in results] == programs
    assert all(name.endswith("int8") for name in left_out)
    exact = [result["largest_difference"] for result in results if result["program"].endswith("fp32")]
    assert max(exact) < measuring.TOLERANCE
    assert results[-1]["busy"]["median"] > 0 and "| ours openvino bf16 |" in told.out
    engines.main(flags)  # with the same graphs
    assert "was exported" not in capsys.readouterr().err


@needs_engines
@needs_checkout
@pytest.mark.slow  # makes eight graphs, and starts more processes than that
def test_engines_beside_biggan_pytorch(tmp_path: Path) -> None:
    flags = ["--channels", "8", "--image_size", "32", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    flags += ["--rows", "batch-1", "first-image", "memory", "--biggan_pytorch", str(CHECKOUT)]
    engines.main([*flags, "--work", str(tmp_path / "graphs"), "--json", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert {result["what"].partition(", ")[2].partition(" w")[0] for result in results} >= {"batch 1", "memory"}
    beside = {result["program"] for result in results if result["idle"]["beside_same_graph"]}
    assert beside >= {"ours onnx fp32", "ours openvino fp32", "ours openvino bf16"}


@pytest.mark.slow  # starts a page
def test_first_picture_of_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    first_picture.main(["--models", "biggan_hf:fashion", "--engines", "torch", "--repeats", "2"])
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[:3] for row in table[1:]] == [["biggan_hf:fashion", "torch fp32", number] for number in ("1", "8")]
    assert all(0 < float(seconds) < 60 for row in table[1:] for seconds in row[3:])


def test_pictures_that_are_known_by_heart_are_seen() -> None:
    learnt, others, new = torch.randn(3, 400, 3, generator=torch.Generator().manual_seed(0))
    assert memorised.row("copies", learnt + 1e-4, learnt, others).startswith("| copies | 1.000 ± 0.000 | 0.00 |")
    share = float(memorised.row("draws", new, learnt, others).split()[3])
    assert abs(share - 0.5) < 3 * 0.025


# BigGAN-PyTorch


def test_a_checkout_leaves_no_modules_behind(tmp_path: Path) -> None:
    (tmp_path / "BigGAN.py").write_text("import utils, common\nfrom torchvision.transforms import Anything\n")
    (tmp_path / "utils.py").write_text("import torchvision, datasets as dset\nkinds = [dset.CIFAR10]\n")
    (tmp_path / "common.py").write_text("is_theirs = True\n")
    before, path = dict(sys.modules), list(sys.path)
    (program,) = peers.import_checkout(tmp_path, "BigGAN")
    assert program.common.is_theirs and program.utils.kinds == [object]
    assert sys.path == path
    assert sys.modules["common"] is before["common"]
    assert sys.modules.get("datasets") is before.get("datasets")
    assert not {"BigGAN", "utils", "torchvision"} & (sys.modules.keys() - before.keys())


@pytest.mark.parametrize("folder", [None, Path("nowhere")])
def test_no_checkout(folder: Path | None) -> None:
    with pytest.raises(FileNotFoundError, match="--biggan_pytorch must be a checkout"):
        peers.import_checkout(folder, "BigGAN")


@needs_checkout
def test_sampling_beside_biggan_pytorch(tmp_path: Path) -> None:
    arguments = ["--peers", "BigGAN-PyTorch", "--biggan_pytorch", str(CHECKOUT), "--image_size", "64"]
    arguments += ["--channels", "8", "--batch_sizes", "1", "--repeats", "1", "--device", "cpu"]
    sampling.main([*arguments, "--json", str(tmp_path / "x.json")])
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["largest_difference"] < measuring.TOLERANCE
    assert result["ours"]["flops"] < result["theirs"]["flops"]


@needs_checkout
def test_first_image(tmp_path: Path) -> None:
    config = peers.biggan_pytorch_config("biggan-32", 8)
    peers.write_biggan_pytorch(Path(str(CHECKOUT)), config, tmp_path, discriminator=False)
    images = []
    for name, checkout in (("ours", None), ("theirs", Path(str(CHECKOUT)))):
        torch.manual_seed(0)
        seconds, image = first_image.first_image(tmp_path / name, checkout, config, CPU)
        assert seconds > 0
        images.append(image)
    measuring.require_same(images[0], images[1], "the first images")


TRAINING = ["--preset", "cifar10", "--channels", "4", "--batch_size", "2", "--repeats", "1", "--device", "cpu"]


@needs_checkout
def test_training_beside_biggan_pytorch(tmp_path: Path) -> None:
    training.main(["--biggan_pytorch", str(CHECKOUT), *TRAINING, "--json", str(tmp_path / "x.json")])
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["largest_difference"] < training.ROUNDED
    assert result["images"] == 4 * 2 and result["ours"]["flops"] < result["theirs"]["flops"]


@needs_checkout
@pytest.mark.parametrize(
    ("setting", "factor", "message"),
    [("G_lr", 1.01, "the generator's images"), ("ema_decay", 0.9999, "the average's images")],
)
def test_training_with_another_update_is_not_measured(
    setting: str, factor: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(peers.OriginalTraining):
        def __init__(self, checkout: Any, source: Any, told: dict[str, Any], *others: Any):
            super().__init__(checkout, source, {**told, setting: factor * told[setting]}, *others)

    monkeypatch.setattr(training, "OriginalTraining", Other)
    with pytest.raises(ValueError, match=f"{message} of biggan_hf and BigGAN-PyTorch differ"):
        training.main(["--biggan_pytorch", str(CHECKOUT), *TRAINING])


@pytest.mark.parametrize("factor", [1.0, 1.003])
def test_losses_in_float32_are_compared_as_well(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own iteration in the place of the peer's, which differs in float32 alone."""
    tiny_generator().save_pretrained(tmp_path / "ours")
    network, accelerator = tiny_discriminator(), Accelerator(cpu=True)
    network.save_pretrained(tmp_path / "ours" / "discriminator")
    args = TrainingArguments(per_device_batch_size=3, num_discriminator_steps=1)
    seen = []

    def iterate(game: Any, dtype: torch.dtype, *inputs: Any) -> tuple[dict[str, Tensor], int]:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        answers, flops = training.iterate(accelerator, game, dtype, *inputs)
        return answers | {"losses": answers["losses"] * (factor if dtype == torch.float32 else 1)}, flops

    monkeypatch.setattr(training, "iterate_original", iterate)
    refused = pytest.raises(ValueError, match="the losses of biggan_hf and BigGAN-PyTorch differ by 0.00")
    with measuring.tensor_float32(True), refused if factor > 1 else contextlib.nullcontext():
        training.check_iteration(accelerator, training.Game(network.config, args, None, tmp_path, CPU))
    assert seen == [(False, False)] * 2


# Scaling

TINY = ["--channels", "4", "--image_sizes", "32", "--repeats", "1", "--device", "cpu"]


def test_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, picture = tmp_path / "x.json", tmp_path / "x.png"
    asked = [*TINY, "--batch_sizes", "2", "3", "--num_processes", "1", "2", "--threads", "1"]
    scaling.main([*asked, "--json", str(results), "--plot", str(picture)])
    rows = json.loads(results.read_text())["results"]
    points = [(row["what"], row["batch_size"], row["num_processes"]) for row in rows]
    assert points == [(what, *sizes) for what in ("sampling", "training") for sizes in ((2, 1), (3, 1), (2, 2))]
    for row, (_, batch_size, num_processes) in zip(rows, points, strict=True):
        assert row["images_per_second"] * row["seconds"][0] == pytest.approx(batch_size * num_processes)
        assert row["images_per_second"] * row["seconds_per_image"] == pytest.approx(1)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + len(rows)


def test_points_that_cannot_be_measured_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="2 processes were asked for, and 1 started"):
        scaling.measure(scaling.Point("sampling", 32, 1, 4, 2), Accelerator(cpu=True), 1)
    monkeypatch.setattr(scaling, "measure_all", None)  # every size is checked before the first is measured
    with pytest.raises(ValueError, match="unknown preset 'biggan-33'"):
        scaling.main([*TINY, "--image_sizes", "32", "33"])


# Loading


def test_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in loading.CONTESTANTS if name != "litdata"]
    sizes = "--image_size 16 --num_pictures 12 --batch_size 4 --batches 2 --rounds 1".split()
    loading.main([*sizes, "--json", str(tmp_path / "loading.json"), "--only", *names])
    assert [line.split(" | ")[0][2:] for line in capsys.readouterr().out.splitlines()[2:-2]] == names
    results = json.loads((tmp_path / "loading.json").read_text())["results"]
    assert [result["what"] for result in results] == names and results[0]["ratio"] == 1


def test_loading_of_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    black = itertools.repeat(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    monkeypatch.setitem(loading.CONTESTANTS, "litdata", lambda work: black)
    sizes = "--image_size 16 --num_pictures 12 --batch_size 4 --only litdata".split()
    with pytest.raises(ValueError, match="litdata gives other pictures: nothing is measured"):
        loading.main(sizes)


def test_both_memory_formats_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    layouts.main(["--preset", "demo", "--batch_size", "4", "--steps", "2"])
    told = capsys.readouterr().out
    assert re.search(r"^channels last \S+ s, otherwise \S+ s, CPU time of a step$", told, re.MULTILINE)
    assert re.search(r"^ratio \d+\.\d\d \(\S+ to \S+\)$", told, re.MULTILINE)
