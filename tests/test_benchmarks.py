"""The benchmarks at sizes where they take a second: what they compare, refuse and write. No time is asserted."""

import argparse
import contextlib
import copy
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from common import ATTENTION, Operations, tiles_from, tiny_discriminator, tiny_generator, tiny_inputs
from torch import Tensor, nn

from biggan_hf import layers, winograd
from biggan_hf.kernels import kept_kernels
from biggan_hf.onednn import can_pack, product
from biggan_hf.training.arguments import TrainingArguments


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import first_image  # noqa: E402
import measuring  # noqa: E402
import peers  # noqa: E402
import resampling  # noqa: E402
import rules  # noqa: E402
import sampling  # noqa: E402
import saved_memory  # noqa: E402
import scaling  # noqa: E402
import training  # noqa: E402


CPU = torch.device("cpu")
CHECKOUT = os.environ.get("BIGGAN_PYTORCH")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="the environment variable BIGGAN_PYTORCH names no checkout of BigGAN-PyTorch"
)
needs_package = pytest.mark.skipif(
    find_spec("pytorch_pretrained_biggan") is None, reason="pytorch-pretrained-biggan, of the extra bench, is missing"
)
SIDE = {
    *("program", "setting", "seconds", "median_seconds", "images_per_second", "flops", "tflops_per_second"),
    *("share_of_matrix_rate", "peak_memory_bytes"),
}


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measuring.MATRIX_SIZE, "cpu", 32)


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


def test_work_of_onednn_is_counted() -> None:
    left, right = torch.ones(2, 3), torch.ones(5, 3)
    assert measuring.count_flops(lambda: product(left, right)) == 2 * 2 * 3 * 5
    model = tiny_generator().eval().requires_grad_(False)
    latents, labels = torch.randn(2, model.config.z_dim), torch.tensor([0, 1])
    counts = []
    for gradients in (False, True):  # with gradients nothing is packed
        with torch.set_grad_enabled(gradients):
            model(latents, labels)
            counts.append(measuring.count_flops(lambda: model(latents, labels)))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (torch.tensor([0.0, 1.001]), "differ by 0.001"),
        (torch.tensor([0.0, float("nan")]), "differ by nan"),
        (torch.zeros(3), "shapes"),
    ],
)
def test_two_functions_are_refused(ours: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measuring.require_same(ours, torch.tensor([0.0, 1.0]), "images")


def test_constant_answers_show_nothing() -> None:
    with pytest.raises(ValueError, match="constant"):
        measuring.require_same(torch.ones(4), torch.ones(4), "images")


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


@pytest.mark.parametrize("script", [sampling, training, scaling, saved_memory, resampling, rules])
def test_help(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0 and "--channels" in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("kept")
    with pytest.raises(FileExistsError, match=r"kept\.json"):
        scaling.main(["--device", "cpu", "--json", str(tmp_path / "kept.json")])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scaling.main(["--device", "cpu", "--plot", str(tmp_path / "nowhere" / "x.png")])
    assert (tmp_path / "kept.json").read_text() == "kept"


@pytest.mark.parametrize(("option", "name", "suffix"), [("--plot", "x.foo", ".png"), ("--json", "x.png", ".json")])
def test_names_of_results(option: str, name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"must be a {suffix} file, got '.*{name}'"):
        scaling.main(["--device", "cpu", option, str(tmp_path / name)])
    assert not any(tmp_path.iterdir())


def test_a_preset_has_its_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--biggan_pytorch", "nowhere", "--preset", "cifar10", "--image_size", "128"])
    assert "argument --image_size: not allowed with argument --preset" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["meta", "foo"])
def test_unusable_device(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--device", device])
    assert f"error: argument --device: expected cpu or cuda, got '{device}'" in capsys.readouterr().err


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


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


def test_images_are_compared_without_tf32(tmp_path: Path) -> None:
    pair, seen = pair_of_copies(tmp_path), []

    def sample(network: Any, latents: Tensor, labels: Tensor) -> Tensor:
        seen.append(tf32())
        return network(latents, labels).images

    pair.sample_ours = pair.sample_theirs = sample
    with measuring.tensor_float32(True):
        sampling.check_outputs(pair, CPU)
        assert seen == [(False, False)] * 2 and tf32() == (True, True)


class Peer(nn.Module):
    """Our generator, called as that of BigGAN-PyTorch is."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.shared = model, model.class_embedding

    def forward(self, latents: Tensor, embeddings: Tensor) -> Tensor:
        return self.model(latents, class_embeddings=embeddings).images


def test_first_images_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of_copies(tmp_path)
    pair.ours.save_pretrained(tmp_path / "ours")

    def run_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            first_image.main(command[2:])
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", run_here)
    monkeypatch.setattr(first_image, "import_checkout", lambda *_: None)
    monkeypatch.setattr(first_image, "load_biggan_pytorch", lambda *_: Peer(pair.theirs))
    asked = options(repeats=1, biggan_pytorch=tmp_path)
    assert sampling.measure_first_image(pair, asked)["largest_difference"] < measuring.TOLERANCE
    pair.theirs.get_parameter("output_bn.bias").data.add_(0.01)
    with pytest.raises(ValueError, match="the first images of biggan_hf and copy differ by"):
        sampling.measure_first_image(pair, asked)


def test_what_is_compiled_makes_no_kernels(tmp_path: Path) -> None:
    graphs: list[set[str]] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append({node.name for node in graph.graph.nodes})
        return graph

    torch._dynamo.reset()  # what was compiled before in this process
    pair = pair_of_copies(tmp_path)
    pair.ours.compile(backend=backend)
    inputs = peers.draw(pair.ours.config, 2)
    _, images = sampling.contestant("ours", pair.ours, pair.sample_ours, inputs, "", 0)
    assert len(graphs) == 1 and not any("u0" in name for name in graphs[0])
    with torch.no_grad():
        torch.testing.assert_close(pair.ours(*inputs).images, images)
    assert any("u0" in name for name in graphs[1])  # the forward alone takes power iterations


def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no pair be built."""

    def refuse(*_: object) -> None:
        raise AssertionError("a pair was built before everything was checked")

    monkeypatch.setattr(sampling, "build_pair", refuse)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_size", "32"], "has generators of 128, 256 and 512 pixels, got 32; --peers BigGAN-PyTorch leaves"),
        (["--peers", "BigGAN-PyTorch", "--image_size", "100"], "unknown preset 'biggan-100'"),
        (["--peers", "pytorch-pretrained-biggan", "--first_image"], "--first_image is measured beside BigGAN-PyTorch"),
    ],
)
def test_what_no_peer_can_do_is_refused_at_once(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_work(monkeypatch)
    with pytest.raises(ValueError, match=message):
        sampling.main([*arguments, "--device", "cpu"])


@needs_package
def test_a_missing_checkout_is_told_before_the_other_peer_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    without_work(monkeypatch)
    with pytest.raises(FileNotFoundError, match="--biggan_pytorch must be a checkout"):
        sampling.main(["--device", "cpu"])


@needs_package
def test_pretrained_biggan(tmp_path: Path) -> None:
    arguments = ["--peers", "pytorch-pretrained-biggan", "--channels", "4", "--batch_sizes", "1", "--repeats", "1"]
    sampling.main([*arguments, "--device", "cpu", "--json", str(tmp_path / "x.json")])
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["largest_difference"] < measuring.TOLERANCE
    assert result["theirs"]["program"] == "pytorch-pretrained-biggan"


def test_layout_of_pretrained_biggan() -> None:
    config = peers.pretrained_biggan_config(128, None)
    settings = peers.pretrained_biggan_settings(config)
    assert [layer[1] for layer in settings["layers"]] == [16, 16, 16, 16, 8, 8, 4, 4, 2, 2]
    assert settings["layers"][-1] == [True, 2, 1] and settings["attention_layer_position"] == 8


# Resampling


def test_resampling_beside_the_plain_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "SECONDS", 0.0)
    flags = ["--presets", "demo", "--batch_sizes", "1", "--repeats", "1", "--device", "cpu"]
    resampling.main([*flags, "--json", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]
    found = {(row["what"], row["resample"], row["size"]) for row in rows}
    sizes = [("up", 4), ("up", 8), ("up", 16), ("down", 32), ("down", 16)]
    assert found == {(what, *place) for what in ("sampling", "training") for place in sizes}
    for row in rows:
        assert row["largest_difference"] < measuring.TOLERANCE
        assert row["ratio"] == row["plain_seconds"] / row["seconds"] > 0
    printed = capsys.readouterr().out.strip().splitlines()[2:]
    (sampled,) = (row for row in rows if (row["what"], row["resample"], row["size"]) == ("sampling", "up", 16))
    assert len(printed) == len(sizes) and any(f"| 16 | {sampled['ratio']:.2f} |" in line for line in printed)


def test_resampling_that_is_not_the_plain_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling.Plain, "forward", lambda self, maps: self.conv(maps)[..., ::2, ::2])
    command = ["--presets", "demo", "--what", "training", "--batch_sizes", "1", "--device", "cpu"]
    with pytest.raises(ValueError, match="the forms of training, Place"):
        resampling.main(command)
    monkeypatch.undo()
    whole = resampling.Plain.forward  # whose gradient is half
    monkeypatch.setattr(resampling.Plain, "forward", lambda self, x: (whole(self, x) + whole(self, x).detach()) / 2)
    with pytest.raises(ValueError, match="the forms of training, Place"):
        resampling.main(command)


# Rules


def test_both_forms_of_every_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "SECONDS", 0.0)
    small = {name: rule._replace(sizes=[(16, 6)]) for name, rule in rules.RULES.items()}
    monkeypatch.setattr(rules, "RULES", small)
    lines, outputs = (layers.PRODUCT_CHANNELS, layers.PART_KEYS, winograd.TILES), []

    def timed(compute: Any, device: torch.device) -> Any:
        outputs.append(compute()[0].detach().clone())
        return measuring.timed(compute, device)

    monkeypatch.setattr(resampling, "timed", timed)
    rules.main(["--batch_sizes", "1", "--repeats", "1", "--device", "cpu", "--json", str(tmp_path / "x.json")])
    assert lines == (layers.PRODUCT_CHANNELS, layers.PART_KEYS, winograd.TILES)
    rows = json.loads((tmp_path / "x.json").read_text())["results"]
    assert [(row["rule"], row["what"]) for row in rows] == [(name, use) for name in small for use in small[name].uses]
    assert all(row["largest_difference"] < measuring.TOLERANCE and row["ratio"] > 0 for row in rows)
    assert rows[4]["largest_difference"] > 0  # one form would be the same as itself
    for ours, theirs in zip(outputs[::2], outputs[1::2], strict=True):  # what is timed is what was compared
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    printed = capsys.readouterr().out.strip().splitlines()[2:]
    assert [line.split(" | ")[0] for line in printed] == [f"| {name}" for name in small]
    assert printed[2] == f"| tiles | 16 | 6 | {rows[4]['ratio']:.2f} | – |"


@pytest.mark.skipif(not can_pack(torch.ones(1)), reason="this torch has no packed convolutions for this CPU")
@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("product, up", "col2im"),
        ("product, down", "im2col"),
        ("tiles", "_linear_pointwise"),
        ("attention in parts", "_linear_pointwise"),
    ],
)
@torch.no_grad()
def test_only_one_form_of_a_rule_is_the_other(name: str, operation: str) -> None:
    rule, below, above = rules.RULES[name], Operations(), Operations()
    layer, maps = rule.build(16).eval(), torch.randn(1, 16, 6, 6)
    for line, operations in ((1, above), (2**30, below)):
        form = rules.Form(copy.deepcopy(layer), rule, line)
        with kept_kernels(form), operations:
            form(maps)
    assert operation in above.names and operation not in below.names


@pytest.mark.skipif(not can_pack(torch.ones(1)), reason="this torch has no packed convolutions for this CPU")
@pytest.mark.parametrize("has_cpu_forms", [True, False])
@torch.no_grad()
def test_work_is_that_of_the_form(has_cpu_forms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels=1)
    monkeypatch.setattr(winograd, "TILES", 257)  # a map of 32x32 pixels has 256
    model = tiny_generator().eval()
    latents, labels = tiny_inputs(model)
    batches = [(latents[:number], labels[:number]) for number in (1, 3)]  # type: ignore[index]
    one, three = (sampling.flops_of(model, lambda m, *x: m(*x).images, inputs, has_cpu_forms) for inputs in batches)
    assert three < 3 * one if has_cpu_forms else three == 3 * one


def test_rules_are_of_float32_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="the rules are of float32 on a CPU, got bfloat16 on cpu"):
        rules.main(["--device", "cpu", "--dtype", "bfloat16"])


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
def test_training_with_other_losses_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = training.write_biggan_pytorch

    def write_two_functions(checkout: Path, config: Any, folder: Path, discriminator: bool) -> None:
        write(checkout, config, folder, discriminator)
        path = folder / "theirs" / "D.pth"
        state = torch.load(path)
        state["linear.bias"] += 0.1
        torch.save(state, path)

    monkeypatch.setattr(training, "write_biggan_pytorch", write_two_functions)
    with pytest.raises(ValueError, match="the losses of biggan_hf and BigGAN-PyTorch differ"):
        training.main(["--biggan_pytorch", str(CHECKOUT), *TRAINING])


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
        seen.append(tf32())
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
    scaling.main(
        [*TINY, "--batch_sizes", "2", "3", "--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    )
    rows = json.loads((tmp_path / "x.json").read_text())["results"]
    assert [(row["what"], row["batch_size"]) for row in rows] == [
        *(("sampling", 2), ("sampling", 3)),
        *(("training", 2), ("training", 3)),
    ]
    assert all(row["seconds_per_image"] * row["batch_size"] == pytest.approx(row["seconds"][0]) for row in rows)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + len(rows)


def test_every_size_is_checked_before_the_first_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "measure_all", None)
    with pytest.raises(ValueError, match="unknown preset 'biggan-33'"):
        scaling.main([*TINY, "--image_sizes", "32", "33"])


def test_one_quantity_at_a_time() -> None:
    given = {"image_sizes": [64, 32], "batch_sizes": [8, 1], "channels": [32], "num_processes": [1, 2]}
    found = scaling.points(argparse.Namespace(what=["sampling"], **given))
    places = [(p.image_size, p.batch_size, p.channels, p.num_processes) for p in found]
    assert places == [(64, 8, 32, 1), (32, 8, 32, 1), (64, 1, 32, 1), (64, 8, 32, 2)]


def test_fewer_processes_than_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match="2 processes were asked for, and 1 started"):
        scaling.measure(scaling.Point("sampling", 32, 1, 4, 2), Accelerator(cpu=True), 1)


def test_scaling_over_processes(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    scaling.main([*TINY, "--batch_sizes", "2", "--num_processes", "2", "1", "--threads", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["results"]
    assert [row["num_processes"] for row in rows] == [2, 1, 2, 1]
    assert rows[0]["images_per_second"] * rows[0]["seconds"][0] == pytest.approx(4)


def test_saved_memory_counts_what_is_kept_but_no_parameter() -> None:
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    assert saved_memory.saved_bytes(layer, lambda: layer(x).exp()) == 4 * (7 * 3 + 7 * 5)
