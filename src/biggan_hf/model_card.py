"""The text of a generated model card: what a reader needs to use a model."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig

from .cards import ENGINES, escaped, settings_table, signed, with_part
from .class_labels import label_of
from .embedded import PREFIX
from .engine_files import Index


CARD, SAMPLES = "README.md", "samples.png"
SHEETS = {  # that a card shows, each with its caption
    SAMPLES: "Samples, a row for each of the first classes.",
    "truncation.png": "The same draws at each truncation: the smaller, the more typical and the less varied.",
}
# How a reader of a card gets the package. It has no address yet. A reader must not take a stranger's of the same name.
INSTALL = """\
The model needs the package `biggan_hf` (Python ≥ 3.11). It is not on PyPI. In a clone of its repository:

```bash
pip install torch
pip install {target}
```"""
# What a card names before it is known where the model will be.
NO_PLACE_YET = "path/to/this/folder"

CITATION = """\
```bibtex
@inproceedings{brock2019large,
  title     = {Large Scale {GAN} Training for High Fidelity Natural Image Synthesis},
  author    = {Andrew Brock and Jeff Donahue and Karen Simonyan},
  booktitle = {International Conference on Learning Representations},
  year      = {2019},
  url       = {https://arxiv.org/abs/1809.11096},
}
```"""

LIMITS = """\
For research on generative models, and for making pictures of the kind that the model was trained on. It shows the
variety, the gaps and the biases of its training pictures, and may come close to some of them. Its pictures are
not photographs: do not present them as such. A low truncation gives typical pictures, a high one varied pictures with
more failures."""

HOW_TO_LICENSE = "`biggan-hf push FOLDER REPOSITORY --license ID`, or license= of push_to_hub, names one"
NO_LICENSE = f"""\
None is stated: ask the author before you use the model. If you are the author, choose one. That of the training
pictures may limit the choice. {HOW_TO_LICENSE}."""

CARD_SETTINGS = "architecture image_size num_channels num_labels z_dim class_embedding_dim truncation_mode".split()
CARD_SETTINGS += ["generator_base_channels", "discriminator_base_channels"]


def model_card(
    config: PreTrainedConfig,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
    datasets: list[str] | None = None,
    base_model: str | None = None,
    base_model_relation: str = "finetune",
    sheets: Iterable[str] = (),
    directions: Sequence[str] = (),
    has_code: bool = False,
    engines: Mapping[str, Index] | None = None,
    has_weights: bool = True,
) -> str:
    """
    The text of a repo's `README.md`: metadata for the Hub's search, then what a reader needs to use the model.

    Args:
        config: The model's `BigGANConfig`.
        repo_id: `"user/name"` on the Hub: the title and the usage examples name it.
        revision: The branch that the usage examples name.
        license: An identifier of the Hub's list, such as `"mit"`. `None` claims nothing, and the card asks for one:
            the weights' license depends on the pictures they were trained on.
        tags: Added to the card's own.
        datasets: Ids of the training data sets on the Hub.
        base_model: Id on the Hub of the model that this one was made of. A model of this package is left out.
        base_model_relation: How it was made of it, in the Hub's words.
        sheets: Those of `SHEETS` that lie beside the card.
        directions: The names of the directions in the repo's `directions.json`.
        has_code: Whether the repo holds the code of the model.
        engines: What is known of the repo's exported graphs, by engine.
        has_weights: Whether the repo holds weights, and not graphs alone.
    """
    own_tags = ["biggan", "gan", "image-generation"]
    own_tags += ["class-conditional-image-generation"] if config.num_labels else []
    place = _place(repo_id, revision)
    data = ModelCardData(
        license=license,
        library_name="biggan_hf",
        pipeline_tag="unconditional-image-generation",
        tags=own_tags + (tags or []),
        datasets=datasets,
        **cast(Any, _origin(base_model, base_model_relation, engines or {}, has_weights)),
    )
    sections = [
        f"# {escaped(repo_id).split('/')[-1] if repo_id else 'BigGAN'}",
        _summary(config),
        *(f"![{Path(name).stem}]({name})\n\n*{SHEETS[name]}*" for name in SHEETS if name in sheets),
        f"## Usage\n\n{_install(engines or {}, has_weights)}",
        _usage(config, place, "" if has_weights else _choice(engines or {})),
        _on_directions(directions, _truncation(config)) if directions else "",
        _on_code(place) if has_code and has_weights else "",
        f"## Architecture\n\n{settings_table({name: getattr(config, name) for name in CARD_SETTINGS})}",
        f"## Intended use and limits\n\n{LIMITS}",
        "" if license else f"## License\n\n{NO_LICENSE}",
        f"## Citation\n\n{CITATION}",
    ]
    card = signed(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)))
    return with_part(card, on_engines(engines or {}, repo_id, revision), ENGINES)


def _place(repo_id: str | None, revision: str | None = None) -> str:
    """The arguments of `from_pretrained` that load a model."""
    return f"{repo_id or NO_PLACE_YET!r}" + (f", revision={revision!r}" if revision else "")


def _summary(config: PreTrainedConfig) -> str:
    name, size = {"biggan": "BigGAN", "biggan-deep": "BigGAN-deep"}[config.architecture], config.image_size
    classes = f"in {config.num_labels} classes" if config.num_labels else "without classes"
    return f"A {name} generator of {size}×{size} images {classes} ([Brock et al. 2018](https://arxiv.org/abs/1809.11096))."


def _origin(made_of: str | None, relation: str, engines: Mapping[str, Index], has_weights: bool) -> dict[str, str]:
    """
    The model that this one was made of; or of a repository of graphs alone the model that they were exported from. A
    repository with weights of its own is that model: it is no quantized copy of itself.
    """
    if made_of and has_weights and not made_of.startswith(PREFIX):
        return {"base_model": made_of, "base_model_relation": relation}
    sources = {entry.get("source") for index in engines.values() for entry in index.values()}
    source = sources.pop() if len(sources) == 1 and not has_weights else None
    return {"base_model": source, "base_model_relation": "quantized"} if source else {}


def _install(engines: Mapping[str, Index], has_weights: bool) -> str:
    """The lines that install what the usage needs: of graphs alone, the engine that it chooses, too."""
    return INSTALL.format(target="." if has_weights else f'".[{next(iter(engines))}]"')


def _choice(engines: Mapping[str, Index]) -> str:
    """The keywords that load the smallest graph of the fastest engine, in front of which stands another argument."""
    for engine, index in engines.items():
        precision = min(index, key=lambda name: index[name].get("bytes", 0))
        return f', engine="{engine}", precision="{precision}"'
    return ""


def on_engines(engines: Mapping[str, Index], repo_id: str | None, revision: str | None = None) -> str:
    """The section of a card on exported graphs; empty if there are none."""
    rows = [
        f"| {engine} | {escaped(precision)} | {entry.get('bytes', 0) / 1e6:.1f} MB | {escaped(_check_of(entry))} |"
        for engine, index in engines.items()
        for precision, entry in index.items()
    ]
    if not rows:
        return ""
    table = "\n".join(["| engine | precision | size | check |", "|---|---|---|---|", *rows])
    return f"""\
## Engines

The generator as a graph, for a CPU. Such a pipeline does what one in torch does.

{table}

The package comes with the engine if its name stands in brackets:

```bash
pip install ".[{next(iter(engines))}]"
```

```python
from biggan_hf import BigGANPipeline

pipe = BigGANPipeline.from_pretrained({_place(repo_id, revision)}{_choice(engines)})
```"""


def _check_of(entry: Mapping[str, Any]) -> str:
    # What was found when the graph was compared with the model: `exporting.py` and `quantizing.py` write it down.
    if "largest_difference" in entry:
        return f"images differ from the model's by at most {entry['largest_difference']:.0e} in [-1, 1]"
    measures = {"FD": entry.get("frechet_distance"), "KD": entry.get("kernel_distance")}
    found = [
        f"{name}-{entry.get('extractor')} {measure['int8']} (the model in float32: {measure['float']})"
        for name, measure in measures.items()
        if measure
    ]
    return "; ".join([*found, f"of {entry['images']} images each"] if found else [])


def _usage(config: PreTrainedConfig, place: str, choice: str) -> str:
    prompt = label = ""
    for name in list((config.id2label or {}).values())[:1]:
        prompt, label = f"{_prompt(name.split(',')[0].strip(), config)!r}, ", "class_labels=[0], "
    drawn = f"truncation={_truncation(config)}, generator=generator"
    network = f"""

model = BigGANModel.from_pretrained({place})
images = model.sample({label}num_images_per_prompt=4, {drawn})  # tensor in [-1, 1]"""
    return f"""\
```python
import torch
from biggan_hf import {"" if choice else "BigGANModel, "}BigGANPipeline

generator = torch.Generator().manual_seed(0)

pipe = BigGANPipeline.from_pretrained({place}{choice})
images = pipe({prompt}num_images_per_prompt=4, {drawn}).images  # PIL images{"" if choice else network}
```"""


def _truncation(config: PreTrainedConfig) -> float:
    """One that the model takes: without a table of standing statistics any, else one of the table."""
    table = filter(None, config.standing_truncations)  # a mirrored one begins at 0
    return min(table, key=lambda t: abs(t - 0.5), default=0.5)


def _prompt(name: str, config: PreTrainedConfig) -> int | str:
    """The name of the first class as the pipeline takes it; its id, where that is none or looks like a comment."""
    with suppress(ValueError):
        if name != "LABEL_0" and "<" not in name and label_of(name, config.id2label) == 0:
            return name
    return 0


def _on_directions(names: Sequence[str], truncation: float) -> str:
    return f"""\
## Directions

`directions.json` has directions of the latents: {", ".join(names)}. With the pipeline from above:

```python
images = pipe(num_images_per_prompt=4, truncation={truncation}, directions={{{names[0]!r}: 2.0}}).images
```"""


def _on_code(place: str) -> str:
    return f"""\
## Without the package

With the code in this repository, and these packages alone:

```bash
pip install torch transformers pillow
```

```python
from transformers import AutoModel, pipeline

pipe = pipeline(model={place}, trust_remote_code=True)
images = pipe(None, num_images_per_prompt=4)  # PIL images; in place of None a class

model = AutoModel.from_pretrained({place}, trust_remote_code=True)
images = model.sample(num_images_per_prompt=4)  # tensor in [-1, 1]
```"""


def with_code(card: str, repo_id: str | None, revision: str | None = None) -> str:
    """The card with a section on the code that its repository holds, unless it tells of that."""
    return card if "trust_remote_code" in card else f"{card.rstrip()}\n\n{_on_code(_place(repo_id, revision))}\n"
