"""
The page of a generator, in gradio: `Page` computes what it shows, `build` lays it out, `serve` starts its server.

A browser sends what it likes, and so does a program over MCP: `Page` checks all of it again.
"""

import json
import re
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
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from torch import Tensor

from .exploring import closest_pictures, interpolate, path_of, truncation_sweep, uint8_images
from .files import write_text
from .images import image_grid, to_pil
from .latents import sample_latents
from .media import save_gif, save_mp4, save_png
from .pipeline_biggan import BigGANPipeline


MOST_CLASSES = 6
MOST_IMAGES = 8  # of a class
MOST_PIXELS = 2**20  # of a class: 4 images of 512 px
MOST_LETTERS = 80  # of a name
MOST_SLIDERS, FARTHEST = 8, 3  # along directions, and how far one leads
MOST_BYTES = 2**16  # of a request; the page's own have less than 2 kB
MOST_WAITING = 32  # requests; one at a time is computed
MOST_SESSIONS = 256  # of which gradio keeps the settings, 100 kB each
KEEP_FILES = (600, 3600)  # seconds: every ten minutes, gradio deletes the files that are an hour old
# Of gradio's paths, those to which the page and programs send settings, and those that are open to nobody: addresses
# that the server would fetch, and settings that it would keep on its disk.
EVENTS = re.compile(r"/gradio_api/(queue/join|(call|run|api)/.+|cancel|reset|mcp(/.*)?)/?")
CLOSED = re.compile(r"/gradio_api/(proxy=|file[=/]https?:|deep_link)")

STOPS = 4  # latents of a walk between latents
PLACES, FRAMES = 32, 8  # from a stop to the next: places of the slider, images of the film
FRAMES_PER_SECOND = 8
SWEEP = (2.0, 1.0, 0.5, 0.04)  # the paper's figure 2a
NEIGHBOURS = 5

TABS = {"classes": "Classes", "walk": "Walk", "sweep": "Truncations", "neighbours": "Nearest pictures"}
OVER = ["classes", "latents"]

# Small pictures keep their pixels. A phone has two columns.
CSS = """
.small img { image-rendering: pixelated; }
.small:not(.pictures) img { width: 100%; height: 100%; object-fit: contain; }
h1 { overflow-wrap: anywhere; }
@media (max-width: 640px) { .pictures .grid-container { grid-template-columns: repeat(2, 1fr) !important; } }
"""

# The settings that are not the usual ones go to the address of the page, and to that of a Space around it.
REMEMBER = """(...values) => {
    const query = new URLSearchParams(location.search);
    Object.entries(DEFAULTS).forEach(([name, usual], place) => {
        query.delete(name);
        if (JSON.stringify(values[place]) === JSON.stringify(usual)) return;
        const given = [values[place]].flat();
        (given.length ? given : [""]).forEach(value => query.append(name, value));
    });
    history.replaceState(null, "", "?" + query);
    if (parent !== window) parent.postMessage({queryString: query.toString()}, "https://huggingface.co");
}"""


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
        table, pixels = config.standing_truncations or [SWEEP[-1], SWEEP[0]], config.image_size**2
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
    times = Counter(names.values())
    return {name if name and times[name] == 1 else f"{name} ({label})".strip(): label for label, name in names.items()}


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


# The layout

Parts = dict[str, Any]  # components, by name; a setting has its name in `Page.defaults`


def build(page: Page, decorate: Callable[[Any], Any] = lambda method: method) -> gr.Blocks:
    """
    The page in gradio.

    Args:
        page: What it computes.
        decorate: Decorates what generates pictures: `spaces.GPU` on ZeroGPU.
    """
    title = f"{page.name} · BigGAN"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=KEEP_FILES) as blocks:
        gr.HTML(_heading(page))
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                parts = _settings(page)
            with gr.Column(scale=2, min_width=300):
                parts |= _tabs(page)
        _connect_tools(page, parts, decorate)
        _connect_settings(page, parts, decorate, blocks)
    return blocks


def _heading(page: Page) -> str:
    config = page.pipe.model.config
    classes = f"{config.num_labels} classes" if page.classes else "no classes"
    what = f"A BigGAN generator of {config.image_size}×{config.image_size} pictures, {classes}."
    return f"<h1>{escape(page.name)}</h1><p>{what}</p>"


def _slider(page: Page, name: str, label: str, step: float, **options: Any) -> gr.Slider:
    return gr.Slider(*page.ranges[name], value=page.defaults[name], step=step, label=label, **options)


def _settings(page: Page) -> Parts:
    usual, ranges = page.defaults, page.ranges
    parts: Parts = {"tab": gr.Textbox(usual["tab"], visible=False), "query": gr.Textbox(visible=False)}
    parts["classes"] = gr.Dropdown(
        [*page.classes],
        value=usual["classes"],
        multiselect=True,
        max_choices=MOST_CLASSES,
        label="Classes",
        info=f"Type to search. At most {MOST_CLASSES}; none for random ones.",
        visible=bool(page.classes),
    )
    parts["mix"] = gr.Checkbox(label="One mixture of these classes", visible=len(page.classes) > 1)
    for name in [name for name in usual if name.startswith("weight")]:
        parts[name] = _slider(page, name, f"Weight {name[-1]}", 0.05, visible=False)
    parts["truncation"] = _slider(page, "truncation", "Truncation", 0.01, info="Smaller: more typical, less varied.")
    with gr.Row():
        least, most = ranges["seed"]
        parts["seed"] = gr.Number(usual["seed"], label="Seed", precision=0, minimum=least, maximum=most, min_width=120)
        parts["another"] = gr.Button("Another seed", min_width=120)
    parts["number"] = _slider(page, "number", "Pictures of each class" if page.classes else "Pictures", 1)
    return parts


def _tabs(page: Page) -> Parts:
    small = ["small"] if page.pipe.model.config.image_size <= 64 else []
    parts: Parts = {}
    with gr.Tabs() as parts["tabs"]:
        with gr.Tab(TABS["classes"], id="classes"):
            parts |= _pictures(page, small)
        with gr.Tab(TABS["walk"], id="walk"):
            parts |= _walk(page, small)
        with gr.Tab(TABS["sweep"], id="sweep"):
            parts |= _sheet("sweep", "Compare truncations", "the same draws, a column a truncation")
        if page.data_set is not None:
            with gr.Tab(TABS["neighbours"], id="neighbours"):
                what = "generated pictures, each beside the nearest of the data set"
                parts |= _sheet("neighbours", "Find the nearest pictures", what)
    return parts


def _pictures(page: Page, small: list[str]) -> Parts:
    parts: Parts = {}
    options: Any = {"columns": 4, "height": "auto", "object_fit": "contain", "format": "png"}
    options["elem_classes"] = [*small, "pictures"]
    parts["pictures"] = gr.Gallery(label="Pictures", show_label=False, interactive=False, **options)
    with gr.Row():
        for name, label in page.directions.items():
            parts[name] = _slider(page, name, f"{label[0].upper()}{label[1:]}", 0.1, min_width=140)
    with gr.Row():
        parts["sheet"] = gr.DownloadButton("Download the sheet (PNG)", min_width=120)
        parts["kept"] = gr.DownloadButton("Download the settings (JSON)", min_width=120)
    return parts


def _walk(page: Page, small: list[str]) -> Parts:
    parts: Parts = {}
    parts["over"] = gr.Radio(page.over, value=page.defaults["over"], label="Walk between")
    least, most = page.ranges["place"]
    parts["place"] = gr.Slider(least, most, value=page.defaults["place"], step=1, label="Place on the way (%)")
    options: Any = {"interactive": False, "height": 300, "elem_classes": small, "buttons": ["download"]}
    parts["frame"] = gr.Image(label="Picture", format="png", alt_text="the picture at this place", **options)
    parts["make walk"] = gr.Button("Make a film", variant="primary")
    parts["film"] = gr.Image(label="Film", format="gif", alt_text="a film of the walk", **options)
    with gr.Row():
        parts["gif"] = gr.DownloadButton("Download the GIF", min_width=120)
        parts["mp4"] = gr.DownloadButton("Download the MP4", min_width=120, visible=find_spec("av") is not None)
    return parts


def _sheet(name: str, button: str, alt_text: str) -> Parts:
    """A button, and the sheet that it makes."""
    make = gr.Button(button, variant="primary")
    options: Any = {"interactive": False, "buttons": ["download", "fullscreen"], "format": "png"}
    return {f"make {name}": make, f"{name} sheet": gr.Image(label=TABS[name], alt_text=alt_text, **options)}


# The events


def _connect_tools(page: Page, parts: Parts, decorate: Callable[[Any], Any]) -> None:
    """The buttons, and Enter in the seed. These events are what programs may call, too."""

    def connect(trigger: Any, method: Any, inputs: list[str], outputs: list[str]) -> None:
        named: Any = {"inputs": [parts[name] for name in inputs], "outputs": [parts[name] for name in outputs]}
        trigger(decorate(method), **named, api_name=method.__name__, concurrency_id="generator")

    weights = [name for name in page.defaults if name.startswith("weight")]
    settings = ["classes", "mix", "truncation", "seed", "number", *weights, *page.directions]
    connect(parts["seed"].submit, page.sample, settings, ["pictures", "sheet", "kept"])
    walked = ["over", "classes", "truncation", "seed"]
    connect(parts["make walk"].click, page.walk, walked, ["film", "gif", "mp4"])
    connect(parts["make sweep"].click, page.sweep, ["classes", "seed"], ["sweep sheet"])
    if page.data_set is not None:
        searched = ["classes", "truncation", "seed"]
        connect(parts["make neighbours"].click, page.neighbours, searched, ["neighbours sheet"])


def _connect_settings(page: Page, parts: Parts, decorate: Callable[[Any], Any], blocks: gr.Blocks) -> None:
    """What the page does by itself: it shows at once what was set, and keeps it in its address."""
    settings = [parts[name] for name in page.defaults]
    sliders = [parts[name] for name in page.defaults if name.startswith("weight")]
    private: Any = {"api_visibility": "private"}
    refresh: Any = {"fn": decorate(page.live), "inputs": settings, "concurrency_id": "generator", **private}
    refresh["outputs"] = [parts[name] for name in ("pictures", "sheet", "kept", "frame")]
    remember: Any = {"fn": None, "js": REMEMBER.replace("DEFAULTS", json.dumps(page.defaults)), "inputs": settings}
    weigh: Any = {"inputs": [parts["classes"], parts["mix"]], "outputs": sliders, "queue": False, **private}

    changed = [part.input for part in settings if part is not parts["tab"]]
    gr.on(changed, **remember)
    gr.on([parts["classes"].input, parts["mix"].input], page.weight_sliders, **weigh)
    gr.on(changed, **refresh, trigger_mode="always_last")
    another = "() => Math.floor(Math.random() * 2 ** 32)"
    parts["another"].click(None, js=another, outputs=parts["seed"]).then(**remember).then(**refresh)
    # Not of each tab: those events come when the page is laid out, too.
    opened = parts["tabs"].select(page.opened, outputs=parts["tab"], queue=False, **private)
    opened.then(**remember).then(**refresh)
    restored: Any = {"inputs": parts["query"], "outputs": [parts["tabs"], *settings], "queue": False, **private}
    loaded = blocks.load(page.restore, js="() => location.search", **restored)
    loaded.then(page.weight_sliders, **weigh).then(**refresh)


# The server


class OwnRequests:
    """
    The page takes what it sends itself, and what programs may call: no files, nothing that makes the server fetch an
    address, and no more than `MOST_BYTES` (ASGI).
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sends = scope["method"] == "POST"
        if CLOSED.match(scope["path"]) or (sends and not EVENTS.fullmatch(scope["path"])):
            return await PlainTextResponse("not here", 404)(scope, receive, send)
        body = await _received(receive) if sends else b""
        if len(body) > MOST_BYTES:
            return await PlainTextResponse("too large", 413)(scope, receive, send)
        if sends and not _is_of_settings(body):
            return await PlainTextResponse("no JSON, or with a file", 400)(scope, receive, send)
        messages = [{"type": "http.request", "body": body}] * sends

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, received, send)


async def _received(receive: Any) -> bytes:
    """The body of a request, as far as it is needed to say that it is too large."""
    body, more = b"", True
    while more and len(body) <= MOST_BYTES:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _is_of_settings(body: bytes) -> bool:
    """Whether a body is JSON, and holds nothing that gradio takes for a file: of that it would fetch the address."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if {"path", "meta"} <= {name for name, _ in pairs}:
            raise ValueError("a file")

    try:
        json.loads(body, object_pairs_hook=check)
    except (ValueError, RecursionError):
        return False
    return True


def serve(blocks: gr.Blocks, **options: Any) -> None:
    """
    Starts the server.

    Args:
        blocks: As `build` returns them.
        options: Of gradio's `launch`. Without a `server_name` the address is 127.0.0.1, or what GRADIO_SERVER_NAME
            says, as on a Space.
    """
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # which are fetched nowhere
    # Else `/run/` would compute beside the queue, many at once.
    blocks.queue(max_size=MOST_WAITING, api_open=False).launch(
        theme=gr.themes.Default(font=fonts[0], font_mono=fonts[1]),
        css=CSS,
        footer_links=["api", "settings"],
        run_history=False,
        allowed_paths=[get_upload_folder()],  # an empty list would leave it to GRADIO_ALLOWED_PATHS
        state_session_capacity=MOST_SESSIONS,
        app_kwargs={"middleware": [Middleware(OwnRequests)]},
        **options,
    )
