"""Reports: numbers with their protocol, as JSON, as a table, and in a model's card."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import yaml_dump

from ..cards import (
    EVALUATION,
    INDEX,
    harmless,
    is_path,
    merged_numbers,
    of_protocol,
    public_name,
    with_numbers,
    with_part,
)
from ..files import write_text


TASK = "unconditional-image-generation"  # the Hub's name, with classes or without
LOCAL = "imagefolder"  # the Hub's word for pictures that are no data set there
OF_REAL_IMAGES = ("floor_", "reference_")  # how the keys of measures begin that are none of the model
RESULTS = ".eval_results"  # the Hub's folder of numbers beside the model, of which leaderboards are made


@dataclass(frozen=True)
class Measure:
    # "fid", "kid", "mind", "fwd", "is", "precision", "recall", "density", "coverage", "intra_class_fid", or one of
    # these after "floor_" or "reference_", or "score".
    key: str
    label: str  # the number's name, which includes the extractor's
    value: float
    deviation: float | None = None  # over subsets (KID), splits (IS) or classes (intra-class FID)
    interval: tuple[float, float] | None = None  # 95 %, from halves of the sets (`resampling.py`)
    num_images: int | None = None  # N, of the samples or of what stands in their place


@dataclass(frozen=True)
class Report:
    measures: list[Measure]
    protocol: dict[str, Any]  # all that the numbers depend on: nested dictionaries of JSON values

    def __getitem__(self, key: str) -> float:
        """The value of the measure with this key."""
        return self.measure(key).value

    def measure(self, key: str) -> Measure:
        return next(measure for measure in self.measures if measure.key == key)

    def __contains__(self, key: str) -> bool:
        return any(measure.key == key for measure in self.measures)

    @property
    def values(self) -> dict[str, float]:
        """The numbers by label."""
        return {measure.label: measure.value for measure in self.measures}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: `None` stands for it."""
        content = asdict(self)
        for measure in content["measures"]:
            measure["value"] = measure["value"] if math.isfinite(measure["value"]) else None
            measure["interval"] = measure["interval"] and list(measure["interval"])
        return content

    def table(self) -> str:
        """Markdown: the numbers, then the protocol."""
        numbers = [(one.label, in_digits(one), _interval(one), f"{one.num_images or ''}") for one in self.measures]
        protocol = [(name, "none" if value is None else str(value)) for name, value in flatten(self.protocol).items()]
        head = ("measure", "value", "95 % interval", "N")
        return f"{_table(head, numbers)}\n\n{_table(('protocol', ''), protocol)}"


def in_digits(measure: Measure) -> str:
    text = f"{measure.value:.5g}"
    return text if measure.deviation is None else f"{text} ± {measure.deviation:.2g}"


def _interval(measure: Measure) -> str:
    return "" if measure.interval is None else " to ".join(f"{end:.4g}" for end in measure.interval)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dots in its keys."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[" ".join(text.split()).replace("|", "\\|") for text in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write_json(reports: list[Report], path: Path) -> None:
    """Writes one report as an object, several as a list."""
    dictionaries = [report.to_dict() for report in reports]
    text = json.dumps(dictionaries if len(reports) > 1 else dictionaries[0], indent=2, ensure_ascii=False)
    write_text(path, text + "\n")


# The model's card


def _eval_results(report: Report) -> list[EvalResult]:
    """The model's numbers and their protocol as the Hub shows them beside it."""
    reference, when = report.protocol["reference"], _when(report.protocol)
    source = public_name(reference["source"])
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=LOCAL if source != reference["source"] else source,
            dataset_name=source,
            dataset_split=reference.get("split"),
            metric_type=_type(measure),
            metric_name=f"{measure.label} {when}".strip(),
            metric_value=measure.value,
            metric_args=flatten(_public(report.protocol)) | {"interval": _interval(measure) or None},
        )
        for measure in _numbers_of_the_model(report)
    ]


def _numbers_of_the_model(report: Report) -> list[Measure]:
    """Those that can be published: no infinite ones, and none of real images alone."""
    of_model = [measure for measure in report.measures if not measure.key.startswith(OF_REAL_IMAGES)]
    return [measure for measure in of_model if math.isfinite(measure.value)]


def _when(protocol: Mapping[str, Any]) -> str:
    """At which step of its training the model was measured, else with which weights; empty if it is no model."""
    samples = protocol.get("samples", {})
    if samples.get("global_step") is not None:
        return f"at step {samples['global_step']:,}"
    return f"with the weights {samples['checksum']}" if "checksum" in samples else ""


def add_to_card(report: Report, path: Path, model_name: str) -> None:
    """
    Puts the numbers into a `README.md`: as a section, which a later report replaces, and into its metadata
    (`model-index`), where they replace numbers of the same data set, measure and protocol; all others stay. Both say
    at which step, or with which weights, they were measured: the model may be trained further. The metadata never
    holds numbers of real images; those that an earlier version wrote there go.
    """
    data, card = read_card(path)
    ours: dict[str, Any] = eval_results_to_model_index(model_name, _eval_results(report))[0]
    report = replace(report, protocol=_public(report.protocol))
    measured = f"Measured {_when(report.protocol)}.\n\n" if _when(report.protocol) else ""
    table = harmless(report.table().replace("\\|", "&#124;"))
    card = with_part(card, f"## Evaluation\n\n{measured}{table}", EVALUATION)
    write_text(path, with_numbers(card, merged_numbers(data.get(INDEX) or [], ours)))


def write_eval_results(report: Report, folder: Path) -> Path | None:
    """
    Writes the numbers to a file in `.eval_results/`, as the Hub reads them beside a model. Its name comes from the
    data set and the protocol, so that a later report of the same protocol replaces it. Returns the file; `None` if the
    real images are no data set of the Hub, which that format cannot name.
    """
    source, protocol = report.protocol["reference"]["source"], flatten(_public(report.protocol))
    if is_path(source) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return None
    notes = "; ".join(f"{name}: {value}" for name, value in protocol.items() if value is not None)
    entries = [
        EvalResultEntry(source, _type(measure), measure.value, date=report.protocol.get("date"), notes=notes)
        for measure in _numbers_of_the_model(report)
    ]
    digest = hashlib.sha256(json.dumps(of_protocol(protocol), sort_keys=True, default=str).encode()).hexdigest()
    path = folder / RESULTS / f"{source.replace('/', '--')}-{digest[:8]}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_text(path, yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    return path


def _type(measure: Measure) -> str:
    return measure.label.lower().replace(" ", "-")


def _public(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol without paths of this machine."""
    nested = {name: _public(value) for name, value in protocol.items() if isinstance(value, Mapping)}
    paths = {name: public_name(protocol[name]) for name in ("source", "moments") if protocol.get(name)}
    return {**protocol, **nested, **paths}


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """
    The metadata and all the text of a `README.md`. Raises `FileNotFoundError` or `ValueError` where no numbers can be
    added to them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no card {str(path)!r} to add the numbers to")
    try:
        content = path.read_bytes().decode()
        block = REGEX_YAML_BLOCK.search(content)
        data = yaml.safe_load(block.group(2)) if block else {}
    except UnicodeDecodeError as error:
        raise ValueError(f"the card {str(path)!r} is no text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of {str(path)!r} is no YAML: {error}") from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ValueError(f"the metadata of {str(path)!r} must be a mapping, got a {type(data).__name__}")
    try:
        if data.get("model-index"):
            model_index_to_eval_results(data["model-index"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the model-index of {str(path)!r} is invalid ({error!r}): correct it, or remove it"
        ) from error
    return data, content
