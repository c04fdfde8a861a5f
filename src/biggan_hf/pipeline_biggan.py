"""From class names or ids to pictures, in the conventions of diffusers' pipelines."""

import inspect
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.std import tqdm as PlainBar  # noqa: N812  # whose signature names its settings
from transformers.utils import ModelOutput, cached_file, logging

from .bars import open_bar
from .class_labels import check_class_labels, check_label_range, label_of, labels_by_name, normalized
from .configuration_biggan import BigGANConfig
from .devices import check_device, check_not_offloaded, device_or_best
from .directions import FILE, Directions, carry_directions, read_directions, save_directions
from .embedded import located
from .engines import Engine, EngineModel, Precision, best_engine, check_engine, load_engine
from .eval_mode import fold, unfold
from .finite import check_images
from .images import to_pil, to_uint8
from .keywords import PLACE, answers_keywords, check_keywords, did_you_mean
from .latents import TruncationMode, check_generators, check_latents, sample_latents
from .memory import is_out_of_memory


# Three, since the type of keys is invariant: {"goldfish": 0.7} is no Mapping[int | str, float].
ClassMixture = Mapping[int, float] | Mapping[str, float] | Mapping[int | str, float]
ClassLabels = int | str | ClassMixture | Sequence[int | str | ClassMixture] | Tensor
Generators = torch.Generator | Sequence[torch.Generator]
OutputType = Literal["pil", "np", "pt", "uint8"]

if TYPE_CHECKING:
    from .modeling_biggan import BigGANModel

logger = logging.get_logger(__name__)

# Pixels per batch if the caller gives no batch size. At 128 pixels: 4 images on a CPU, whose caches hold no more, and
# 256 on a GPU.
PIXELS_AT_A_TIME = {"cpu": 2**16, "cuda": 2**22}


# A fork copies the lock of all progress bars as it is: held, if another thread draws its bar. The child makes its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))

_BAR_KEYWORDS = inspect.signature(PlainBar.__init__).parameters

# Methods of a network that people call on a pipeline, and what to write.
_MOVES = {"cuda": '"cuda"', "cpu": '"cpu"'}
_MOVES |= {"float": "torch.float32", "half": "torch.float16", "bfloat16": "torch.bfloat16", "double": "torch.float64"}


@dataclass
class BigGANPipelineOutput(ModelOutput):
    """
    Args:
        images: N pictures: a list of PIL images of mode "RGB" or "L" ("pil"); a numpy array (N, H, W, num_channels)
            ("np") or a tensor (N, num_channels, H, W) ("pt"), both float32 in [0, 1]; a numpy array (N, H, W,
            num_channels) of uint8 ("uint8").
        class_labels: int64 (N,); `None` for an unconditional model, and where classes are mixed.
        latents: float32 (N, z_dim) as drawn or as given, and moved.
    """

    # `| Any`: ModelOutput wants the default None, which no caller should have to rule out.
    images: Any = None
    class_labels: Tensor | Any = None
    latents: Tensor | Any = None


class BigGANPipeline:
    """
    Draws latents, generates and converts to pictures.

    The first call normalises the weights, and later calls use them. A call normalises a weight again if it was
    replaced, loaded, moved, or changed by an optimiser or another operation that autograd records. After any other
    write (through `.data`, or from outside torch), call `renew_weights()`.

    Args:
        model: The generator, in torch or as an engine runs it.

    Raises:
        TypeError: The model is no generator.

    Example:
        ```python
        pipe = BigGANPipeline.from_pretrained("user/biggan").to("cuda")
        g = torch.Generator().manual_seed(0)
        images = pipe("golden retriever", truncation=0.4, num_images_per_prompt=4, generator=g).images
        images[0].save("golden-retriever.png")
        mixed = pipe({"goldfish": 0.7, "tiger": 0.3}, truncation=0.4).images[0]
        ```
    """

    @answers_keywords("BigGANPipeline")
    def __init__(self, model: "BigGANModel | EngineModel"):
        is_network = isinstance(model, nn.Module) and hasattr(model, "sample")  # the class may be that of remote code
        if not is_network and not isinstance(model, EngineModel):
            loader = "BigGANPipeline.from_pretrained loads a folder or a repository"
            raise TypeError(f"the model of a BigGANPipeline is a BigGANModel, got {type(model).__name__}; {loader}")
        self.model = cast("BigGANModel", model)
        self.id2label = {int(label_id): label for label_id, label in (model.config.id2label or {}).items()}
        self._bar_settings: dict[str, Any] = {}
        self._is_compiled = False
        self._directions: Directions | None = None
        self._source: tuple[str, dict[str, Any]] | None = None  # where a file of directions may be that was not read
        if is_network:  # its folded weights live as long as the pipeline; at the end of the program all goes anyway
            weakref.finalize(self, unfold, self.model).atexit = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        engine: Engine | Literal["auto"] | None = None,
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        Loads a folder, a Hub repository, or a model that comes with the package.

        Args:
            pretrained_model_name_or_path: As for `BigGANModel.from_pretrained`.
            engine: What computes: "torch" (the default), "onnx" or "openvino" (on the CPU), or "auto", the fastest
                that is installed: on a GPU torch, moved there and compiled with CUDA graphs. An engine takes the graph
                that was exported to the folder or repository; if there is none, it is exported now and kept in the
                cache for the next time.
            precision: "fp32", "bf16" (torch, OpenVINO) or "int8" (the other two engines); default in torch the
                one that `config.json` names, else "fp32".
            **kwargs: revision, token, convert, … as for `BigGANModel.from_pretrained`; with an engine or "auto" only
                those that say where the model is, and convert.

        Raises:
            TypeError: A keyword is unknown, or has no use for an engine.
            ImportError: The engine is not installed.
            ValueError: An unknown engine or precision, a `dtype` that contradicts the precision, a graph that was
                exported from other weights, or another program's checkpoint; `convert=True` converts one that is on
                the Hub.
        """
        source = str(pretrained_model_name_or_path)
        place = source, {name: kwargs[name] for name in PLACE if name in kwargs}
        if engine not in (None, "torch"):
            check_keywords(f"BigGANPipeline.from_pretrained(engine={engine!r})", kwargs, (*PLACE, "convert"))
        chosen, on_gpu = best_engine(precision or "fp32") if engine == "auto" else (engine or "torch", False)
        check_engine(chosen, precision or "fp32")
        if chosen != "torch":
            if kwargs.get("convert"):
                from .loading import settings_of  # here: an engine does without, and starts in half of the time

                _, source, kwargs = settings_of(BigGANConfig, source, kwargs)
            pipe = cls(load_engine(source, chosen, precision or "fp32", **kwargs))
            pipe._source = place
            return pipe
        if precision is not None:
            kwargs["dtype"] = _dtype_of(precision, kwargs.get("dtype", kwargs.get("torch_dtype")))
        from .modeling_biggan import BigGANModel  # here, as above

        pipe = cls(BigGANModel.from_pretrained(source, **kwargs))
        pipe._source = place
        return pipe.to("cuda").compile(mode="reduce-overhead") if on_gpu else pipe

    def export(
        self,
        output: str | os.PathLike[str],
        *,
        engine: Engine = "openvino",
        precision: Precision = "fp32",
        overwrite: bool = False,
    ) -> Self:
        """
        Writes the generator as a graph for another engine, and checks the graph, as `biggan-hf export` does.
        Directions go along; a file of directions that lies there stays.

        Args:
            output: The folder: a model's own, or another one. The graph goes to `onnx/` or `openvino/` in it.
            engine: "onnx" or "openvino".
            precision: "fp32", "bf16" (OpenVINO) or "int8".
            overwrite: Replaces a graph that is there.

        Returns:
            A pipeline with that engine.

        Raises:
            ValueError: An unknown engine or precision; a graph whose images differ too much from those of torch, which
                is then not written; a pipeline that has an engine already.
            FileExistsError: There is such a graph.
            ImportError: The extra of the engine is not installed.
        """
        from .exporting import export_model  # here: it comes with an engine's extra

        network, directions = self._network("export"), self.directions
        exported = type(self)(export_model(network, output, engine, precision, overwrite=overwrite))
        carry_directions(directions, Path(output))
        exported.directions = directions
        return exported

    def _network(self, doing: str) -> "BigGANModel":
        if isinstance(self.model, EngineModel):
            raise ValueError(f"{doing} is for a model in torch; this pipeline runs {self.model.engine}")
        return self.model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """
        Writes `config.json`, the weights or an engine's graph, and the directions if there are some.

        Args:
            save_directory: The folder; created if it does not exist.
            **kwargs: Those of `BigGANModel.save_pretrained`, which also says what is raised; with an engine only
                `push_to_hub` and the keywords that go there.
        """
        directions = self.directions
        own: dict[str, Any] = {"directions": directions} if directions and kwargs.get("push_to_hub") else {}
        self.model.save_pretrained(save_directory, **{"global_step": self.model.saved_step, **own, **kwargs})
        if directions is not None and kwargs.get("is_main_process", True):
            save_directions(directions, Path(save_directory))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """
        Uploads the model, or an engine's graph, the directions if there are some, and the card.

        Args:
            repo_id: `"user/name"`.
            **kwargs: Those of `BigGANModel.push_to_hub`, which also says what is raised.

        Returns:
            The commit's address.
        """
        own: dict[str, Any] = {} if self.directions is None else {"directions": self.directions}
        return self.model.push_to_hub(repo_id, **{**own, **kwargs})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """
        Moves or casts the model in place, as `torch.nn.Module.to`.

        Args:
            *args: A device, or "auto" for the best one, a dtype, or both.
            **kwargs: The same by name, `device=` and `dtype=`.

        Returns:
            The pipeline itself.

        Raises:
            ValueError: There is no such device here; or an engine computes, which stays on the CPU in its precision.
        """
        if args[:1] == ("auto",):
            args = (device_or_best(None), *args[1:])
        for device in (*args[:1], kwargs.get("device")):
            check_device(device)
        if isinstance(self.model, EngineModel):
            if {*args, *kwargs.values()} - {"cpu", torch.device("cpu"), None}:
                raise ValueError(f"{self.model.engine} computes on the CPU in {self.model.precision}; load it anew")
            return self
        self.model.to(*args, **kwargs)
        return self

    def compile(self, **kwargs: Any) -> Self:
        """
        Compiles the model in place, as `torch.nn.Module.compile`; `mode="reduce-overhead"` for CUDA graphs.

        After that every batch has the full `batch_size`: a smaller one is filled up, and the extra images are dropped.
        So one graph serves all batches. Another truncation or batch size compiles again. Without `batch_size` it is
        the next power of two above the number of images, but at most the size without a compiler.

        Args:
            **kwargs: Those of `torch.compile`.

        Returns:
            The pipeline itself.

        Raises:
            ValueError: An engine computes, and not torch.
        """
        self._network("compile").compile(**kwargs)
        self._is_compiled = True
        return self

    def renew_weights(self) -> Self:
        """
        Lets the next call normalise all weights again. Call this after a write that autograd does not record.

        Returns:
            The pipeline itself.
        """
        unfold(self._network("renew_weights"))
        return self

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None, **kwargs: Any) -> tqdm:
        """
        A bar of progress, with the settings of `set_progress_bar_config`.

        Args:
            iterable: What the bar goes over.
            total: The number of steps; needed without an iterable.
            **kwargs: Other keywords of tqdm, which win over those settings.

        Raises:
            ValueError: Neither an iterable nor a total is given.
            TypeError: A keyword is unknown.
        """
        if iterable is None and total is None:
            raise ValueError("a progress bar needs an iterable or a total")
        check_keywords("progress_bar", kwargs, _BAR_KEYWORDS)
        return open_bar(iterable, **{"total": total, **self._bar_settings, **kwargs})

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """
        Sets up the bars of all later calls.

        Args:
            **kwargs: Keywords of tqdm; `disable=True` for no bars.

        Raises:
            TypeError: A keyword is unknown.
        """
        check_keywords("set_progress_bar_config", kwargs, _BAR_KEYWORDS)
        self._bar_settings = kwargs

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.model.dtype

    @property
    def directions(self) -> Directions | None:
        """
        Directions of the latents with names: those of `directions.json` beside the model, or those that were set.
        `None` if there are none.

        Raises:
            ValueError: The file holds something else, or directions of another z_dim.
        """
        if self._source is not None:
            source, place = self._source
            path = None
            with suppress(OSError):  # there is no such file
                path = cached_file(located(source), FILE, **place)
            self._directions = None if path is None else read_directions(Path(path), self.model.config.z_dim)
            self._source = None
        return self._directions

    @directions.setter
    def directions(self, directions: Directions | None) -> None:
        self._directions, self._source = directions, None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _MOVES:
                raise AttributeError(f"{what}: write pipe.to({_MOVES[name]})")
            if not name.startswith("_") and hasattr(vars(self).get("model"), name):
                raise AttributeError(f"{what}, but its model has: pipe.model.{name}")
            raise AttributeError(f"{what}{did_you_mean(name, dir(type(self)))}")

    # Names of classes

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name, each synonym an entry of its own; names that several classes share are left out."""
        index = labels_by_name(tuple(self.id2label.items()))
        return {
            name: label_id
            for label_id, label in self.id2label.items()
            for name in map(str.strip, label.split(","))
            if index.get(normalized(name)) == [label_id]
        }

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """
        Class ids of names.

        Args:
            names: One name or several: any comma-separated part of a label or the whole label, in any case.

        Returns:
            An id for each name.

        Raises:
            ValueError: A name that no class has, with the closest ones, or that several classes have, with their ids.
            TypeError: A name that is no string.
        """
        return [label_of(name, self.model.config.id2label) for name in ([names] if isinstance(names, str) else names)]

    def embed_classes(self, class_labels: ClassLabels) -> Tensor:
        """
        Class embeddings, for mixing and for paths between classes.

        Args:
            class_labels: An id, a name, a mixture (weights by id or name, which sum to 1; some may be negative, which
                leads beyond a class, away from another), or several of these.

        Returns:
            (number of classes, class_embedding_dim) float32, a mixture's being the weighted sum; without a shared
            embedding (number of classes, num_labels), the weights themselves.

        Raises:
            ValueError: An unknown name, an id out of range, weights that do not sum to 1.
        """
        return self._embed(self._to_mixtures(class_labels))

    @torch.no_grad()
    def _embed(self, mixtures: list[dict[int, float]]) -> Tensor:
        rows = []
        for mixture in mixtures:
            labels = torch.tensor([*mixture])
            check_class_labels(labels, len(labels), self.model.config.id2label)
            weights = torch.tensor([*mixture.values()], device=self.device)
            rows.append(weights @ self.model.class_embedding(labels.to(self.device)).float())
        return torch.stack(rows)

    # Generating

    @answers_keywords("BigGANPipeline(…)", num_images_per_label="num_images_per_prompt")
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        *,
        num_images_per_prompt: int = 1,
        batch_size: int | None = None,
        truncation: float | None = None,
        truncation_mode: TruncationMode | None = None,
        latents: Tensor | np.ndarray | None = None,
        class_embeddings: Tensor | np.ndarray | None = None,
        directions: Mapping[str, float] | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        progress_bar: bool = True,
    ) -> BigGANPipelineOutput | Any:
        """
        Generates `num_images_per_prompt` images of each class, one class after the other.

        All latents are drawn before the first image is generated: the images do not depend on the batch size.

        Args:
            class_labels: Ids, names (see `get_label_ids`), mixtures such as `{"goldfish": 0.7, "tiger": 0.3}`, whose
                weights sum to 1, or a list of these. `None`: a random class for each image, or none for an
                unconditional model.
            num_images_per_prompt: Images a class; without classes, the number of images. Also called
                `num_images_per_label`.
            batch_size: Most images that are generated at a time; default by their size. Halved whenever the device
                runs out of memory.
            truncation: Threshold t > 0 of the truncation trick (paper, section 3.1): the smaller, the more typical
                and the less varied. `None` for plain N(0, 1).
            truncation_mode: See `sample_latents`; default the model's own, which is that of its standing statistics.
            latents: (number of images, z_dim) in place of drawing them; `truncation` then only chooses among the
                model's standing statistics.
            class_embeddings: (number of classes, class_embedding_dim) in place of `class_labels`, see
                `embed_classes`.
            directions: How far the latents move, after the draw, along which of `pipe.directions`: `{"name": 2.0}`.
            generator: Makes the draw reproducible. One for all images, or a list with one an image, which makes an
                image independent of the others. CPU generators give the same latents whatever the model's device.
            output_type: `"pil"`, `"np"`, `"pt"` or `"uint8"`, see `BigGANPipelineOutput`.
            return_dict: `False` for the tuple (images, class_labels, latents).
            progress_bar: Shows the images done.

        Returns:
            `BigGANPipelineOutput`: the images in the form of `output_type`, their labels and their latents.

        Raises:
            ValueError: An unknown or ambiguous name, an unknown direction, a label or an option out of range, weights
                that do not sum to 1, latents of a wrong shape or, on a CPU, not finite, a wrong number of generators,
                a model whose weights are offloaded layer by layer, as by accelerate's `cpu_offload`.
            TypeError: A label or a generator of another type.
            MemoryError: Not even one image fits the device.
        """
        check_not_offloaded(self.model)
        latents = _as_floats("latents", latents)
        label_ids, embeddings = self._classes(class_labels, _as_floats("class_embeddings", class_embeddings))
        _check_positive("num_images_per_prompt", num_images_per_prompt)
        number = num_images_per_prompt * next((len(x) for x in (label_ids, embeddings) if x is not None), 1)
        mode = self._check_options(batch_size, truncation, truncation_mode, output_type)
        check_latents(latents, number, self.model.config.z_dim)
        check_generators(generator, number)

        # Draws as `model.sample` does: the same generator gives the same images.
        labels, embeddings = self.model._classes_to_sample(label_ids, embeddings, num_images_per_prompt, generator)
        if latents is None:
            latents = sample_latents(number, self.model.config.z_dim, truncation, mode, generator, self.device)
        latents = self._moved(latents, directions or {})
        _check_finite(latents=latents, class_embeddings=embeddings)
        batches = self._generate(latents, labels, embeddings, truncation, batch_size, progress_bar)
        images = _join([_convert(batch, output_type) for batch in batches])
        if not return_dict:
            return images, labels, latents
        return BigGANPipelineOutput(images=images, class_labels=labels, latents=latents)

    def _moved(self, latents: Tensor, strengths: Mapping[str, float]) -> Tensor:
        """The latents, moved along directions."""
        if not strengths:
            return latents
        if self.directions is None:
            raise ValueError("this model has no directions; pipe.directions = find_directions(pipe.model) finds some")
        return self.directions.moved(latents, strengths)

    def _generate(
        self,
        latents: Tensor,
        labels: Tensor | None,
        embeddings: Tensor | None,
        truncation: float | None,
        batch_size: int | None,
        progress_bar: bool,
    ) -> Iterator[Tensor]:
        pixels = PIXELS_AT_A_TIME.get(self.device.type, PIXELS_AT_A_TIME["cpu"])
        size = batch_size or max(pixels // self.model.config.image_size**2, 1)
        total, done = len(latents), 0
        if self._is_compiled and batch_size is None:
            size = min(size, 1 << (total - 1).bit_length())
        settings = {"unit": "image", **self._bar_settings, **({} if progress_bar else {"disable": True})}
        with open_bar(total=total, **settings) as bar:
            while done < total:
                if not self._is_compiled:
                    size = min(size, total - done)
                ids, vectors = (None if x is None else _rows(x, done, size) for x in (labels, embeddings))
                images = self._generate_if_it_fits(_rows(latents, done, size), ids, vectors, truncation)
                if images is None:
                    size //= 2
                    continue
                images = check_images(images[: total - done], self.model, waits=True)
                yield images
                done += len(images)
                bar.update(len(images))

    def _generate_if_it_fits(
        self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None, truncation: float | None
    ) -> Tensor | None:
        """The images; `None` if several images do not fit the memory."""
        try:
            if not isinstance(self.model, EngineModel):
                fold(self.model)
            return self.model._generate(latents, labels, embeddings, truncation)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(latents) == 1:
                side = self.model.config.image_size
                raise MemoryError(f"one image of {side}×{side} does not fit the memory of {self.device}") from error
        # After the `except` block the error no longer holds the tensors, so that their memory can be freed.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    # Checking what was given

    def _classes(
        self, class_labels: ClassLabels | None, class_embeddings: Tensor | None
    ) -> tuple[list[int] | Tensor | None, Tensor | None]:
        """Labels, or embeddings where these were given or classes are mixed, or neither."""
        if class_embeddings is not None and (class_embeddings.ndim != 2 or not len(class_embeddings)):
            raise ValueError(f"class_embeddings must be (1 or more, width), got {tuple(class_embeddings.shape)}")
        if class_labels is None:
            return None, class_embeddings
        if class_embeddings is not None:
            raise ValueError("class_labels and class_embeddings exclude each other; give one of them")
        if isinstance(class_labels, Tensor):
            return torch.atleast_1d(class_labels), None
        mixtures = self._to_mixtures(class_labels)
        if all(len(mixture) == 1 for mixture in mixtures):
            return [label for mixture in mixtures for label in mixture], None
        return None, self._embed(mixtures)

    def _to_mixtures(self, class_labels: ClassLabels) -> list[dict[int, float]]:
        """Weights by id, a mixture of one for a plain class."""
        if isinstance(class_labels, Iterable) and not isinstance(class_labels, str | Mapping):
            given = torch.atleast_1d(class_labels).tolist() if isinstance(class_labels, Tensor) else list(class_labels)
        else:
            given = [class_labels]
        if not given:
            raise ValueError("class_labels is empty; None draws a random class for each image")
        return [self._to_mixture(one) if isinstance(one, Mapping) else {self._to_id(one): 1.0} for one in given]

    def _to_mixture(self, weights: Mapping[Any, Any]) -> dict[int, float]:
        mixture: dict[int, float] = {}
        for label, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
                raise ValueError(f"the weight of class {label!r} must be a number, got {weight!r}")
            label_id = self._to_id(label)
            mixture[label_id] = mixture.get(label_id, 0.0) + float(weight)
        if abs(sum(mixture.values()) - 1) > 1e-6:
            raise ValueError(f"the weights of a mixture must sum to 1, got {dict(weights)}")
        return mixture

    def _to_id(self, label: Any) -> int:
        if not isinstance(label, Integral) or isinstance(label, bool):
            return label_of(label, self.model.config.id2label)
        if self.model.config.id2label:
            check_label_range([int(label)], self.model.config.id2label)
        return int(label)

    def _check_options(
        self, batch_size: int | None, truncation: float | None, mode: TruncationMode | None, output_type: OutputType
    ) -> TruncationMode:
        """Checks the options; returns the mode in which latents are drawn."""
        if batch_size is not None:
            _check_positive("batch_size", batch_size)
        if output_type not in get_args(OutputType):
            kinds = get_args(OutputType)
            hint = did_you_mean(str(output_type), kinds)
            raise ValueError(f"output_type must be one of {', '.join(kinds)}, got {output_type!r}{hint}")
        return self.model._truncation_mode(truncation, mode)


def _dtype_of(precision: str, given: Any) -> torch.dtype:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if given not in (None, dtype, str(dtype).removeprefix("torch.")):
        raise ValueError(f"precision={precision!r} computes in {dtype}, got dtype={given}: give one of the two")
    return dtype


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _as_floats(name: str, given: Any) -> Tensor | None:
    # In float32, as the pipeline draws latents: a direction would be rounded where it is added to integers.
    try:
        return None if given is None else torch.as_tensor(given).float()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {given!r}") from error


def _check_finite(**given: Tensor | None) -> None:
    # Not checked on a GPU, where the check would wait for the device; the images show it.
    for name, values in given.items():
        if values is not None and values.device.type == "cpu" and not values.isfinite().all():
            raise ValueError(f"{name} hold numbers that are not finite")


def _rows(given: Tensor, start: int, number: int) -> Tensor:
    """Returns `number` rows from `start`. If there are fewer, it repeats the last row."""
    rows = given[start : start + number]
    missing = number - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _convert(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """(N, C, H, W) in [-1, 1] to what the caller asked for."""
    if output_type == "pil":
        return to_pil(images)
    if output_type == "uint8":
        return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    images = (images.float() + 1) / 2
    return images.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else images


def _join(batches: list[Any]) -> list[Image.Image] | np.ndarray | Tensor:
    if isinstance(batches[0], list):
        return [image for batch in batches for image in batch]
    return torch.cat(batches) if isinstance(batches[0], Tensor) else np.concatenate(batches)
