"""The pages to learn from (how-biggan-works, migrating, faq) against the code, the figures and the other pages."""

import argparse
import ast
import importlib.util
import inspect
import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from common import tiny_config
from PIL import Image

import biggan_hf
from biggan_hf import BigGANConfig, BigGANModel, BigGANPipeline
from biggan_hf.cli import build_parser
from biggan_hf.training.arguments import DataArguments, ModelArguments, TrainingArguments


REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("how-biggan-works", "migrating", "faq")}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    links = [target for _, target in LINK.findall(PAGES[name]) if "://" not in target]
    assert len(links) >= 10
    for target in links:
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / f"{name}.md"
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


# The functions that how-biggan-works.md names


@cache
def definitions(file: Path) -> set[str]:
    """What a file defines at its top level, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_named_functions_are_in_the_linked_files() -> None:
    links = [(text, target) for text, target in LINK.findall(PAGES["how-biggan-works"]) if target.endswith(".py")]
    assert len({text for text, _ in links}) >= 35
    for text, target in links:
        file = (DOCS / target).resolve()
        name = text.strip("`")
        assert name == file.name or name in definitions(file), f"{name} is not in {target}"


# Figures


@cache
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "recipes" / "figures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_every_figure_and_no_other() -> None:
    shown = re.findall(r"!\[.+\]\(images/(how-[\w-]+)\.png\)", PAGES["how-biggan-works"])
    assert sorted(shown) == sorted(recipe().FIGURES) == sorted(path.stem for path in DOCS.glob("images/how-*.png"))
    assert all((DOCS / "images" / f"{name}.png").stat().st_size < 150_000 for name in shown)


@pytest.mark.parametrize("name", ["how-losses", "how-statistics"])
def test_a_figure_is_drawn_again(name: str, tmp_path: Path) -> None:
    recipe().draw(tmp_path, [name])
    (path,) = tmp_path.iterdir()
    with Image.open(path) as new, Image.open(DOCS / "images" / path.name) as old:
        # Fonts may differ by a pixel between versions.
        assert all(abs(a - b) <= 8 for a, b in zip(new.size, old.size, strict=True))


# migrating.md: of its tables, the column of ours

OPTIONS = {f.name for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group)}
FIELDS = {*BigGANConfig.__annotations__, "num_labels", "id2label"}
ROOTS: dict[str, Any] = {
    "pipe": BigGANPipeline,
    "model": BigGANModel(tiny_config()),
    **{name: getattr(biggan_hf, name) for name in biggan_hf.__all__},
}
# The words of a call, and a mode of truncation.
KEYWORDS = {*inspect.signature(BigGANPipeline.__call__).parameters, "scale"}
FILES = {"model.safetensors", "discriminator/", "evaluations.jsonl", "log.jsonl"}


@cache
def commands() -> dict[str, set[str]]:
    (action,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    there_are = {
        name: {o for a in parser._actions for o in a.option_strings} for name, parser in action.choices.items()
    }
    return {**there_are, "train": {f"--{name}" for name in OPTIONS}}


def unknown(code: str) -> str | None:
    """What a code span of ours names that does not exist, or `None`."""
    words = code.split()
    if missing := [word for word in words if word.endswith(".yaml") and not (REPO / word).is_file()]:
        return missing[0]
    if words[0] in ("train.py", "accelerate"):
        options = {word for word in words if word.startswith("--")}
        return next(iter(options - {f"--{name}" for name in OPTIONS}), None)
    if words[0] == "biggan-hf":
        options = {word for word in words if word.startswith("--")}
        return words[1] if words[1] not in commands() else next(iter(options - commands()[words[1]]), None)
    if code.startswith("--"):
        return None if words[0].removeprefix("--") in OPTIONS else code
    name = re.split(r"[(=]", code)[0]
    if name in KEYWORDS | FIELDS | FILES or (REPO / name).is_file():
        return None
    root, *path = name.removeprefix("biggan_hf.").split(".")
    found: Any = import_module(f"biggan_hf.{root}") if name.startswith("biggan_hf.") else ROOTS.get(root)
    for part in path:
        is_module = hasattr(found, "__path__") and importlib.util.find_spec(f"{found.__name__}.{part}")
        found = import_module(f"{found.__name__}.{part}") if is_module else getattr(found, part, None)
    return code if found is None else None


def rows(section: str) -> list[tuple[str, str]]:
    """The first and the second cell of each row of a section's tables."""
    text = PAGES["migrating"].partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \| (.*?)\s*\|", text, re.MULTILINE)
    return [(theirs, ours) for theirs, ours in cells if theirs != "there" and not theirs.startswith("---")]


@pytest.mark.parametrize(
    ("section", "least"),
    [("BigGAN-PyTorch", 60), ("pytorch-pretrained-biggan", 12), ("StudioGAN", 30), ("diffusers", 25)],
)
def test_our_names_in_the_tables_exist(section: str, least: int) -> None:
    ours = [code for _, cell in rows(section) for code in re.findall(r"`([^`]+)`", cell)]
    assert len(rows(section)) >= least <= len(ours)
    assert [code for code in ours if unknown(code)] == []


def test_wrong_names_would_be_found() -> None:
    for code in (
        "--no_such",
        "biggan-hf nothing",
        "biggan-hf npz --no",
        "pipe.nothing",
        "biggan_hf.images.no",
        "x_dim",
    ):
        assert unknown(code)


# Names of the flags of BigGAN-PyTorch's `utils.prepare_parser` and `add_sample_parser` (commit 9845943).
FLAGS = """
dataset augment num_workers no_pin_memory shuffle load_in_mem use_multiepoch_sampler model G_param D_param G_ch D_ch
G_depth D_depth D_thin G_shared shared_dim dim_z z_var hier cross_replica mybn G_nl D_nl G_attn D_attn norm_style seed
G_init D_init skip_init G_lr D_lr G_B1 D_B1 G_B2 D_B2 batch_size G_batch_size num_G_accumulations num_D_steps
num_D_accumulations split_D num_epochs parallel G_fp16 D_fp16 D_mixed_precision G_mixed_precision accumulate_stats
num_standing_accumulations G_eval_mode save_every num_save_copies num_best_copies which_best no_fid test_every
num_inception_images hashname base_root data_root weights_root logs_root samples_root pbar name_suffix experiment_name
config_from_name ema ema_decay use_ema ema_start adam_eps BN_eps SN_eps num_G_SVs num_D_SVs num_G_SV_itrs num_D_SV_itrs
G_ortho D_ortho toggle_grads which_train_fn load_weights resume logstyle log_G_spectra log_D_spectra sv_log_interval
sample_npz sample_num_npz sample_sheets sample_interps sample_sheet_folder_num sample_random sample_trunc_curves
sample_inception_metrics
"""


def test_every_flag_of_biggan_pytorch_has_an_answer() -> None:
    section = PAGES["migrating"].partition("\n### Flags\n")[2].partition("\n## ")[0]
    table, _, none = section.partition("There is no such thing here:")
    answered = [
        flag for line in re.findall(r"^\| (`--.*?) \|", table, re.MULTILINE) for flag in re.findall(r"--(\w+)", line)
    ]
    refused = [
        flag for line in re.findall(r"^- (`--.*?):", none, re.MULTILINE) for flag in re.findall(r"--(\w+)", line)
    ]
    assert sorted(answered + refused) == sorted(FLAGS.split())


# faq.md


def test_every_question_has_an_answer_and_a_thread() -> None:
    parts = PAGES["faq"].split("\n### ")[1:]
    assert 15 <= len(parts) <= 25
    for part in parts:
        question, _, answer = part.partition("\n")
        prose = re.sub(r"```.*?```|Threads?:.*", "", answer.partition("\n## ")[0], flags=re.DOTALL)
        assert question.endswith("?") and 2 <= len(re.findall(r"[.:?](?:\s|$)", prose)) <= 9, question
        assert re.search(r"^Threads?: \[", answer, re.MULTILINE), question
        assert "```" in answer or "`" in prose or "](" in prose, question
