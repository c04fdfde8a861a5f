"""Who may import whom, and how long and how deep a function may be (docs/architecture.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import biggan_hf


PACKAGE = Path(biggan_hf.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}

# The table of docs/architecture.md: the parts (a file or a folder of the package), and the parts that each may import.
ROW = re.compile(r"^\| ([\w, ]+) \| (.+) \|$", re.MULTILINE)
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
TABLE = PAGE.read_text().split("## Who may import whom")[1].split("\n## ")[0]
MAY_IMPORT = {
    part: set(may_import.split(", ")) - {"nothing"}
    for parts, may_import in ROW.findall(TABLE)
    for part in parts.split(", ")
}
MODEL_FILES = {
    "modeling_biggan",
    "sampling_biggan",
    "layers",
    "eval_mode",
    "spectral_norm",
    "ops",
    "configuration_biggan",
    "presets",
    "remote_pipeline",
}
ANYTHING = {"__init__", "__main__", "cli", "commands"}


def part_of(file: str) -> str:
    """The file's name, or its folder's."""
    return file.removesuffix(".py").partition("/")[0]


def imports(file: str) -> Iterator[tuple[str, bool]]:
    """Every module that the file imports, with its full name, and whether it was written as `from .name import …`."""
    package = ["biggan_hf", *file.split("/")[:-1]]
    for node in ast.walk(FILES[file]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            folder = package[: len(package) + 1 - node.level]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((".".join([*folder, module]), node.level == 1 and bool(node.module)) for module in modules)


def third_party(name: str) -> set[str]:
    """Parts of the package that import a third party's package."""
    return {part_of(file) for file in FILES for module, _ in imports(file) if module.split(".")[0] == name}


@pytest.mark.parametrize("file", FILES)
def test_who_imports_whom(file: str) -> None:
    part = part_of(file)
    assert part in MAY_IMPORT.keys() | ANYTHING, f"{file} is not in the table of this test"
    of_the_package = [module.split(".") for module, _ in imports(file) if module.split(".")[0] == "biggan_hf"]
    imported = {names[1] if len(names) > 1 else "__init__" for names in of_the_package} - {part}
    assert part in ANYTHING or imported <= MAY_IMPORT[part]


def test_third_parties() -> None:
    assert third_party("torchvision") == third_party("diffusers") == set()
    assert third_party("accelerate") <= {"training"}
    assert third_party("datasets") <= {"data", "evaluation"}
    assert third_party("gradio") == {"app"}
    for engine in ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino"):
        assert third_party(engine) <= {"engines", "exporting", "quantizing"}


@pytest.mark.parametrize("name", sorted(MODEL_FILES))
def test_model_files_work_as_code_on_the_hub(name: str) -> None:
    # transformers copies the files that `from .name import …` names, and what those import in turn.
    reached, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        reached.add(current)
        inside = [item for item in imports(f"{current}.py") if item[0].startswith("biggan_hf")]
        assert all(flat and module.count(".") == 1 for module, flat in inside), current
        waiting += {module.removeprefix("biggan_hf.") for module, _ in inside} - reached
    others = "cards class_labels devices embedded engine_files files finite hub images initialization keywords latents"
    assert reached <= MODEL_FILES | {*others.split(), "directions", "loading", "model_card", "sheets"}


# Files are written by files.py

# What else writes, and why it may: mostly into a file or a folder that files.py will put in its place.
WRITES = {
    "hub.py": {
        "tempfile": "a folder to upload",
        "write_bytes": "the card, into this folder",
    },
    "exporting.py": {"tempfile": "a graph in ONNX on its way to OpenVINO or to int8"},
    "data/preparing.py": {"open": "at the path that write_file gives"},
    "app/page.py": {"tempfile": "a film or a sheet, on its way to the files that gradio serves"},
    "commands/app.py": {"tempfile": "the files that gradio serves, until the page is closed"},
    "media.py": {"open": "a film, and the parts of an archive, at the path that write_file gives"},
    "evaluation/statistics.py": {"open": "at the path that write_file gives"},
    "training/uploads.py": {"tempfile": "a copy of the networks, to upload"},
    "training/quality.py": {"write_text": "a note, into a replaced folder", "rename": "the best model of a dead end"},
    "training/compile_cache.py": {"write_bytes": "at the path that write_file gives"},
    "training/checkpoints.py": {"rename": "checkpoints of a dead end"},
}


def writes(file: str) -> Iterator[str]:
    """How a file writes: by `tempfile`, `os` (its `replace`), `write_text`, `write_bytes`, `rename` or `open`."""
    for node in (node for node in ast.walk(FILES[file]) if isinstance(node, ast.Call)):
        name = ast.unparse(node.func)
        module, _, function = name.rpartition(".")
        arguments = [ast.unparse(part) for part in [*node.args, *(keyword.value for keyword in node.keywords)]]
        if module == "tempfile" or name == "os.replace":
            yield module
        elif module and function in ("write_text", "write_bytes", "rename"):
            yield function
        elif function == "open" and any(re.fullmatch(r"'[rbt]*[wax+][rwaxbt+]*'", text) for text in arguments):
            yield function


def test_only_files_py_writes() -> None:
    found = {file: set(writes(file)) for file in FILES if file != "files.py"}
    assert {file: ways for file, ways in found.items() if ways} == {file: set(ways) for file, ways in WRITES.items()}


# Functions

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = ast.For | ast.AsyncFor | ast.While | ast.If | ast.With | ast.AsyncWith | ast.Try | ast.Match


def functions() -> Iterator[tuple[str, Function]]:
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{file}:{node.lineno} {node.name}", node


def body_length(function: Function) -> int:
    """Lines after the signature and the docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def depth(node: ast.AST) -> int:
    """Blocks inside each other; `elif` goes no deeper, and a function inside counts for itself."""
    inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, Function)]
    deepest = max((depth(child) for child in inner), default=0)
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        deepest = max([depth(child) for child in inner[:-1]] + [depth(node.orelse[0]) - 1])
    return deepest + isinstance(node, BLOCKS)


def test_functions_are_short() -> None:
    assert {name: body_length(function) for name, function in functions() if body_length(function) > 60} == {}


def test_functions_are_not_deep() -> None:
    assert {name: depth(function) for name, function in functions() if depth(function) > 3} == {}


def test_depth_counts_blocks() -> None:
    source = """
def f():
    with a:
        for b in c:
            if d:
                pass
            elif e:
                pass
            elif g:
                while h: pass
    def inner():
        if i: pass
"""
    outer = ast.parse(source).body[0]
    assert depth(outer) == 4
    assert depth(outer.body[1]) == 1  # type: ignore[attr-defined]
