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

import ctypes
import os
import queue
import shutil
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn
from transformers.utils import cached_file, logging

from .configuration_biggan import BigGANConfig
from .embedded import located
from .engine_files import EMBEDDINGS, INDEX, PACKAGES, check_graphs, of_weights, read_index, write_index
from .files import checksum_of_file, checksum_of_weights, staged_folder
from .finite import NotFiniteError
from .keywords import PLACE, check_keywords
from .latents import standing_row
from .layers import OneHotLabels
from .sampling_biggan import SamplingMixin


logger = logging.get_logger(__name__)

Engine = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]

# The precisions of each engine, each in front of the one that takes its place where the processor lacks it.
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "openvino": ("int8", "bf16", "fp32"),
    "onnx": ("int8", "fp32"),
    "torch": ("bf16", "fp32"),
}
# OpenVINO computes so many pixels in one call: 1 image of 128 px, 16 of 32 px.
PIXELS_AT_A_TIME = 2**14


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


def best_engine(precision: str = "fp32", device: str | None = None) -> tuple[str, bool]:
    """
    The fastest engine of those that are installed and have the precision, and whether it computes on a GPU, as torch
    does where there is one and `device` is not "cpu". A line says which.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available() and precision in PRECISIONS["torch"]
    installed = [engine for engine in PACKAGES if find_spec(PACKAGES[engine]) and precision in PRECISIONS[engine]]
    engine = "torch" if on_gpu else [*installed, "torch"][0]
    logger.warning(f"engine='auto': {engine} generates the images{', compiled, on the GPU' if on_gpu else ''}")
    return engine, on_gpu


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
        for name in entry["crc32"]:
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
    from .loading import settings_of
    from .modeling_biggan import BigGANModel

    model, config = None, fetch("config.json")
    # A load brings shards here, and knows what is wrong where there is nothing.
    if config is None or fetch("model.safetensors.index.json") is not None:
        model = BigGANModel.from_pretrained(source, **kwargs)
    fetch("model.safetensors")
    weights = None if config is None else checksum_of_weights(config.parent)
    if config is None or weights is None:
        settings_of(BigGANConfig, source, kwargs)  # says so of another program's checkpoint
        raise ValueError(
            f"{source!r} has no graph for {engine} in {precision}, and no weights in safetensors to export one from"
        )
    # Names of classes and the like may change, and the weights stay.
    cache = Path(HF_HOME) / "biggan_hf" / f"{weights}-{checksum_of_file(config)}-{version('biggan_hf')}"
    if precision not in read_index(cache / engine):
        logger.warning(f"exports {source!r} for {engine} in {precision}, once, to {str(cache)!r}")
        model = model or BigGANModel.from_pretrained(source, **kwargs)
        return export_model(model, cache, engine, precision, weights=weights)
    return EngineModel(cache, engine, precision)


def _fetched(source: str, place: Mapping[str, Any], name: str) -> Path | None:
    # A file of a folder or repository, by its place on this machine; `None` if it is not there.
    try:
        found = cached_file(located(source), name, **place)
    except OSError:
        return None
    return None if found is None else Path(found)


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
    _path_in_repo = ""

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
                f"`biggan-hf export {self.folder} --engine {engine} --precision {precision} --overwrite` makes it anew"
            )
        self.saved_step: int | None = self.entry.get("global_step")
        _check_files(self.folder / engine, self.entry)
        self._run = _RUNNERS[engine](self.folder / engine / self.entry["file"], precision)
        self._process = os.getpid()
        _ALIVE.add(self._run)
        self.class_embedding = _class_embedding(self.folder / engine, self.config)

    def _generate(
        self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None, truncation: float | None
    ) -> Tensor:
        if os.getpid() != self._process:  # its threads stayed there: a call would never end
            way = "a process that was spawned" if self.engine == "openvino" else "this process"
            raise RuntimeError(f"{self} was loaded before this process was forked; load it anew in {way}")
        feed = {"latents": _array(latents)}
        if self.config.num_labels:
            number, width = len(latents), self.config.class_width
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

    def save_pretrained(  # type: ignore[override]  # for a type checker the mixin is a network
        self,
        save_directory: str | PathLike[str],
        push_to_hub: bool = False,
        repo_id: str | None = None,
        global_step: int | None = None,  # of weights; a graph's index holds that of its own
        **kwargs: Any,
    ) -> None:
        """
        Writes the graph to the folder of its engine, and `config.json` unless the model's weights lie there. Other
        graphs of the same weights stay. With `push_to_hub=True`, `repo_id` and the keywords go to `push_to_hub`. The
        others of `BigGANModel.save_pretrained`, such as `include_code`, are of weights in torch: a graph has none.

        Raises:
            ValueError: The folder holds other weights than those that the graph was exported from, or graphs of such.
            TypeError: A keyword is unknown, or has no use for a graph.
        """
        from .hub import PUSH_ARGUMENTS  # here: a graph runs without the parts of transformers that this loads

        check_keywords("save_pretrained", kwargs, [*PUSH_ARGUMENTS, "max_shard_size"])
        folder = Path(save_directory)
        weights = checksum_of_weights(folder)
        if weights not in (None, self.entry["weights"]):
            raise ValueError(f"{str(folder)!r} holds other weights than those of {self}; save to a folder of its own")
        if weights is None:
            check_graphs(folder, self.entry["weights"])
        with staged_folder(folder) as staging:
            (staging / self.engine).mkdir()
            for name in self.entry["crc32"]:
                shutil.copyfile(self.folder / self.engine / name, staging / self.engine / name)
            same = of_weights(read_index(folder / self.engine), self.entry["weights"])
            write_index(staging / self.engine, {**same, self.precision: self.entry})
            if weights is None:
                self.config.save_pretrained(staging)
        if push_to_hub:
            self.push_to_hub(repo_id or folder.name, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Uploads what `save_pretrained` writes, and a card; keywords and answer as `BigGANModel.push_to_hub`."""
        from .hub import PublishingMixin

        return PublishingMixin.push_to_hub(cast(Any, self), repo_id, **kwargs)

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


def standing_inputs(config: BigGANConfig, truncation: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The inputs `standing_rows` and `standing_fraction` of a truncation; `None` selects the running statistics."""
    lower, upper, fraction = -1, -1, 0.0
    if truncation is not None:
        mirrored = config.standing_interpolation == "mirrored"
        lower, upper, fraction = standing_row(list(config.standing_truncations), truncation, mirrored)
    return np.array([lower + 1, upper + 1]), np.array(fraction, np.float32)


def _check_files(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a file of a graph is not what was written: an engine would answer with other numbers."""
    for name, checksum in entry["crc32"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{str(folder / name)!r} is missing, which {INDEX} names; export the model anew")
        if checksum_of_file(folder / name) != checksum:
            raise ValueError(f"{str(folder / name)!r} is damaged: it is not what was written (CRC-32)")


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


_CORES: dict[int, Any] = {}  # by process


class _OpenVINO:
    # OpenVINO keeps the channels of a pixel together only where it knows the number of samples. So the graph is
    # compiled for one sample and for as many as fill a call; larger batches are made of these.
    def __init__(self, path: Path, precision: str):
        # If another thread computed at the fork, `compile_model` may wait for ever, whether the core is new or not.
        if _CORES.keys() - {os.getpid()}:
            raise RuntimeError("OpenVINO was in use before this process was forked; load models in a spawned process")
        openvino = import_openvino()
        properties = openvino.properties
        # The first one made serves all models until the program ends. OpenVINO 2026.4 gives the thread that makes a
        # core a stack for handlers of signals, and takes it away wrongly if cores end in the order they were made in,
        # or in another thread: then the next signal that Python handles, such as Ctrl-C, ends the program (SIGSEGV).
        self._core = _CORES.get(os.getpid()) or _CORES.setdefault(os.getpid(), openvino.Core())
        can_halve = "BF16" in self._core.get_property("CPU", properties.device.capabilities())
        if precision == "bf16" and not can_halve:
            logger.warning_once("this processor has no arithmetic in bf16; OpenVINO computes in fp32")
        self.computes = "fp32" if precision == "bf16" and not can_halve else precision
        # What int8 leaves in float is computed in bf16 where that is fast.
        number = openvino.Type.bf16 if precision != "fp32" and can_halve else openvino.Type.f32
        self._settings = {
            properties.hint.inference_precision(): number,
            properties.inference_num_threads(): torch.get_num_threads(),
            properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
        }
        try:
            self._graph = self._core.read_model(path)
        except RuntimeError as error:
            raise ValueError(f"{str(path)!r} can't be read: {_first_line(error)}") from error
        side = self._graph.output(0).partial_shape[3].get_length()
        self._samples_at_a_time = max(PIXELS_AT_A_TIME // side**2, 1)
        self._compiled: dict[int, Any] = {}
        # A request holds the maps of one call. Threads that call at once use one each.
        self._idle: defaultdict[int, queue.SimpleQueue[Any]] = defaultdict(queue.SimpleQueue)
        self._lock = threading.Lock()

    def __call__(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        number, parts, done = len(feed["latents"]), [], 0
        while done < number:
            size = self._samples_at_a_time if number - done >= self._samples_at_a_time else 1
            rows = {name: x if name.startswith("standing") else x[done : done + size] for name, x in feed.items()}
            parts.append(self._infer(rows, size))
            done += size
        return np.concatenate(parts)

    def _infer(self, feed: Mapping[str, np.ndarray], number: int) -> np.ndarray:
        try:
            request = self._idle[number].get_nowait()
        except queue.Empty:
            request = self._compile(number).create_infer_request()
        # `infer` does not raise where memory runs out: it gives the images of the call before. `wait` raises.
        request.start_async(dict(feed), share_inputs=True)
        request.wait()
        images = request.get_output_tensor(0).data.copy()
        self._idle[number].put(request)
        return images

    def _compile(self, number: int) -> Any:
        with self._lock:
            if number not in self._compiled:
                shapes = {
                    one.any_name: [number if d.is_dynamic else d.get_length() for d in one.partial_shape]
                    for one in self._graph.inputs
                }
                graph = self._graph.clone()
                graph.reshape(shapes)
                self._compiled[number] = self._core.compile_model(graph, "CPU", self._settings)
            return self._compiled[number]


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


def _keep_forever() -> None:
    # A fork has none of the threads of the engines, so their objects wait for ever where they end.
    for kept in (*_ALIVE, *_CORES.values()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


_ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_forever)

_RUNNERS: dict[str, Any] = {"onnx": _OnnxRuntime, "openvino": _OpenVINO}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
