"""What `pip install` and `make` see: metadata, extras, the tested versions, the commands."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import documented
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import biggan_hf


ROOT = Path(__file__).parents[1]
EXTRAS = {"train", "eval", "onnx", "openvino", "convert", "video", "demo", "bench", "docs", "adapters", "neighbours"}
EXTRAS |= {"app", "dev"}


@pytest.fixture
def metadata() -> dict[str, Any]:
    """The arguments with which setup.py calls `setup`."""
    return documented.metadata()


@pytest.fixture
def pins() -> dict[str, str]:
    """The version of each package that constraints.txt pins, by normal name."""
    pairs = [line.split("==") for line in documented.constraints()]
    return {canonicalize_name(name): version for name, version in pairs}


def test_version(metadata: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert metadata["version"] == biggan_hf.__version__ == citation["version"]


def test_typed_package_with_its_command(metadata: dict[str, Any]) -> None:
    assert {"biggan_hf", "biggan_hf.training"} <= set(metadata["packages"])
    assert metadata["package_data"] == {"biggan_hf": ["py.typed", "models/*/*"], "biggan_hf.conversion": ["*.txt"]}
    assert (ROOT / "src" / "biggan_hf" / "py.typed").exists()
    assert metadata["entry_points"]["console_scripts"] == ["biggan-hf = biggan_hf.cli:main"]


def test_conversion_is_a_package_in_every_install(metadata: dict[str, Any]) -> None:
    assert "biggan_hf.conversion" in metadata["packages"]
    for script in (ROOT / "conversion").glob("*.py"):
        found = find_spec(f"biggan_hf.conversion.{script.stem}")
        assert found is not None and Path(str(found.origin)).resolve() == script


def test_conversion_needs_no_search_path() -> None:
    # `python conversion/x.py` puts conversion/ on the path, an installed package does not.
    files = sorted((ROOT / "conversion").glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE))
    assert len(files) > 10 and not imported & {path.stem for path in files}
    assert "sys.path" not in text


def test_every_requirement_is_pinned_within_its_bounds(metadata: dict[str, Any], pins: dict[str, str]) -> None:
    assert metadata["extras_require"].keys() == EXTRAS
    assert not any("+" in version for version in pins.values())  # which would name one build
    for line in sum(metadata["extras_require"].values(), metadata["install_requires"]):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def required_by(name: str, extras: set[str], version: str | None) -> list[Requirement]:
    """What that version of a package requires here; nothing, where another version or none is installed."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return []
    lines = (package.requires or []) if package.version.split("+")[0] == version else []
    environments = [{"extra": extra} for extra in extras or {""}]
    requirements = map(Requirement, lines)
    return [r for r in requirements if r.marker is None or any(map(r.marker.evaluate, environments))]


def test_all_that_dev_pulls_in_is_pinned(metadata: dict[str, Any], pins: dict[str, str]) -> None:
    waiting = [Requirement(line) for line in metadata["install_requires"] + metadata["extras_require"]["dev"]]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # torch's own requirements name its CUDA libraries to the digit.
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(name)
        waiting += required_by(name, requirement.extras, pins.get(name))
    assert len(seen) > 30
    assert seen - pins.keys() == set()


# make


def dry_run(folder: Path, target: str) -> list[str]:
    """The commands that `make target` would run in a copy of the project."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ["Makefile", "setup.py", "constraints.txt"]:
        if not (folder / name).exists():
            shutil.copy2(ROOT / name, folder)
    command = ["make", "--dry-run", target]
    return subprocess.check_output(command, cwd=folder, env=documented.without_make(), text=True).splitlines()


def assert_in_order(commands: list[str], starts: list[str]) -> None:
    found = [next(i for i, command in enumerate(commands) if command.startswith(start)) for start in starts]
    assert found == sorted(found), commands


SAMPLE = ".venv/bin/biggan-hf sample demo/model"
INSTALL = [
    "python3 -m venv .venv",
    ".venv/bin/pip install \"$(grep -E '^torch==' constraints.txt)\"",
    '.venv/bin/pip install -c constraints.txt -e ".[EXTRA]"',
]


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("test", ["OMP_NUM_THREADS=1 .venv/bin/pytest"]),
        ("docs", [".venv/bin/zensical build --strict"]),
        (
            "quality",
            [
                ".venv/bin/zensical build --strict",
                ".venv/bin/ruff check",
                ".venv/bin/ruff format --check",
                ".venv/bin/mypy",
            ],
        ),
        ("style", [".venv/bin/ruff check --fix", ".venv/bin/ruff format"]),
        ("demo", [".venv/bin/biggan-hf sample biggan_hf:fashion", "trap : INT; .venv/bin/biggan-hf train", SAMPLE]),
    ],
)
def test_make_installs_first_and_once(tmp_path: Path, target: str, commands: list[str]) -> None:
    extra = "demo" if target == "demo" else "dev"
    assert_in_order(dry_run(tmp_path, target), [line.replace("EXTRA", extra) for line in INSTALL] + commands)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    again = dry_run(tmp_path, target)
    assert_in_order(again, commands)
    assert not [command for command in again if "install " in command]


# The archives


Files = dict[str, bytes]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, Files, Files]:
    """The files of the source archive, of the wheel, and of the wheel that is made of the source archive."""
    folder = tmp_path_factory.mktemp("archives")
    for name in ("src", "conversion"):
        leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / "tree" / name, symlinks=True, ignore=leave_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / "tree")
    build(folder / "tree", "sdist")
    build(folder / "tree", "wheel")
    (sdist,), (wheel,) = folder.glob("tree/*.tar.gz"), folder.glob("tree/*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    files = {
        path.relative_to(unpacked).as_posix(): path.read_bytes() for path in unpacked.rglob("*") if path.is_file()
    }
    build(unpacked, "wheel")
    (again,) = unpacked.glob("*.whl")
    assert again.name == wheel.name == f"biggan_hf-{biggan_hf.__version__}-py3-none-any.whl"
    return files, files_of(wheel), files_of(again)


def build(folder: Path, kind: str) -> None:
    code = f"from setuptools import build_meta; build_meta.build_{kind}('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files_of(wheel: Path) -> Files:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_files_of_the_archives(archives: tuple[Files, Files, Files]) -> None:
    sdist, wheel, again = archives
    assert wheel == again
    # The package, with all that lies in its folder, and nothing beside it.
    package = Path(biggan_hf.__file__).parent
    code = {
        f"biggan_hf/{path.relative_to(package).as_posix()}"
        for pattern in ("**/*.py", "conversion/*.py", "conversion/*.txt", "models/*/*", "py.typed")
        for path in package.glob(pattern)
    }
    about = {name for name in wheel if ".dist-info/" in name}
    assert wheel.keys() - about == code and len(code) > 100
    assert {Path(name).name for name in about} >= {"METADATA", "LICENSE", "entry_points.txt"}
    about = {name for name in sdist if ".egg-info/" in name}
    assert sdist.keys() - about == {f"src/{name}" for name in code} | {
        "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"
    }  # fmt: skip
    assert all(sdist[f"src/{name}"] == wheel[name] for name in code)


def test_make_wheel_installs_torch_as_pinned_and_then_the_wheel_of_the_source_archive(tmp_path: Path) -> None:
    wheel = ".venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz"
    torch, package = INSTALL[1].replace(".venv", "build/fresh"), "build/fresh/bin/pip install -c constraints.txt dist"
    assert_in_order(dry_run(tmp_path, "wheel"), [wheel, "python3 -m venv build/fresh", torch, package])


@pytest.mark.slow  # an environment of its own, with torch
def test_make_wheel() -> None:
    """The wheel, installed where there is nothing else, draws a sample and has the converters and the types."""
    command = ["make", "wheel", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=documented.without_make(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"- biggan_hf: {biggan_hf.__version__}" in done.stdout
    sheet = ROOT / "build" / "fresh" / "samples.png"
    assert sheet.is_file() and {path.suffix for path in (ROOT / "dist").iterdir()} == {".gz", ".whl"}


# make demo, CI


def test_demo_trains_once(tmp_path: Path) -> None:
    (tmp_path / "demo" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "model" / "model.safetensors").touch()
    commands = dry_run(tmp_path, "demo")
    assert not [command for command in commands if "biggan-hf train" in command and not command.startswith("echo")]
    assert_in_order(commands, [".venv/bin/biggan-hf sample demo/model"])


def test_ci_runs_quality_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make quality", "make test"} <= set(script.read_text(encoding="utf-8").splitlines())
