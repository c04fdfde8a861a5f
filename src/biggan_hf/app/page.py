"""
What the page computes: `Page`.

A browser sends what it likes, and so does a program over MCP: `Page` checks all of it again.
"""

import json
import reprlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import torch
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image
from torch import Tensor

from ..exploring import closest_pictures, interpolate, path_of, truncation_sweep, uint8_images
from ..files import write_text
from ..images import image_grid, to_pil
from ..latents import sample_latents
from ..media import save_gif, save_mp4, save_png
from ..pipeline_biggan import BigGANPipeline


MOST_CLASSES = 6
MOST_IMAGES = 8  # of a class
MOST_PIXELS = 2**20  # of a class: 4 images of 512 px
MOST_LETTERS = 80  # of a name
MOST_SLIDERS, FARTHEST = 8, 3  # along directions, and how far one leads

STOPS = 4  # latents of a walk between latents
PLACES, FRAMES = 32, 8  # from a stop to the next: places of the slider, images of the film
FRAMES_PER_SECOND = 8
SWEEP = (2.0, 1.0, 0.5, 0.04)  # the paper's figure 2a
NEIGHBOURS = 5

TABS = {"classes": "Classes", "walk": "Walk", "sweep": "Truncations", "neighbours": "Nearest pictures"}
OVER = ["classes", "latents"]


def told(method: Callable[..., Any]) -> Callable[..., Any]:
    """The page tells of a mistake in the arguments of a method."""

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (ValueError, MemoryError) as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return wrapped


class Page:
    """
    What the page computes. Its public methods are events of the page, and most are tools for programs, too. Each
    checks its arguments.

    Args:
        pipe: The generator.
        name: What the page calls it.
        data_set: The pictures among which the page finds the nearest, as `load_labelled_images` opens them.
    """

    def __init__(self, pipe: BigGANPipeline, name: str, data_set: Any = None):
        config = pipe.model.config
        self.pipe, self.name, self.data_set = pipe, shown(name), data_set
        self.classes = unique_names(pipe.id2label)
        named = [] if pipe.directions is None else pipe.directions.names[:MOST_SLIDERS]
        self.directions = {f"direction_{place}": name for place, name in enumerate(named, 1)}
        pixels = config.image_size**2
        table = [t for t in config.standing_truncations if t] or [SWEEP[-1], SWEEP[0]]  # a mirrored table begins at 0
        self.ranges: dict[str, tuple[float, float]] = {
            "truncation": (table[0], table[-1]),
            "seed": (0, 2**32 - 1),
            "number": (1, max(1, min(MOST_IMAGES, MOST_PIXELS // pixels))),
            "place": (0, 100),
            **{f"weight_{place}": (0, 1) for place in range(1, MOST_CLASSES + 1)},
            **dict.fromkeys(self.directions, (-FARTHEST, FARTHEST)),
        }
        # By their names in the address of the page, in the order of the controls.
        self.defaults: dict[str, Any] = {
            "tab": "classes",
            "classes": [*self.classes][:2],
            "mix": False,
            "truncation": min(max(0.7, table[0]), table[-1]),
            "seed": 0,
            "number": max(1, min(4, 2**15 // pixels)),  # so the first picture is soon there on a CPU
            "over": "classes" if self.classes else "latents",
            "place": 50,
            **{name: 1 for name in self.ranges if name.startswith("weight")},
            **dict.fromkeys(self.directions, 0.0),
        }

    # Tools

    @told
    def sample(
        self,
        classes: list[str],
        mix: bool,
        truncation: float,
        seed: float,
        number: float,
        weight_1: float = 1,  # by their names, which a program sees
        weight_2: float = 1,
        weight_3: float = 1,
        weight_4: float = 1,
        weight_5: float = 1,
        weight_6: float = 1,
        direction_1: float = 0,
        direction_2: float = 0,
        direction_3: float = 0,
        direction_4: float = 0,
        direction_5: float = 0,
        direction_6: float = 0,
        direction_7: float = 0,
        direction_8: float = 0,
    ) -> tuple[list[tuple[Image.Image, str]], str, str]:
        """
        Generates pictures of classes, or of a mixture of classes.

        Args:
            classes: Names of one or several classes. An empty list stands for a random class for each picture.
            mix: Whether the pictures show one mixture of the classes, by the weights.
            truncation: The smaller, the more typical and the less varied are the pictures.
            seed: The same seed gives the same pictures.
            number: How many pictures of each class, or of the mixture.
            weight_1: Of the first class in a mixture.
            weight_2: Of the second class in a mixture.
            weight_3: Of the third class in a mixture.
            weight_4: Of the fourth class in a mixture.
            weight_5: Of the fifth class in a mixture.
            weight_6: Of the sixth class in a mixture.
            direction_1: How far the pictures move along the model's first direction, if it has one.
            direction_2: Along the second.
            direction_3: Along the third.
            direction_4: Along the fourth.
            direction_5: Along the fifth.
            direction_6: Along the sixth.
            direction_7: Along the seventh.
            direction_8: Along the eighth.

        Returns:
            The pictures with captions, a labelled sheet of them (PNG), and the settings that make them again (JSON).
        """
        weights = (weight_1, weight_2, weight_3, weight_4, weight_5, weight_6)
        ways = (direction_1, direction_2, direction_3, direction_4, direction_5, direction_6, direction_7, direction_8)
        prompts = self._prompts(classes, mix, weights)
        options: dict[str, Any] = {"num_images_per_prompt": self._whole("number", number)}
        options["truncation"] = self._truncation(truncation)
        options |= self._directions(ways)
        seed = self._whole("seed", seed)
        made = self.pipe(prompts, **options, generator=_seeded(seed), output_type="uint8", progress_bar=False)
        images = torch.from_numpy(made.images).permute(0, 3, 1, 2)
        labels = self._names(prompts or [])
        drawn = [] if prompts or made.class_labels is None else made.class_labels.tolist()
        names = [name for name in labels for _ in range(options["num_images_per_prompt"])] or self._names(drawn)
        captions = [f"{name or 'picture'}, {place}" for place, name in enumerate(names or [""] * len(images), 1)]
        sheet = image_grid(images, options["num_images_per_prompt"], labels or None)
        arguments = ", ".join([repr(prompts), *(f"{name}={value!r}" for name, value in options.items())])
        python = f"pipe({arguments}, generator=torch.Generator().manual_seed({seed}))"
        settings = {"model": self.name, "classes": names, "seed": seed, **options, "python": python}
        return (
            [*zip(to_pil(images), captions, strict=True)],
            _file(f"seed-{seed}.png", lambda path: save_png(sheet, path)),
            _file(f"seed-{seed}.json", lambda path: write_text(path, json.dumps(settings, indent=2))),
        )

    @told
    def walk(self, over: str, classes: list[str], truncation: float, seed: float) -> tuple[str, str, str | None]:
        """
        Makes a film of a walk that leads from class to class, or from latent to latent in one class, and back.

        Args:
            over: "classes" or "latents".
            classes: Names of the classes on the way; between latents, the first of them is the class.
            truncation: The smaller, the more typical and the less varied are the pictures.
            seed: Chooses the latents. The same seed gives the same film.

        Returns:
            The film as GIF, to be shown and to be kept, and as MP4 where the server can write one.
        """
        latents, embeddings = self._stops(over, classes, truncation, seed)
        path: dict[str, Any] = {
            "spherical": over == "latents",
            "closed": True,
            "truncation": self._truncation(truncation),
        }
        images = interpolate(self.pipe, latents, embeddings, FRAMES, **path)
        frames = [image_grid(image[None], 1, padding=0) for image in images]
        gif = _file("walk.gif", lambda path: save_gif(frames, path, FRAMES_PER_SECOND))
        has_mp4 = find_spec("av") is not None
        return gif, gif, _file("walk.mp4", lambda path: save_mp4(frames, path, FRAMES_PER_SECOND)) if has_mp4 else None

    @told
    def sweep(self, classes: list[str], seed: float) -> Image.Image:
        """
        Shows the same draws at several truncations, a column a truncation.

        Args:
            classes: Names of one or several classes. An empty list stands for a random class for each row.
            seed: The same seed gives the same pictures.

        Returns:
            A labelled sheet of pictures.
        """
        prompts = self._prompts(classes)
        lowest, highest = self.ranges["truncation"]
        truncations = [t for t in SWEEP if lowest <= t <= highest] or sorted({highest, lowest}, reverse=True)
        rows = 2 if prompts else 4
        generator = _seeded(self._whole("seed", seed))
        images = truncation_sweep(self.pipe, prompts, truncations, generator, num_images_per_prompt=rows)
        labels = [label for name in self._names(prompts or []) for label in (name, "")]
        return image_grid(
            images.flatten(0, 1), len(truncations), labels or None, column_labels=[f"{t:g}" for t in truncations]
        )

    @told
    def neighbours(self, classes: list[str], truncation: float, seed: float) -> Image.Image:
        """
        Shows generated pictures, and beside each the pictures of the data set that are closest to it in their pixels.

        Args:
            classes: Names of one or several classes. An empty list stands for a random class for each picture.
            truncation: The smaller, the more typical and the less varied are the pictures.
            seed: The same seed gives the same pictures.

        Returns:
            A labelled sheet of pictures: a row for each generated picture.
        """
        prompts = self._prompts(classes)
        generator = _seeded(self._whole("seed", seed))
        options = {"num_images_per_prompt": 2 if prompts else 4, "truncation": self._truncation(truncation)}
        samples = uint8_images(self.pipe, prompts, generator=generator, **options)
        sheet, _ = closest_pictures(samples, self.data_set, NEIGHBOURS)
        labels = [label for name in self._names(prompts or []) for label in (name, "")]
        titles = ["sample", *map(str, range(1, sheet.shape[1]))]
        return image_grid(sheet.flatten(0, 1), len(titles), labels or None, column_labels=titles)

    # Of the page alone

    @told
    def frame(self, over: str, place: float, classes: list[str], truncation: float, seed: float) -> Image.Image:
        """The picture at a place of the walk, 0 to 100, which does not lead back here."""
        latents, embeddings = path_of(
            *self._stops(over, classes, truncation, seed), PLACES, spherical=over == "latents"
        )
        row = round(self._whole("place", place) / 100 * (len(latents) - 1))
        options = {"latents": latents[row : row + 1], "truncation": self._truncation(truncation)}
        options |= {} if embeddings is None else {"class_embeddings": embeddings[row : row + 1]}
        return to_pil(uint8_images(self.pipe, **options))[0]

    def live(self, tab: str, classes: Any, mix: Any, truncation: Any, seed: Any, number: Any, *rest: Any) -> list[Any]:
        """What changes at once with the settings: the outputs of `sample` and of `frame`, of the tab that is open."""
        over, place, *others = rest
        skipped = [gr.skip()]
        if tab == "classes":
            return [*self.sample(classes, mix, truncation, seed, number, *others), *skipped]
        if tab == "walk":
            return [*skipped * 3, self.frame(over, place, classes, truncation, seed)]
        return skipped * 4

    def opened(self, event: gr.SelectData) -> str:
        """The name of the tab that was opened."""
        return next((name for name, label in TABS.items() if label == event.value), "classes")

    def weight_sliders(self, classes: Any, mix: Any) -> list[Any]:
        """The sliders of the weights: one for each class, if there is a mixture."""
        names = classes if isinstance(classes, list) and mix is True and len(classes) > 1 else []
        labels = [f"Weight of {name}" for name in names[:MOST_CLASSES]]
        hidden = [gr.Slider(visible=False)] * (MOST_CLASSES - len(labels))
        return [*(gr.Slider(label=label, visible=True) for label in labels), *hidden]

    def restore(self, query: str) -> list[Any]:
        """The settings that the address of the page names, in the order of `defaults`, behind the open tab."""
        given: dict[str, list[str]] = {}
        with suppress(ValueError, AttributeError):
            given = parse_qs(query.removeprefix("?"), keep_blank_values=True, max_num_fields=100)
        values = dict(self.defaults)
        for name in values.keys() & given.keys():
            with suppress(ValueError, OverflowError):
                values[name] = self._read(name, given[name])
        return [gr.Tabs(selected=values["tab"]), *values.values()]

    # Checking what was sent

    def _read(self, name: str, texts: Sequence[str]) -> Any:
        """A setting from the address; raises `ValueError` if it is none."""
        if name == "classes":
            return [text for text in dict.fromkeys(texts) if text in self.classes][:MOST_CLASSES]
        if name == "mix":
            return texts[0] == "true"
        if name in ("tab", "over"):
            known = [*TABS][: 4 if self.data_set is not None else 3] if name == "tab" else self.over
            return known[known.index(texts[0])]
        number = self._checked(name, float(texts[0]))
        return int(number) if isinstance(self.defaults[name], int) and not name.startswith("weight") else number

    @property
    def over(self) -> list[str]:
        """What a walk may lead over."""
        return OVER if self.classes else OVER[1:]

    def _checked(self, name: str, value: Any) -> float:
        least, most = self.ranges[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{name} must be a number from {least} to {most}, got {reprlib.repr(value)}")
        return value

    def _whole(self, name: str, value: Any) -> int:
        if int(self._checked(name, value)) != value:
            raise ValueError(f"{name} must be a whole number, got {value}")
        return int(value)

    def _truncation(self, value: Any) -> float:
        return float(self._checked("truncation", value))

    def _directions(self, strengths: Sequence[Any]) -> dict[str, dict[str, float]]:
        """What the pipeline takes: by name, how far; empty where nothing moves."""
        given = zip(self.directions.items(), strengths, strict=False)
        moves = {label: float(self._checked(name, strength)) for (name, label), strength in given if strength != 0}
        return {"directions": moves} if moves else {}

    def _prompts(
        self, classes: Any, mix: Any = False, weights: Sequence[Any] = ()
    ) -> list[int | dict[int | str, float]] | None:
        """What the pipeline takes: ids, or a mixture of them; `None` without classes."""
        ids = self._ids(classes)
        if mix is not True or len(ids) < 2:
            return [*ids] or None
        shares = [self._checked(f"weight_{place}", weight) for place, weight in enumerate(weights[: len(ids)], 1)]
        if not sum(shares):
            raise ValueError("a mixture needs a weight above 0")
        return [{label: share / sum(shares) for label, share in zip(ids, shares, strict=True)}]

    def _ids(self, classes: Any) -> list[int]:
        if not isinstance(classes, list) or len(classes) > MOST_CLASSES:
            raise ValueError(f"expected the names of at most {MOST_CLASSES} classes, got {reprlib.repr(classes)}")
        for name in classes:
            if not isinstance(name, str) or name not in self.classes:
                raise ValueError(f"there is no class {reprlib.repr(name)}")
        return [self.classes[name] for name in dict.fromkeys(classes)]

    def _stops(self, over: Any, classes: Any, truncation: Any, seed: Any) -> tuple[Tensor, Tensor | None]:
        """Latents and class embeddings of a walk, one or several of each."""
        if over not in self.over:
            raise ValueError(f"a walk leads over {' or '.join(self.over)}, got {reprlib.repr(over)}")
        ids, config = self._ids(classes), self.pipe.model.config
        if over == "classes" and len(ids) < 2:
            raise ValueError("A walk between classes needs two of them. Choose another class.")
        number = 1 if over == "classes" else STOPS
        generator, truncation = _seeded(self._whole("seed", seed)), self._truncation(truncation)
        latents = sample_latents(number, config.z_dim, truncation, config.truncation_mode, generator, self.pipe.device)
        ids = ids if over == "classes" else ids[:1] or [*self.classes.values()][:1]
        return latents, self.pipe.embed_classes(ids) if ids else None

    def _names(self, prompts: Sequence[int | Mapping[Any, float]]) -> list[str]:
        """A short name of each class or mixture."""

        def short(label: int) -> str:
            return shown(self.pipe.id2label[label].split(",")[0])

        def name(one: int | Mapping[Any, float]) -> str:
            return short(one) if isinstance(one, int) else " + ".join(f"{w:.2g} {short(k)}" for k, w in one.items())

        return [name(one) for one in prompts]


def unique_names(id2label: Mapping[int, str]) -> dict[str, int]:
    """The classes by names that a page can show: of one line, and with the id where the name is not enough."""
    names = {label: shown(name) for label, name in id2label.items()}
    numbered = {label: f"{name} ({label})".strip() for label, name in names.items()}
    times = Counter([*names.values(), *numbered.values()])  # a class may be called as another with its id
    return {name if name and times[name] == 1 else numbered[label]: label for label, name in names.items()}


def shown(text: str) -> str:
    """A name of anybody's choice as one line of printable letters that is not too long."""
    printable = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    return " ".join(printable.split())[:MOST_LETTERS]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _file(name: str, write: Callable[[Path], Any]) -> str:
    """The path of a file in gradio's cache, which serves it and deletes it when it is old."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return save_bytes_to_cache(path.read_bytes(), name, get_upload_folder())
