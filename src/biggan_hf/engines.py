"""
The generator in ONNX Runtime or OpenVINO, on a CPU. `exporting.py` writes the folders that are read here.

The folder of an engine, `onnx/` or `openvino/`, lies beside the model's `config.json`. A graph has these inputs, and
only those that the model has a use for; N is any number of samples:

    latents            float32 (N, z_dim)
    class_labels       int64 (N,); -1 for a sample whose class is a row of class_embeddings
    class_embeddings   float32 (N, class_embedding_dim), or (N, num_labels) weights without a shared embedding
    standing_rows      int64 (2,): rows of the table of statistics. Row 0 holds the running statistics, row i + 1 those
                       of `config.standing_truncations[i]`
    standing_fraction  float32 (), 0 to 1: how far to go from the first of the two rows to the second

and one output, `images`, float32 (N, num_channels, image_size, image_size) in [-1, 1].
"""

import json
import queue
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn
from transformers.utils import cached_file, logging

from .configuration_biggan import BigGANConfig
from .files import checksum_of_file, checksum_of_weights, write_text
from .latents import standing_row
from .layers import OneHotLabels
from .loading import PLACE, NotFiniteError
from .sampling_biggan import SamplingMixin


logger = logging.get_logger(__name__)

Engine = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]

# The engines with files of their own, the fastest first, and the package that runs each.
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
# The precisions of each engine, each in front of the one that takes its place where the processor lacks it.
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "openvino": ("int8", "bf16", "fp32"),
    "onnx": ("int8", "fp32"),
    "torch": ("bf16", "fp32"),
}
# What is known of an engine's files: for each precision the file, its size, its check, and the weights it was made of.
INDEX = "export.json"
EMBEDDINGS = "class_embeddings.npy"  # float32 (num_labels, class_embedding_dim), to mix classes


def check_engine(engine: str, precision: str) -> None:
    """Raises `ValueError` for an unknown engine or precision, or an engine that lacks the precision."""
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {', '.join(get_args(Engine))} or auto, got {engine!r}")
    if precision not in PRECISIONS[engine]:
        of_engine = ", ".join(reversed(PRECISIONS[engine]))
        raise ValueError(f"the engine {engine} computes in {of_engine}, got precision={precision!r}")


def check_installed(engine: str, package: str | None = None) -> None:
    """Raises `ImportError` if a package of an engine is not installed: by default the one that runs it."""
    package = package or PACKAGES.get(engine)
    if package is not None and find_spec(package) is None:
        raise ImportError(
            f'engine {engine!r} needs the package {package}: pip install "biggan_hf[{engine}]"', name=package
        )


def best_engine(precision: str = "fp32") -> str:
    """The fastest engine of those that are installed and have the precision: on a GPU torch."""
    if torch.cuda.is_available() and precision in PRECISIONS["torch"]:
        return "torch"
    installed = [engine for engine in PACKAGES if find_spec(PACKAGES[engine]) and precision in PRECISIONS[engine]]
    return [*installed, "torch"][0]


def file_of(engine: str, precision: str) -> str:
    """The name of a graph within the folder of its engine."""
    suffix = "" if precision == "fp32" else f"_{precision}"
    return f"model{suffix}.onnx" if engine == "onnx" else f"openvino_model{suffix}.xml"


def load_engine(source: str, engine: str, precision: str, **kwargs: Any) -> "EngineModel":
    """
    The graph of a folder or a Hub repository; where there is none, one that is exported now, into the cache.

    Args: as for `BigGANPipeline.from_pretrained`.
    """
    check_installed(engine)
    fetch = partial(_fetched, source, {name: kwargs[name] for name in PLACE if name in kwargs})
    index = fetch(f"{engine}/{INDEX}")
    entry = None if index is None else read_index(index.parent).get(precision)
    if entry is not None:
        for name in [*files_of(entry), EMBEDDINGS]:
            fetch(f"{engine}/{name}")
        config = fetch("config.json")
        if config is None:
            raise FileNotFoundError(f"{source!r} has no config.json")
        return EngineModel(config.parent, engine, precision)
    return _exported_now(source, engine, precision, fetch, kwargs)


def _exported_now(
    source: str, engine: str, precision: str, fetch: Callable[[str], Path | None], kwargs: dict[str, Any]
) -> "EngineModel":
    from .exporting import export_model  # here: both need what a graph at hand does without
    from .modeling_biggan import BigGANModel

    model = None
    if fetch("model.safetensors") is None:  # in shards, which a load brings here, or not there
        model = BigGANModel.from_pretrained(source, **kwargs)
    config = fetch("config.json")
    weights = None if config is None else checksum_of_weights(config.parent)
    if weights is None:
        raise ValueError(f"{source!r} has no weights in safetensors, of which a graph could be exported")
    cache = Path(HF_HOME) / "biggan_hf" / f"{weights}-{version('biggan_hf')}"
    if precision not in read_index(cache / engine):
        logger.warning(f"exports {source!r} for {engine} in {precision}, once, to {str(cache)!r}")
        model = model or BigGANModel.from_pretrained(source, **kwargs)
        return export_model(model, cache, engine, precision, weights=weights)
    return EngineModel(cache, engine, precision)


def _fetched(source: str, place: Mapping[str, Any], name: str) -> Path | None:
    # A file of a folder or repository, by its place on this machine; `None` if it is not there.
    try:
        found = cached_file(source, name, **place)
    except OSError:
        return None
    return None if found is None else Path(found)


def files_of(entry: Mapping[str, Any]) -> list[str]:
    """The names of a graph's files, within the folder of its engine."""
    name = entry["file"]
    return [name, f"{Path(name).stem}.bin"] if name.endswith(".xml") else [name]


class EngineModel(SamplingMixin):
    """
    The generator as an engine computes it. It samples as `BigGANModel` does, from several threads at once, on the CPU.

    Args:
        folder: Holds `config.json`, and the engine's folder.
        engine: "onnx" or "openvino".
        precision: One that was exported.

    Raises:
        ImportError: The engine is not installed.
        FileNotFoundError: The folder holds no such export.
        ValueError: The export was made of other weights than those that lie beside it, or is damaged.
    """

    config: BigGANConfig
    device = torch.device("cpu")
    dtype = torch.float32
    training = False

    def __init__(self, folder: str | PathLike[str], engine: str, precision: str):
        check_engine(engine, precision)
        check_installed(engine)
        self.folder, self.engine, self.precision = Path(folder), engine, precision
        self.config = BigGANConfig.from_pretrained(self.folder)
        index = read_index(self.folder / engine)
        if precision not in index:
            raise FileNotFoundError(f"{str(self.folder / engine)!r} holds no graph in {precision}")
        self.entry = index[precision]
        weights = checksum_of_weights(self.folder)
        if weights not in (None, self.entry["weights"]):
            raise ValueError(
                f"{str(self.folder / engine)!r} was exported from other weights than those in {str(self.folder)!r}; "
                f"`biggan-hf export {self.folder} --engine {engine} --precision {precision}` makes it anew"
            )
        self.saved_step: int | None = self.entry.get("global_step")
        _check_files(self.folder / engine, self.entry)
        self._run = _RUNNERS[engine](self.folder / engine / self.entry["file"], precision)
        self.class_embedding = _class_embedding(self.folder / engine, self.config)

    def _generate(
        self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None, truncation: float | None
    ) -> Tensor:
        feed = {"latents": _array(latents)}
        if self.config.num_labels:
            number, width = len(latents), class_width(self.config)
            feed["class_labels"] = np.full(number, -1) if labels is None else labels.long().cpu().numpy()
            feed["class_embeddings"] = (
                np.zeros((number, width), np.float32) if embeddings is None else _array(embeddings)
            )
        if self.config.standing_truncations:
            feed["standing_rows"], feed["standing_fraction"] = standing_inputs(self.config, truncation)
        images = torch.from_numpy(self._run({name: np.asarray(x, order="C") for name, x in feed.items()}))
        if not images.isfinite().all():
            raise NotFiniteError("the images hold numbers that are not finite")
        return images

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """None: the engine holds the weights."""
        return iter(())

    @contextmanager
    def folded_weights(self) -> Iterator[None]:
        """Nothing to do: the graph holds folded weights."""
        yield

    @property
    def computes(self) -> str:
        """What the images depend on besides weights and latents: "bf16 in openvino 2026.4.1"."""
        return f"{self._run.computes} in {self.engine} {version(PACKAGES[self.engine])}"

    def __repr__(self) -> str:
        return f"EngineModel({str(self.folder)!r}, engine={self.engine!r}, precision={self.precision!r})"


def _array(given: Tensor) -> np.ndarray:
    return given.detach().float().cpu().numpy()


def class_width(config: BigGANConfig) -> int:
    """The length of a class embedding; without a shared embedding the number of classes."""
    return config.class_embedding_dim if config.shared_class_embedding else config.num_labels or 0


def standing_inputs(config: BigGANConfig, truncation: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The inputs `standing_rows` and `standing_fraction` of a truncation; `None` selects the running statistics."""
    lower, upper, fraction = -1, -1, 0.0
    if truncation is not None:
        mirrored = config.standing_interpolation == "mirrored"
        lower, upper, fraction = standing_row(list(config.standing_truncations), truncation, mirrored)
    return np.array([lower + 1, upper + 1]), np.array(fraction, np.float32)


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of the graphs in an engine's folder, by precision; empty if there is no such folder."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if all(_is_entry(entry) for entry in index.values()):
            return index
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{str(path)!r} is no index of exported graphs; export the model anew")


def _is_entry(entry: Mapping[str, Any]) -> bool:
    are_names = all(Path(name).name == name for name in entry["crc32"])
    return are_names and "weights" in entry and {*files_of(entry)} <= entry["crc32"].keys()


def _check_files(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a file of a graph is not what was written: an engine would answer with other numbers."""
    for name, checksum in entry["crc32"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{str(folder / name)!r} is missing, which {INDEX} names; export the model anew")
        if checksum_of_file(folder / name) != checksum:
            raise ValueError(f"{str(folder / name)!r} is damaged: it is not what was written (CRC-32)")


def write_index(folder: Path, index: Mapping[str, Mapping[str, Any]]) -> None:
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _class_embedding(folder: Path, config: BigGANConfig) -> nn.Module | None:
    # Labels (N,) to rows (N, width), for mixtures of classes.
    if not config.num_labels:
        return None
    if not config.shared_class_embedding:
        return OneHotLabels(config.num_labels)
    return nn.Embedding.from_pretrained(torch.from_numpy(np.load(folder / EMBEDDINGS)))


# The engines: each is made of a graph's file, and turns inputs by name into images


class _OnnxRuntime:
    def __init__(self, path: Path, precision: str):
        import onnxruntime

        self.computes = precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # an error is raised, and need not be printed too
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        # The engine's own errors have no public type.
        except Exception as error:
            raise ValueError(f"{str(path)!r} can't be read: {_first_line(error)}") from error

    def __call__(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        try:
            return self._session.run(None, dict(feed))[0]
        except Exception as error:
            raise RuntimeError(_first_line(error)) from error


class _OpenVINO:
    def __init__(self, path: Path, precision: str):
        openvino = import_openvino()
        properties = openvino.properties
        core = openvino.Core()
        can_halve = "BF16" in core.get_property("CPU", properties.device.capabilities())
        if precision == "bf16" and not can_halve:
            logger.warning_once("this processor has no arithmetic in bf16; OpenVINO computes in fp32")
        self.computes = "fp32" if precision == "bf16" and not can_halve else precision
        # What int8 leaves in float is computed in bf16 where that is fast.
        number = openvino.Type.bf16 if precision != "fp32" and can_halve else openvino.Type.f32
        settings = {
            properties.hint.inference_precision(): number,
            properties.inference_num_threads(): torch.get_num_threads(),
            properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
        }
        try:
            self._compiled = core.compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"{str(path)!r} can't be read: {_first_line(error)}") from error
        # A request holds the maps of one call. Threads that call at once use one each.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        # `infer` does not raise where memory runs out: it gives the images of the call before. `wait` raises.
        request.start_async(dict(feed), share_inputs=True)
        request.wait()
        images = request.get_output_tensor(0).data.copy()
        self._idle.put(request)
        return images


def import_openvino() -> Any:
    """
    OpenVINO. By itself it reports every import and every conversion to its maker, and waits for the answer: so the
    package that reports can't be imported while OpenVINO is.
    """
    modules: dict[str, Any] = vars(sys)["modules"]
    before = {name: module for name, module in modules.items() if name == "openvino_telemetry"}
    modules["openvino_telemetry"] = None
    try:
        import openvino
    finally:
        del modules["openvino_telemetry"]
        modules.update(before)
    return openvino


_RUNNERS: dict[str, Any] = {"onnx": _OnnxRuntime, "openvino": _OpenVINO}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
