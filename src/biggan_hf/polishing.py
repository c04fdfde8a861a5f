"""
Polishing: a trained generator learns further, without a discriminator, from the Fréchet distance of its images to real
ones as its loss (arXiv:2604.28190; `evaluation/loss.py`).

It stays in eval mode: what learns is the function that samples, with its statistics of batch norm. A judge, an
encoder on which nothing is trained, says which average of the weights is the best, and when it gets no better.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.autograd.graph import increment_version

from .bars import open_bar
from .class_names import names_of
from .data import LabelledImages
from .evaluation import EvaluationSettings, FeatureExtractor, GeneratedImages, RealImages, evaluate
from .evaluation.loss import Map, Target, moments_of, with_classes
from .evaluation.sources import digest_of
from .files import (
    append_line,
    check_archive,
    save_archive,
    staged_folder,
    write_file,
)
from .finite import NotFiniteError
from .images import image_grid
from .latents import sample_latents
from .modeling_biggan import BigGANModel
from .processes import add_up, from_main, is_main_process, num_processes, process_rank


STATE, LOG = "polishing_state.pt", "polishing.jsonl"
MAP_STEPS = 20  # between two maps, each of which takes two eigendecompositions
EMA_DECAY = 0.99
BETAS = (0.9, 0.99)
NO_DISTANCE = 1e-6  # what a smaller distance of the judge counts as: the kernel distance of a perfect model is 0


@dataclass(frozen=True)
class PolishSettings:
    num_steps: int = 1_000
    batch_size: int = 64  # images a step, of all processes together
    learning_rate: float = 1e-4  # of Adam
    anchor: float = 0.0  # the share of the way back to the start's weights that each step goes
    population: int = 8_192  # images on each side whose moments are compared
    evaluation_steps: int = 200  # between two verdicts of the judge
    evaluation_images: int = 2_000
    patience: int = 3  # verdicts in a row without a better one that end the work
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "evaluation_steps", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluation_steps % MAP_STEPS:
            raise ValueError(f"evaluation_steps must be a multiple of {MAP_STEPS}, got {self.evaluation_steps}")
        if not 0 <= self.anchor < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"expected 0 <= anchor < 1 and learning_rate > 0, got {self.anchor} and {self.learning_rate}"
            )
        if self.evaluation_images < 2:
            raise ValueError(f"evaluation_images must be at least 2, got {self.evaluation_images}")


class Ruler:
    """
    An encoder that is trained on: the real moments of its features, and a memory of generated ones.

    Args:
        images: uint8 pictures, of which the memory holds as many generated ones.
        labels: Theirs (N,); `None` for a model without classes.
    """

    def __init__(
        self, extractor: FeatureExtractor, images: RealImages, labels: Tensor | None, num_labels: int
    ) -> None:
        self.extractor, self.num_labels, self.width = extractor, num_labels, extractor.num_features
        if len(images) <= self.width + num_labels:
            raise ValueError(
                f"{extractor.name} has {self.width} features: their moments need more than {self.width + num_labels} "
                f"real pictures, got {len(images)}"
            )
        self._check_gradient(images.image_shape)
        features = torch.cat([extractor(batch)[0] for batch in _batches(images, extractor.name)])
        self.length = features.double().norm(dim=1).mean().item()  # a class counts as much as the features
        self.target = Target(moments_of(self.joined(features, labels)))
        self.memory = torch.zeros_like(features)
        self.map: Map | None = None
        self.first_distance: float | None = None

    def _check_gradient(self, shape: tuple[int, int, int]) -> None:
        pixels = torch.zeros(2, *shape, device=self.extractor.device, requires_grad=True)
        if not self.features(pixels).requires_grad:
            raise ValueError(f"extractor {self.extractor.name!r} passes no gradient to the pixels: nothing can learn")

    def features(self, images: Tensor) -> Tensor:
        """Of images (N, C, H, W) in [-1, 1], with gradients: (N, d)."""
        pixels = ((images.float() + 1) * 127.5).expand(-1, 3, -1, -1)
        output = self.extractor.function(pixels)
        return (output if isinstance(output, Tensor) else output[0]).float()

    def joined(self, features: Tensor, labels: Tensor | None) -> Tensor:
        labels = None if labels is None else labels.to(features.device)
        return with_classes(features, labels, self.num_labels, self.length)

    def renew(self, labels: Tensor | None) -> float:
        """Makes the map from the memory, whose labels are given, to the real pictures. Returns their distance."""
        self.map = self.target.map_from(moments_of(self.joined(self.memory, labels)))
        self.first_distance = self.first_distance or self.map.distance
        return self.map.distance

    def loss(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """A number with the gradient of the distance, as a share of the first distance."""
        assert self.map is not None and self.first_distance is not None
        gradient = self.map.gradient(self.joined(features.detach(), labels))[:, : self.width]
        return (features * gradient.to(features.dtype)).sum(1).mean() / self.first_distance


def _batches(images: RealImages, name: str) -> Any:
    with open_bar(total=len(images), unit="img", desc=f"real images, {name}", delay=2, dynamic_ncols=True) as bar:
        for rows in torch.arange(len(images)).split(64):
            yield images.__getitems__(rows.tolist())["pixel_values"]
            bar.update(len(rows))


class Polishing:
    """
    What the work consists of. Every process has the same of all.

    Args:
        model: The generator, on its device; it learns in place.
        images: The real pictures, labelled as the model's classes.
        extractors: Those that are trained on.
        judge: One that is not.
    """

    def __init__(
        self,
        model: BigGANModel,
        images: LabelledImages,
        extractors: Sequence[FeatureExtractor],
        judge: FeatureExtractor,
        settings: PolishSettings,
        cache_dir: Path | None = None,
    ) -> None:
        self.settings, self.judge, self.cache_dir = settings, judge, cache_dir
        number = min(settings.population, len(images))
        self.real = RealImages(images, number, seed=settings.seed)
        labels = None if images.labels is None else images.labels[self.real.rows]
        if labels is None and model.config.num_labels:
            raise ValueError("the model has classes and the data set has no labels")
        self.labels = labels if model.config.num_labels else None
        self.rulers = [
            Ruler(extractor, self.real, self.labels, model.config.num_labels or 0) for extractor in extractors
        ]
        self.model = model.eval().requires_grad_(True)
        self.parameters: list[Tensor] = [*model.parameters()]
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, betas=BETAS)
        self.memory_labels = None if self.labels is None else torch.zeros(number, dtype=torch.int64)
        self.step, self.verdicts = 0, list[tuple[int, float]]()
        weights = digest_of(*(part for item in sorted(model.state_dict().items()) for part in item))
        encoders = [encoder.identity for encoder in (*extractors, judge)]
        self.identity = {"model": weights, "pictures": images.fingerprint, "encoders": encoders, **asdict(settings)}

    # What a checkpoint holds

    def state(self) -> dict[str, Any]:
        return {
            "identity": json.dumps(self.identity),
            "step": self.step,
            "verdicts": self.verdicts,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memories": [ruler.memory for ruler in self.rulers],
            "memory_labels": self.memory_labels,
            "first_distances": [ruler.first_distance for ruler in self.rulers],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.step, self.verdicts = state["step"], [*map(tuple, state["verdicts"])]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory_labels = state["memory_labels"]
        for ruler, memory, distance in zip(self.rulers, state["memories"], state["first_distances"], strict=True):
            ruler.memory, ruler.first_distance = memory.to(ruler.memory), distance

    # Drawing

    def draw(self, step: int, number: int) -> tuple[Tensor, Tensor | None]:
        """
        Latents and labels of a step, the same in every process. The labels come as often as in the data: where the
        classes are unequal, the joint distance must not see that.
        """
        seed = int(np.random.SeedSequence([self.settings.seed, step]).generate_state(1, np.uint64)[0]) >> 1
        generator = torch.Generator().manual_seed(seed)
        latents = sample_latents(number, self.model.config.z_dim, None, self.model.config.truncation_mode, generator)
        if self.labels is None:
            return latents, None
        return latents, self.labels[torch.randint(len(self.labels), (number,), generator=generator)]

    def images(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        device = self.model.device
        return self.model(latents.to(device), None if labels is None else labels.to(device)).images

    def remember(self, features: Sequence[Tensor], labels: Tensor | None, at: int, own: slice, number: int) -> None:
        """Puts the features of `number` images, of which this process has its own, into the memories."""
        rows = (at + torch.arange(number)) % len(self.real)
        for ruler, mine in zip(self.rulers, features, strict=True):
            whole = torch.zeros(number, mine.shape[1], device=mine.device)
            whole[own] = mine.detach()
            add_up([whole])
            ruler.memory[rows.to(whole.device)] = whole
        if labels is not None and self.memory_labels is not None:
            self.memory_labels[rows] = labels

    @torch.no_grad()
    def fill(self) -> None:
        """Fills the memories before the first step."""
        number = self.settings.batch_size
        starts = range(0, len(self.real), number)
        with open_bar(starts, unit="batch", desc="samples", disable=not is_main_process(), delay=2) as bar:
            for index, at in enumerate(bar):
                latents, labels = self.draw(-1 - index & 0xFFFFFFFF, number)
                own = _own(number)
                images = self.images(latents[own], None if labels is None else labels[own])
                self.remember([ruler.features(images) for ruler in self.rulers], labels, at, own, number)

    # Learning

    def update(self) -> dict[str, float]:
        """One step; returns the distances whenever there are new maps."""
        found, number = {}, self.settings.batch_size
        if self.step % MAP_STEPS == 0:
            found = {f"FD-{r.extractor.name} of the memory": r.renew(self.memory_labels) for r in self.rulers}
            if not all(map(math.isfinite, found.values())):
                raise NotFiniteError(f"the features are not finite at step {self.step}: lower the learning rate")
        (latents, labels), own = self.draw(self.step, number), _own(number)
        images = self.images(latents[own], None if labels is None else labels[own])
        features = [ruler.features(images) for ruler in self.rulers]
        mine = None if labels is None else labels[own]
        loss = sum(ruler.loss(x, mine) for ruler, x in zip(self.rulers, features, strict=True)) / len(self.rulers)
        self.optimizer.zero_grad()
        torch.as_tensor(loss).backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        add_up(gradients)
        torch._foreach_div_(gradients, num_processes())
        self.optimizer.step()
        self.follow()
        self.remember(features, labels, self.step * number, own, number)
        self.step += 1
        return found

    @torch.no_grad()
    def follow(self) -> None:
        """The anchor pulls the weights back, and the average follows them."""
        if self.settings.anchor:
            torch._foreach_lerp_(self.parameters, self.start, self.settings.anchor)
        averaged: list[Tensor] = [*self.ema.parameters()]
        torch._foreach_lerp_(averaged, self.parameters, 1 - EMA_DECAY)
        increment_version([*self.parameters, *averaged])  # on a GPU, torch counts no writes of such functions

    # Judging

    def verdict(self) -> dict[str, float]:
        """The judge's distances of the average, if there are enough to pictures that are not learnt from."""
        others = len(self.real.images) - len(self.real)
        real = self.real.rest(self.settings.population) if others >= self.settings.evaluation_images else self.real
        number = self.settings.evaluation_images
        settings = EvaluationSettings(
            ("kid", "fwd"),
            kid_subsets=10,
            kid_subset_size=min(1_000, number, len(real)),
            intervals=False,
            allow_few_images=True,
            cache_dir=self.cache_dir,
        )
        classes = None if self.labels is None else sorted({*self.labels.tolist()})
        samples = GeneratedImages(self.ema, number, seed=self.settings.seed, classes=classes)
        values = evaluate(samples, real, self.judge, settings).values
        self.verdicts.append((self.step, math.prod(max(v, NO_DISTANCE) for v in values.values()) ** (1 / len(values))))
        return {f"{name} N={number}": value for name, value in values.items()}

    @property
    def best(self) -> int:
        """The step of the best verdict."""
        return min(self.verdicts, key=lambda verdict: verdict[1])[0]

    @property
    def is_done(self) -> bool:
        since = sum(step > self.best for step, _ in self.verdicts)
        return self.step >= self.settings.num_steps or since >= self.settings.patience


def _own(number: int) -> slice:
    """This process's share of a batch."""
    ends = [number * rank // num_processes() for rank in (process_rank(), process_rank() + 1)]
    return slice(*ends)


# The whole work


def polish(polishing: Polishing, output: Path) -> int:
    """
    Writes the best average to a folder, with a log. What was stopped goes on: each verdict leaves a checkpoint. Every
    process calls this.

    Args:
        output: The folder; a checkpoint in it must be of the same model, pictures, encoders and settings.
    Returns:
        The step of the best average; 0 if the judge found nothing better than the start, which then is in the folder.

    Raises:
        NotFiniteError: The features are no numbers any more. The best average so far is in the folder.
        ValueError: The folder holds a checkpoint of something else.
    """
    resume(polishing, output)
    bar: Any = {"desc": "polishing", "disable": not is_main_process(), "dynamic_ncols": True}
    with open_bar(total=polishing.settings.num_steps, initial=polishing.step, **bar) as progress:
        if not polishing.verdicts:
            polishing.fill()
            _judge(polishing, output)
        while not polishing.is_done:
            distances = polishing.update()
            if distances and is_main_process():
                append_line(output / LOG, {"step": polishing.step - 1, **distances})
                progress.set_postfix(FD=" ".join(f"{value:.1f}" for value in distances.values()))
            progress.update()
            if polishing.step % polishing.settings.evaluation_steps == 0 or polishing.is_done:
                _judge(polishing, output)
    return polishing.best


def _judge(polishing: Polishing, output: Path) -> None:
    """Asks the judge, and writes the average if it is the best so far, the log, and a checkpoint."""
    distances = polishing.verdict()
    if not is_main_process():
        return
    if polishing.best == polishing.step:
        with staged_folder(output) as staging:
            polishing.ema.save_pretrained(staging)
    append_line(output / LOG, {"step": polishing.step, **distances})
    with write_file(output / STATE) as unfinished:
        save_archive(polishing.state(), unfinished)


def resume(polishing: Polishing, output: Path) -> None:
    """Takes up the checkpoint of a folder, if there is one."""
    path = output / STATE
    if not from_main(path.is_file()):
        return
    check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = json.loads(state["identity"])
    except Exception as error:  # a damaged file may fail anywhere in the reader
        raise ValueError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error
    free = ("num_steps", "patience")  # these say only when to stop
    for name, value in json.loads(json.dumps(polishing.identity)).items():
        if name not in free and before.get(name) != value:
            raise ValueError(
                f"{str(output)!r} holds a polishing with {name}={before.get(name)!r}, and now it is {value!r}: name "
                f"another folder, or begin anew with --overwrite"
            )
    polishing.load(state)


def before_and_after(start: BigGANModel, polished: BigGANModel, seed: int = 0) -> Image.Image:
    """A sheet, a row for each of the first classes: samples of the start, on the right those of the same latents."""
    labels = [*range(start.config.num_labels or 0)][:10] or [None] * 4
    generator = torch.Generator().manual_seed(seed)
    images = []
    for label in labels:
        latents = sample_latents(5, start.config.z_dim, None, generator=generator)
        images += [model.sample(label, 5, latents=latents).cpu() for model in (start, polished)]
    names = names_of(start.config.id2label)[:10] or None
    return image_grid(torch.cat(images), 10, names, column_labels=["before"] * 5 + ["after"] * 5)
