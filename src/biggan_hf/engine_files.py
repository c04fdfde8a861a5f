"""The files of exported graphs: `onnx/` and `openvino/` beside a `config.json`, and what is known of each graph."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import write_text


# The engines with files of their own, the fastest first, and the package that runs each.
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
# What is known of an engine's files: for each precision the file, its size, its check, and the weights it was made of.
INDEX = "export.json"
EMBEDDINGS = "class_embeddings.npy"  # float32 (num_labels, class_embedding_dim), to mix classes

Index = dict[str, dict[str, Any]]  # what is known of each graph of an engine, by precision


def file_of(engine: str, precision: str) -> str:
    """The name of a graph within the folder of its engine."""
    suffix = "" if precision == "fp32" else f"_{precision}"
    return f"model{suffix}.onnx" if engine == "onnx" else f"openvino_model{suffix}.xml"


def read_index(folder: Path) -> Index:
    """What is known of the graphs in an engine's folder; empty if there is no such folder."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if all(_is_entry(entry) for entry in index.values()):
            return index
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{str(path)!r} is no index of exported graphs; export the model anew")


def _is_entry(entry: Mapping[str, Any]) -> bool:
    # `crc32` names all files of the graph, within the folder of its engine.
    name, names = entry["file"], entry["crc32"].keys()
    files = {name, f"{Path(name).stem}.bin"} if name.endswith(".xml") else {name}
    return files <= names and all(Path(name).name == name for name in names) and "weights" in entry


def write_index(folder: Path, index: Index) -> None:
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def check_graphs(folder: Path, weights: str | None) -> None:
    """
    Raises `ValueError` if a folder holds graphs of other weights than those with this checksum. Only a folder without
    weights is asked, whose `config.json` is that of all graphs in it.
    """
    for engine in PACKAGES:
        index = read_index(folder / engine)
        if len(of_weights(index, weights)) < len(index):
            raise ValueError(f"{str(folder)!r} holds graphs of another model; take a folder of its own")


def of_weights(index: Index, weights: str | None) -> Index:
    """Those of the graphs that were made of the weights with this checksum."""
    return {precision: entry for precision, entry in index.items() if entry["weights"] == weights}
