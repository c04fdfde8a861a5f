"""The code and the commands of the pages: where they stand, and whether the programs that they name take them."""

import argparse
import ast
import importlib
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from accelerate.commands.accelerate_cli import main as accelerate_main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from biggan_hf.cli import build_parser
from biggan_hf.options import underscored
from biggan_hf.training import parse_arguments


ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "conversion/*.md", "examples/*.md", "src/biggan_hf/models/*/*.md")
    for path in ROOT.glob(pattern)
)
# What a page may be written in. Blocks without a language show what a program prints.
COMMANDS, OTHERS = {"bash", "sh", "shell", "console"}, {"", "text", "yaml", "json", "toml", "mermaid", "bibtex"}
LANGUAGES = {"python", *COMMANDS, *OTHERS}
# The programs that a page may call; what is not here ends its block with "command not found".
PROGRAMS = ("accelerate", "biggan-hf", "git", "hf", "make", "pip", "pytest", "python")
# What stands for any command, option or file within a sentence.
STANDS_FOR_ANY = {"COMMAND", "--name", "--flags", "[settings.yaml]"}
# Scripts that are not in this project: of an exported Space, and of BigGAN-PyTorch.
ELSEWHERE = {"app.py", "sample.py", "make_hdf5.py", "calculate_inception_moments.py"}
# Packages that pages name though no extra brings them.
BESIDES = {"nncf", "trackio"}


@dataclass
class Block:
    """A piece of code, and the line of the page where it begins."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


FENCE = re.compile(r"^( *)(```+|~~~+) *([\w-]*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(rf"^    +((?:\w+=\S+ )*(?:{'|'.join(PROGRAMS)}) .*)$", re.MULTILINE)
INLINE = re.compile(rf"`((?:\w+=\S+ )*(?:{'|'.join(PROGRAMS)}|train\.py) [^`]+)`")


def blocks(page: str, text: str | None = None) -> list[Block]:
    """Every block of a page, in order: those between fences, and commands that are indented."""
    text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    found = [
        (match.start(), match[3], re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE))
        for match in FENCE.finditer(text)
    ]
    rest = without_fences(text)
    found += [(match.start(), "bash", match[1]) for match in INDENTED.finditer(rest)]
    return [Block(page, text.count("\n", 0, start) + 1, *what) for start, *what in sorted(found)]


def without_fences(text: str) -> str:
    """The text with a blank in the place of each character of a block between fences, so that places stay."""
    return FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def inline_commands(page: str) -> list[str]:
    """The commands within sentences."""
    text = INDENTED.sub("", without_fences((ROOT / page).read_text(encoding="utf-8")))
    return [" ".join(command.split()) for command in INLINE.findall(text)]


# From a block to the words of its commands


def commands(text: str, folder: Path) -> list[list[str]]:
    """
    The words of each command that bash runs in `folder` for this text, where the programs only note their words. What
    is no command, or stands in no folder, ends in an error.
    """
    programs, log = folder.with_name(f"{folder.name}-programs"), folder.with_name(f"{folder.name}-log")
    if not programs.exists():
        programs.mkdir()
        for name in PROGRAMS:
            (programs / name).write_text(NOTES)
            (programs / name).chmod(0o755)
    log.write_bytes(b"")
    bash = shutil.which("bash")
    assert bash is not None
    text = re.sub(r"^\$ ", "", text, flags=re.MULTILINE)
    done = subprocess.run(
        [bash, "-euc", text],
        cwd=folder,
        env={"PATH": str(programs), "LOG": str(log)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"bash: {done.stderr}"
    lines = log.read_bytes().decode().split("\x01")[:-1]
    return [[word for word in line.split("\0")[:-1] if word != "…"] for line in lines]


NOTES = r"""#!/bin/sh
printf '%s\0' "${0##*/}" "$@" >> "$LOG"
printf '\1' >> "$LOG"
"""


# Whether a program takes its words


class Reached(BaseException):
    """A program has made its parser, which is the argument, and is about to parse with it."""


def parser_of(run: Any, *args: Any) -> argparse.ArgumentParser:
    """The parser that a program makes when it is run."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Reached(parser)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, name, stop)
        try:
            run(*args)
        except Reached as reached:
            return reached.args[0]
    raise AssertionError(f"{run.__name__} makes no parser")


@cache
def parser_of_script(name: str) -> argparse.ArgumentParser | None:
    """That of a script of this project; `None` if it has none."""
    path = ROOT / name
    assert path.is_file(), f"there is no script {name!r}"
    source = path.read_text(encoding="utf-8")
    compile(source, name, "exec")
    if "argparse" not in source:
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.setattr("sys.argv", [name])
        return parser_of(lambda: runpy.run_path(str(path), run_name="__main__"))


def unwrapped(words: list[str]) -> list[str]:
    """The words behind `accelerate launch` and `python`; a training begins with `biggan-hf train`."""
    match words:
        case ["accelerate", "launch", _, *_]:
            args = parser_of(accelerate_main).parse_args(words[1:])
            return unwrapped(["python", *["-m"] * bool(args.module), args.training_script, *args.training_script_args])
        case ["python", "-m", "biggan_hf" | "biggan_hf.cli", *rest]:
            return ["biggan-hf", *rest]
        case ["python", "-m", "biggan_hf.training", *rest] | ["python", "train.py", *rest] | ["train.py", *rest]:
            return ["biggan-hf", "train", *rest]
        case ["python", "conversion/convert.py", *rest]:
            return ["biggan-hf", "convert", *rest]
        case ["python", script, *rest] if script.endswith(".py"):
            return [script, *rest]
    return words


def parsers_of(words: list[str]) -> list[argparse.ArgumentParser]:
    """The parsers of which one must take what is behind the program and its sub-command."""
    match words:
        case ["biggan-hf", "train", *_]:
            return [parser_of(parse_arguments, [])]
        case ["biggan-hf", "convert", *_]:
            scripts = sorted(path.name for path in (ROOT / "conversion").glob("convert_*.py"))
            return [parser for name in scripts if (parser := parser_of_script(f"conversion/{name}"))]
        case ["biggan-hf", *rest]:
            return [sub_parser(build_parser(), rest)]
        case ["accelerate", *rest]:
            return [sub_parser(parser_of(accelerate_main), rest)]
        case [script, *_] if script.endswith(".py"):
            return [parser for parser in [parser_of_script(script)] if parser]
    raise AssertionError(f"{words[0]!r} is not a program that the pages may call")


def sub_parser(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser:
    """That of a sub-command, where the words begin with one."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not choices or not words or words[0].startswith("-"):
        return parser
    assert words[0] in choices[0], f"there is no command {words[0]!r}"
    return choices[0][words[0]]


def check(words: list[str]) -> None:
    """
    Raises:
        AssertionError, SystemExit, ValueError, or an error of click: There is no such program, command, option,
            choice, target or extra, or an argument is missing.
    """
    words = unwrapped(words)
    special = {"git": lambda rest: None, "hf": check_hf, "make": check_make, "pip": check_pip, "pytest": check_pytest}
    if words[0] in special:
        special[words[0]](words[1:])
        return
    parsers = parsers_of(words)
    rest = words[1:] if words[0].endswith(".py") else words[2:]
    if words[:2] == ["biggan-hf", "train"] and rest[:1] and (ROOT / rest[0]).suffix == ".yaml":
        assert (ROOT / rest[0]).is_file(), f"there is no file of settings {rest[0]!r}"
        rest = rest[1:]
    for parser in parsers:
        try:
            parser.parse_args(rest)
            return
        except SystemExit as end:
            if end.code == 0 or parser is not parsers[-1]:  # 0: --help
                continue
            raise


def check_names(command: str) -> None:
    """As `check`, of a command within a sentence, which may leave things out or name a value by what it is."""
    for part in re.split(r" (?:&&|\|) ", command.replace("…", "")):
        words = [word for word in shlex.split(part) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        if (STANDS_FOR_ANY | ELSEWHERE) & {*words}:
            continue
        words = unwrapped(words)
        if words[0] in ("git", "hf", "make", "pip", "pytest"):
            check(words)
            continue
        known = {option for parser in parsers_of(words) for option in parser._option_string_actions}
        options = {word.partition("=")[0] for word in underscored(words[1:]) if word.startswith("-")}
        assert options <= known | {"--help", "--version"}, f"{command}: {sorted(options - known)}"


def check_make(targets: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, env=without_make(), check=True, capture_output=True)


def without_make() -> dict[str, str]:
    """The environment without the flags of a `make` that runs the tests."""
    return {name: os.environ[name] for name in os.environ.keys() - {"MAKEFLAGS", "MAKELEVEL", "PYTHON"}}


def check_pip(words: list[str]) -> None:
    import setuptools  # noqa: F401 - before pip, which imports distutils
    from pip._internal.commands import create_command

    command, *rest = words
    options, names = create_command(command).parse_args(rest)
    setup, pinned = metadata(), {canonicalize_name(line.partition("==")[0]) for line in constraints()}
    for name in [*names, *getattr(options, "editables", [])]:
        where = re.fullmatch(r"\.(?:\[(.+)\])?", name)
        requirement = Requirement(f"biggan_hf[{where[1] or ''}]" if where else name)
        if requirement.name == "biggan_hf":
            unknown = requirement.extras - setup["extras_require"].keys()
            assert not unknown, f"there is no extra {sorted(unknown)}"
        else:
            assert canonicalize_name(requirement.name) in pinned | BESIDES, f"no package {name!r} in constraints.txt"


def constraints() -> list[str]:
    """The lines of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@cache
def metadata() -> dict[str, Any]:
    """The arguments with which setup.py calls `setup`."""
    arguments: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", arguments.update)
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    return arguments


def check_hf(words: list[str]) -> None:
    from huggingface_hub.cli.hf import app

    command: Any = app
    context = command.make_context("hf", [], resilient_parsing=True)
    while hasattr(command, "get_command"):
        assert words, f"{command.name} is no whole command"
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name!r}"
        command = getattr(command, "materialize", lambda known=command: known)()
    try:
        context = command.make_context(command.name, words)  # raises for what there is not
    except click.exceptions.Exit as end:  # its help
        assert end.exit_code == 0
        return
    script = context.params.get("script")  # for which it takes an option that it does not know
    assert script is None or (ROOT / script).is_file(), f"there is no script {script!r}"


def check_pytest(words: list[str]) -> None:
    from _pytest.config import get_config

    config = get_config()
    options = config._parser.parse(words)
    for name in options.file_or_dir:
        assert (ROOT / name.partition("::")[0]).exists(), f"there is no {name!r}"


# Code that is not run


def check_code(text: str, known: dict[str, Any]) -> None:
    """
    Every name that the code imports exists, and what it calls by an imported or known name takes the keywords.

    Raises:
        AssertionError, ImportError, SyntaxError: Otherwise.
    """
    tree, known = ast.parse(text), {**known}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name.partition(".")[0]: imported(a.name, bool(a.asname)) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
                known[alias.asname or alias.name] = getattr(module, alias.name)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for function in resolved(call.func, known):
            check_keywords(ast.unparse(call.func), function, call)


def imported(name: str, whole: bool) -> Any:
    """What `import a.b` binds: `a`, or `a.b` under another name."""
    module = importlib.import_module(name)
    return module if whole else sys.modules[name.partition(".")[0]]


def resolved(node: ast.expr, known: dict[str, Any]) -> Iterator[Any]:
    """What a known name, or a path of attributes from one, stands for; nothing for other expressions."""
    if isinstance(node, ast.Name) and node.id in known:
        yield known[node.id]
    elif isinstance(node, ast.Attribute):
        for value in resolved(node.value, known):
            assert hasattr(value, node.attr), f"{ast.unparse(node)}: there is no {node.attr}"
            yield getattr(value, node.attr)


def check_keywords(name: str, function: Any, call: ast.Call) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of C
        return
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        unknown = {keyword.arg for keyword in call.keywords if keyword.arg} - {p.name for p in parameters}
        assert not unknown, f"{name} takes no {sorted(unknown)}"
