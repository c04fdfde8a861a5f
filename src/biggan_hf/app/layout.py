"""How the page is laid out, and what each control does."""

import json
from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from typing import Any

import gradio as gr

from .page import MOST_CLASSES, TABS, Page


KEEP_FILES = (600, 3600)  # seconds: every ten minutes, gradio deletes the files that are an hour old

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
