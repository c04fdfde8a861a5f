"""A number never goes without its protocol: reports as JSON, as a table, and in a model's card."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard


TASK = "unconditional-image-generation"  # the Hub's name, with classes or without
BEGIN, END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"


@dataclass(frozen=True)
class Measure:
    """
    Args:
        key: `"fid"`, `"kid"`, `"is"`, `"precision"`, `"recall"`, `"density"`, `"coverage"`, `"intra_class_fid"`, or
            one of these after `"floor_"` or `"reference_"`.
        label: How the number is called, with the extractor's name in it.
        value: The number.
        deviation: Standard deviation over subsets (KID), splits (IS) or classes (intra-class FID).
    """

    key: str
    label: str
    value: float
    deviation: float | None = None


@dataclass(frozen=True)
class Report:
    """
    Args:
        measures: The numbers.
        protocol: All that they depend on: nested dictionaries of JSON values.
    """

    measures: list[Measure]
    protocol: dict[str, Any]

    def __getitem__(self, key: str) -> float:
        """The value of the measure with this key."""
        return next(measure.value for measure in self.measures if measure.key == key)

    def __contains__(self, key: str) -> bool:
        return any(measure.key == key for measure in self.measures)

    @property
    def values(self) -> dict[str, float]:
        """The numbers by label."""
        return {measure.label: measure.value for measure in self.measures}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """Markdown: the numbers, then the protocol."""
        numbers = [(measure.label, in_digits(measure)) for measure in self.measures]
        protocol = [(name, "none" if value is None else str(value)) for name, value in flatten(self.protocol).items()]
        return f"{_table(('measure', 'value'), numbers)}\n\n{_table(('protocol', ''), protocol)}"


def in_digits(measure: Measure) -> str:
    text = f"{measure.value:.5g}"
    return text if measure.deviation is None else f"{text} ± {measure.deviation:.2g}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dots in its keys."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    cells = [tuple(" ".join(text.split()).replace("|", "\\|") for text in row) for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    lines = [f"| {left.ljust(widths[0])} | {right.ljust(widths[1])} |" for left, right in cells]
    return "\n".join([lines[0], f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|", *lines[1:]])


def write_json(reports: list[Report], path: Path) -> None:
    """One report as an object, several as a list; the file appears when it is whole."""
    dictionaries = [report.to_dict() for report in reports]
    text = json.dumps(dictionaries if len(reports) > 1 else dictionaries[0], indent=2, ensure_ascii=False)
    write_text(text + "\n", path)


def write_text(text: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# The model's card


def eval_results(report: Report) -> list[EvalResult]:
    """What the Hub shows beside a model: a result for each number of its samples, with its protocol."""
    reference = report.protocol["reference"]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=reference["source"],
            dataset_name=reference["source"],
            dataset_split=reference.get("split"),
            metric_type=measure.label.lower().replace(" ", "-"),
            metric_name=measure.label,
            metric_value=measure.value,
            metric_args=flatten(report.protocol),
        )
        for measure in report.measures
    ]


def add_to_card(report: Report, path: Path, model_name: str) -> None:
    """
    Puts the numbers into a `README.md`: into its metadata (`model-index`), and as a section that a later report
    replaces.

    Raises:
        FileNotFoundError: There is no such card.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no card {str(path)!r} to add the numbers to")
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    data: Any = card.data
    data.model_name, data.eval_results = model_name, eval_results(report)
    before, _, rest = card.text.partition(BEGIN)
    after = rest.partition(END)[2]
    section = f"{BEGIN}\n## Evaluation\n\n{report.table()}\n{END}"
    text = f"{before.rstrip()}\n\n{section}\n{after}"
    write_text(f"---\n{data.to_yaml()}\n---\n\n{text.lstrip()}", path)
