"""
Polishing: a trained generator learns further, without a discriminator, from the Fréchet distance of its images to real
ones as its loss (`evaluation/loss.py`).

It goes in rounds. A round draws many samples, finds in the features of an encoder where each has to go, and teaches
the generator to draw them there. The generator stays in eval mode: what learns is the function that samples, with its
statistics of batch norm. A judge, an encoder on which nothing is trained, says after which round the average of the
weights is the best, and when it gets no better.
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
from .devices import in_float64
from .evaluation import EvaluationSettings, FeatureExtractor, GeneratedImages, RealImages, evaluate
from .evaluation.loss import Target, moments_of, with_classes
from .evaluation.metrics import joint_distance
from .evaluation.sources import digest_of_weights
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
EMA_DECAY = 0.98
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class PolishSettings:
    num_rounds: int = 12
    population: int = 4_096  # images on each side whose moments are compared; a round learns from each sample once
    batch_size: int = 32  # images a step, of all processes together
    learning_rate: float = 3e-6  # of Adam
    anchor: float = 0.0  # the share of the way back to the start's weights that each step goes
    evaluation_images: int = 2_000
    patience: int = 3  # rounds in a row without a better verdict that end the work
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_rounds", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.anchor < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"expected 0 <= anchor < 1 and learning_rate > 0, got {self.anchor} and {self.learning_rate}"
            )
        if self.evaluation_images < 2:
            raise ValueError(f"evaluation_images must be at least 2, got {self.evaluation_images}")


class Ruler:
    """
    An encoder that is learnt from, and the moments of the real pictures' features.

    Args:
        labels: Of the pictures (N,); `None` for a model without classes.
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
        self.length = in_float64(features).norm(dim=1).mean().item()  # a class counts as much as the features
        self.target = Target(moments_of(self._joined(features, labels)))

    def _check_gradient(self, shape: tuple[int, int, int]) -> None:
        pixels = torch.zeros(2, *shape, device=self.extractor.device, requires_grad=True)
        if not self.features(pixels).requires_grad:
            raise ValueError(f"extractor {self.extractor.name!r} passes no gradient to the pixels: nothing can learn")

    def features(self, images: Tensor) -> Tensor:
        """Of images (N, C, H, W) in [-1, 1], with gradients: (N, d)."""
        pixels = ((images.float() + 1) * 127.5).expand(-1, 3, -1, -1)
        output = self.extractor.function(pixels)
        return (output if isinstance(output, Tensor) else output[0]).float()

    def _joined(self, features: Tensor, labels: Tensor | None) -> Tensor:
        labels = None if labels is None else labels.to(features.device)
        return with_classes(features, labels, self.num_labels, self.length)

    def targets(self, features: Tensor, labels: Tensor | None) -> tuple[Tensor, float]:
        """Where the features (N, d) of samples have to go, and the distance of all to the real pictures."""
        joined = self._joined(features, labels)
        found = self.target.map_from(moments_of(joined))
        targets = found.targets(joined)[:, : self.width].to(features.dtype)
        return targets.to(features.device), found.distance


@dataclass
class Round:
    """The samples of a round, the same in every process, and for each ruler where they have to go."""

    latents: Tensor
    labels: Tensor | None
    order: Tensor  # of the steps: each sample once
    targets: list[Tensor]
    scales: list[float]  # the mean squared way there


def _batches(images: RealImages, name: str) -> Any:
    with open_bar(total=len(images), unit="img", desc=f"real images, {name}", delay=2, dynamic_ncols=True) as bar:
        for rows in torch.arange(len(images)).split(64):
            yield images.__getitems__(rows.tolist())["pixel_values"]
            bar.update(len(rows))


class Polishing:
    """
    What the work consists of. Every process has the same of all.

    Args:
        model: The generator in float32, on its device; it learns in place.
        images: The real pictures, labelled as the model's classes.
        extractors: Those that are learnt from.
        judge: One that is not.
        cache_dir: Keeps what the judge measures of real pictures.
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
        if model.dtype != torch.float32:  # steps as small as these are lost in the rounding of bfloat16
            raise ValueError(f"polishing needs a model in float32, got {model.dtype}: model.float() is one")
        self.settings, self.judge, self.cache_dir = settings, judge, cache_dir
        self.real = RealImages(images, min(settings.population, len(images)), seed=settings.seed)
        labels = None if images.labels is None else images.labels[self.real.rows]
        if labels is None and model.config.num_labels:
            raise ValueError("the model has classes and the data set has no labels")
        self.labels = labels if model.config.num_labels else None
        pictures = self.real, self.labels, model.config.num_labels or 0
        self.rulers = [Ruler(extractor, *pictures) for extractor in extractors]
        self.model = model.eval().requires_grad_(True)
        self.parameters: list[Tensor] = [*model.parameters()]
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, betas=BETAS)
        self.rounds, self.verdicts = 0, list[float]()  # a verdict of the start, and one after each round
        weights = digest_of_weights(model)
        encoders = [encoder.identity for encoder in (*extractors, judge)]
        judged = {} if self.labels is None else {"judged": "classes as often as in the pictures"}
        self.identity = {"model": weights, "pictures": images.fingerprint, "encoders": encoders, **judged}
        self.identity |= asdict(settings)

    # What a checkpoint holds

    def state(self) -> dict[str, Any]:
        return {
            "identity": json.dumps(self.identity),
            "rounds": self.rounds,
            "verdicts": self.verdicts,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.rounds, self.verdicts = state["rounds"], [*state["verdicts"]]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    # A round

    @torch.no_grad()
    def draw(self) -> tuple[Round, dict[str, float]]:
        """The samples of the next round, and the distances of all to the real pictures by ruler."""
        seed = int(np.random.SeedSequence([self.settings.seed, self.rounds]).generate_state(1, np.uint64)[0]) >> 1
        generator, number, config = torch.Generator().manual_seed(seed), len(self.real), self.model.config
        latents = sample_latents(number, config.z_dim, None, config.truncation_mode, generator)
        labels = None
        if self.labels is not None:  # as often as in the data: where classes are unequal, the distance must not see it
            labels = self.labels[torch.randint(number, (number,), generator=generator)]
        order = torch.randperm(number, generator=generator)
        found = Round(latents, labels, order, [], [])
        features = self._features_of_all(found)
        distances = {}
        for ruler, x in zip(self.rulers, features, strict=True):
            if not x.isfinite().all():
                raise NotFiniteError(f"features are not finite after {self.rounds} rounds: lower the learning rate")
            y, distances[f"FD-{ruler.extractor.name} N={number}"] = ruler.targets(x, labels)
            found.targets.append(y)
            found.scales.append((y - x).square().sum(1).mean().item())
        return found, distances

    def _features_of_all(self, drawn: Round) -> list[Tensor]:
        number, device = len(self.real), self.model.device
        features = [torch.zeros(number, ruler.width, device=device) for ruler in self.rulers]
        parts = torch.arange(number).split(self.settings.batch_size)[process_rank() :: num_processes()]
        bar: Any = {"desc": f"samples of round {self.rounds + 1}", "disable": not is_main_process(), "leave": False}
        for rows in open_bar(parts, delay=2, dynamic_ncols=True, **bar):
            images = self._images(drawn, rows)
            for ruler, whole in zip(self.rulers, features, strict=True):
                whole[rows.to(device)] = ruler.features(images)
        add_up(features)
        return features

    def _images(self, drawn: Round, rows: Tensor) -> Tensor:
        device = self.model.device
        labels = None if drawn.labels is None else drawn.labels[rows].to(device)
        return self.model(drawn.latents[rows].to(device), labels).images

    def learn(self, drawn: Round) -> None:
        """The steps of a round."""
        bar: Any = {"desc": f"round {self.rounds + 1}", "disable": not is_main_process(), "leave": False}
        for rows in open_bar(drawn.order.split(self.settings.batch_size), dynamic_ncols=True, **bar):
            self.update(drawn, rows)
        self.rounds += 1

    def update(self, drawn: Round, rows: Tensor) -> None:
        """One step towards the targets of these samples, of which each process takes its share."""
        self.optimizer.zero_grad(set_to_none=False)
        own = rows.tensor_split(num_processes())[process_rank()]
        if len(own):
            images = self._images(drawn, own)
            ways = [
                (ruler.features(images) - targets[own.to(targets.device)]).square().sum() / scale
                for ruler, targets, scale in zip(self.rulers, drawn.targets, drawn.scales, strict=True)
            ]
            (torch.stack(ways).mean() / len(rows)).backward()
        add_up([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        self.optimizer.step()
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
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
        values = evaluate(self._samples(real), real, self.judge, settings).values
        self.verdicts.append(joint_distance(values.values()))
        return {f"{name} N={number}": value for name, value in values.items()}

    def _samples(self, real: RealImages) -> GeneratedImages:
        """Those of the average that are judged beside pictures, with each class as often as these have it."""
        number, seed = self.settings.evaluation_images, self.settings.seed
        if self.labels is None or real.images.labels is None:
            return GeneratedImages(self.ema, number, seed=seed)
        theirs = real.images.labels[real.rows].sort().values
        labels = theirs[(2 * torch.arange(number) + 1) * len(theirs) // (2 * number)]  # the middles of equal parts
        # The name is a part of the fingerprint, which knows of no other labels than those that are drawn.
        samples = GeneratedImages(self.ema, number, seed=seed, name=f"model, by class {labels.bincount().tolist()}")
        samples.labels = labels
        return samples

    @property
    def best(self) -> int:
        """After how many rounds the verdict was the best."""
        return min(range(len(self.verdicts)), key=self.verdicts.__getitem__)

    @property
    def is_done(self) -> bool:
        return self.rounds >= self.settings.num_rounds or self.rounds - self.best >= self.settings.patience


# The whole work


def polish(polishing: Polishing, output: Path) -> int:
    """
    Writes the best average to a folder, with a log. What was stopped goes on: each round leaves a checkpoint. Every
    process calls this.

    Args:
        output: The folder; a checkpoint in it must be of the same model, pictures, encoders and settings.
    Returns:
        After how many rounds the average was the best; 0 if the judge found nothing better than the start, which then
        is in the folder.

    Raises:
        NotFiniteError: The features are no numbers any more. The best average so far is in the folder.
        ValueError: The folder holds a checkpoint of something else.
    """
    resume(polishing, output)
    if not polishing.verdicts:
        _judge(polishing, output, {})
    settings, start = polishing.settings, polishing.rounds
    bar: Any = {"desc": "polishing", "unit": "round", "disable": not is_main_process(), "dynamic_ncols": True}
    with open_bar(total=settings.num_rounds, initial=start, **bar) as progress:
        while not polishing.is_done:
            drawn, distances = polishing.draw()
            progress.set_postfix(FD=" ".join(f"{value:.1f}" for value in distances.values()))
            polishing.learn(drawn)
            _judge(polishing, output, distances)
            progress.update()
    return polishing.best


def _judge(polishing: Polishing, output: Path, before: Mapping[str, float]) -> None:
    """Asks the judge, and writes the average if it is the best so far, the log, and a checkpoint."""
    distances = polishing.verdict()
    if not is_main_process():
        return
    if polishing.best == polishing.rounds:
        with staged_folder(output) as staging:
            polishing.ema.save_pretrained(staging)
    named = {f"{name}, before the round": value for name, value in before.items()}
    append_line(output / LOG, {"round": polishing.rounds, **named, **distances})
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
    free = ("num_rounds", "patience")  # these say only when to stop
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
