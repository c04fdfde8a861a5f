"""The generator in ONNX Runtime and OpenVINO: it answers as in torch, or one line says why not."""

import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import documented
import numpy as np
import pytest
import torch
from common import VARIANTS, seeded, tiny_generator, tiny_labels, tiny_latents, with_standing_statistics
from PIL import Image

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.cli import main
from biggan_hf.engine_files import read_index, write_index
from biggan_hf.engines import EngineModel, standing_inputs
from biggan_hf.evaluation import GeneratedImages
from biggan_hf.exporting import Graph, export_model


REPO = Path(__file__).parents[1]
# Of a range of 2. A tiny network rounds more in bf16 than a large one, whose sums average.
GRAPHS = {("onnx", "fp32"): 1e-5, ("openvino", "fp32"): 1e-5, ("openvino", "bf16"): 6e-2}
TRUNCATIONS = [None, 0.3, 0.45, 0.6, 0.61, 1.0]  # rows of the table, and between them

each_graph = pytest.mark.parametrize(("engine", "precision"), GRAPHS)
each_engine = pytest.mark.parametrize("engine", ["onnx", "openvino"])


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported`, to change."""
    return shutil.copytree(exported, tmp_path / "model")


def assert_alike(model: BigGANModel, engine_model: EngineModel, truncations: list[Any], tolerance: float) -> None:
    config = model.config
    for number, truncation in zip([1, 3, 8, 3, 1, 8], truncations, strict=False):
        latents, labels = tiny_latents(number, config, seed=number), tiny_labels(number, config)
        expected = model._generate(latents, labels, None, truncation)
        images = engine_model._generate(latents, labels, None, truncation)
        assert images.shape == expected.shape and images.dtype == torch.float32
        assert (images - expected).abs().max() < tolerance, truncation
        if labels is not None:
            one, other = (model.class_embedding(ids).detach().float() for ids in (labels, labels.flip(0)))
            mixed = one.lerp(other, 0.3)
            expected = model._generate(latents, None, mixed, truncation)
            assert (engine_model._generate(latents, None, mixed, truncation) - expected).abs().max() < tolerance


@each_graph
def test_images_are_those_of_torch(exported: Path, engine: str, precision: str) -> None:
    model = BigGANModel.from_pretrained(exported)
    graph = EngineModel(exported, engine, precision)
    assert_alike(model, graph, TRUNCATIONS, GRAPHS[engine, precision])
    spread = [model._generate(tiny_latents(1, model.config), torch.tensor([0]), None, t) for t in TRUNCATIONS]
    assert min((a - b).abs().max().item() for a, b in zip(spread, spread[1:], strict=False)) > 1e-3  # rows differ


def test_example(exported: Path, quick_export: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/engine.py, with a tiny model in the place of the one that comes with the package."""
    graphs = shutil.ignore_patterns("onnx", "openvino")
    config = shutil.copytree(exported, tmp_path / "models" / "fashion", ignore=graphs) / "config.json"
    config.write_text(config.read_text().replace("goldfish", "Ankle boot"))
    monkeypatch.setattr("biggan_hf.embedded._FOLDER", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(REPO / "examples" / "engine.py"))
    pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
    (picture,) = pipe("Ankle boot", truncation=0.7, generator=seeded(0)).images
    with Image.open("engine.png") as drawn:
        assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(picture)).max() <= 1 and quick_export


def test_a_model_that_is_stored_in_bfloat16(tmp_path: Path) -> None:
    tiny_generator().bfloat16().save_pretrained(tmp_path)
    model = BigGANModel.from_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    export_model(model, tmp_path, "onnx")
    assert model.dtype == torch.bfloat16 and (tmp_path / "config.json").read_bytes() == before
    graph = BigGANPipeline.from_pretrained(tmp_path, engine="onnx").model  # its weights are those in the folder
    assert_alike(model.float(), cast(EngineModel, graph), [None, None], 1e-5)


MIRRORED: dict[str, Any] = {"standing_truncations": [0.0, 0.5, 1.0], "standing_interpolation": "mirrored"}


def test_a_grey_unconditional_model_with_mirrored_statistics(tmp_path: Path) -> None:
    model = with_standing_statistics(tiny_generator(num_labels=0, num_channels=1, **MIRRORED))
    graph = export_model(model, tmp_path / "graph", "onnx")
    assert_alike(model, graph, TRUNCATIONS, 1e-5)
    assert sorted(path.name for path in (tmp_path / "graph").rglob("*.*")) == [
        "config.json",
        "export.json",
        "model.onnx",
    ]


@pytest.mark.slow  # a graph from torch takes some seconds
@pytest.mark.parametrize("name", VARIANTS)
@each_engine
def test_graphs_of_all_kinds(name: str, engine: str, tmp_path: Path) -> None:
    truncations: list[Any] = [None] * 3
    model = tiny_generator(**VARIANTS[name])
    if "deep" in name:
        model, truncations = with_standing_statistics(tiny_generator(**VARIANTS[name], **MIRRORED)), TRUNCATIONS
    assert_alike(model, export_model(model, tmp_path, engine), truncations, 1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_module_that_is_exported_computes_what_the_model_does(name: str) -> None:
    model = with_standing_statistics(tiny_generator(**VARIANTS[name], **MIRRORED))
    graph, latents, labels = Graph(model), tiny_latents(3, model.config), tiny_labels(3, model.config)
    for truncation in TRUNCATIONS:
        inputs = {**graph.inputs(3), "latents": latents}
        rows, fraction = standing_inputs(model.config, truncation)
        inputs |= {"standing_rows": torch.from_numpy(rows), "standing_fraction": torch.from_numpy(fraction)}
        if labels is not None:  # the last sample's class is a row of the embeddings
            inputs["class_labels"] = torch.tensor([*labels[:2].tolist(), -1])
            inputs["class_embeddings"] = model.class_embedding(labels).float() * torch.tensor([[0.0], [0.0], [1.0]])
        expected = model._generate(latents, labels, None, truncation)
        assert (graph(**inputs) - expected).abs().max() < 1e-5


# Pipelines


@each_engine
def test_a_pipeline_gives_what_torch_gives(exported: Path, engine: Any) -> None:
    torch_pipe, pipe = (
        BigGANPipeline.from_pretrained(exported),
        BigGANPipeline.from_pretrained(exported, engine=engine),
    )
    each: list[dict[str, Any]] = [
        {"class_labels": "goldfish", "num_images_per_prompt": 3, "truncation": 0.5},
        {"class_labels": [{"tench": 0.7, 1: 0.3}, 4], "batch_size": 1},
        {"num_images_per_prompt": 2, "truncation": 0.3},
        {"class_embeddings": torch_pipe.embed_classes([0, 3]), "seeds": [1, 2]},
        {"class_labels": 2, "latents": tiny_latents(1, pipe.model.config).requires_grad_()},
    ]
    kinds: Any = ("pil", "np", "pt", "uint8")
    for options, kind in itertools.product(each, kinds):
        seeds, options = options.get("seeds"), {k: v for k, v in options.items() if k != "seeds"}
        both = [
            one(**options, output_type=kind, generator=[*map(seeded, seeds)] if seeds else seeded(0))
            for one in (pipe, torch_pipe)
        ]
        images, expected = (output.images for output in both)
        assert type(images) is type(expected) and len(images) == len(expected)
        difference = np.abs(np.asarray(images[-1], float) - np.asarray(expected[-1], float)).max()
        assert difference <= (1e-5 if kind in ("np", "pt") else 1)
        assert repr(both[0].class_labels) == repr(both[1].class_labels)
    assert torch.equal(pipe.embed_classes([{0: 0.5, 1: 0.5}]), torch_pipe.embed_classes([{0: 0.5, 1: 0.5}]))
    images = pipe.model.sample("goldfish", 2, truncation=0.5, generator=seeded(3))
    assert (images - torch_pipe.model.sample("goldfish", 2, truncation=0.5, generator=seeded(3))).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"class_labels": "goldfsh"},
        {"class_labels": 5},
        {"class_labels": {0: 0.7}},
        {"truncation": 0.2},
        {"truncation": 1.5},
        {"truncation": -1},
        {"truncation": 0.5, "truncation_mode": "scale"},
        {"latents": torch.zeros(2, 16)},
        {"class_labels": 0, "latents": torch.full((1, 16), torch.nan)},
        {"batch_size": 0},
        {"output_type": "pill"},
        {"class_embeddings": torch.zeros(3)},
    ],
    ids=repr,
)
def test_errors_are_those_of_torch(exported: Path, options: dict[str, Any]) -> None:
    messages = []
    for engine in (None, "onnx", "openvino"):
        with pytest.raises((ValueError, TypeError)) as raised:
            BigGANPipeline.from_pretrained(exported, engine=engine)(**options)
        messages.append((type(raised.value), str(raised.value)))
    assert messages[0] == messages[1] == messages[2]


def test_progress_counts_the_images(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = BigGANPipeline.from_pretrained(exported, engine="onnx")
    pipe(0, num_images_per_prompt=5, batch_size=2)
    assert "5/5" in capsys.readouterr().err
    pipe(0, num_images_per_prompt=5, batch_size=2, progress_bar=False)
    assert capsys.readouterr().err == ""


@each_engine
def test_what_needs_torch_is_refused(exported: Path, engine: Any, tmp_path: Path) -> None:
    pipe = BigGANPipeline.from_pretrained(exported, engine=engine)
    assert pipe.to("cpu") is pipe and pipe.device.type == "cpu"
    for call in (
        pipe.compile,
        pipe.renew_weights,
        lambda: pipe.export(tmp_path / "x"),
        lambda: pipe.to(torch.float16),
    ):
        with pytest.raises(ValueError, match=engine):
            call()
    assert not [*tmp_path.iterdir()]


@each_engine
def test_eight_threads_give_what_one_gives(exported: Path, engine: Any) -> None:
    pipe = BigGANPipeline.from_pretrained(exported, engine=engine)

    def images(seed: int) -> np.ndarray:
        options: dict[str, Any] = {"truncation": (0.3, 0.8)[seed % 2], "generator": seeded(seed)}
        number = 1 + seed % 3
        return pipe(seed % 5, num_images_per_prompt=number, output_type="np", progress_bar=False, **options).images

    alone = [*map(images, range(48))]
    with ThreadPoolExecutor(8) as threads:
        together = [*threads.map(images, range(48))]
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) < 1e-6


@each_engine
def test_auto_says_what_it_takes(exported: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("biggan_hf.engines.logger.warning", said.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if engine == "onnx":
        monkeypatch.setitem(sys.modules, "openvino", None)  # it can't be imported
    pipe = BigGANPipeline.from_pretrained(exported, engine="auto")
    assert pipe.model.engine == engine and said == [f"engine='auto': {engine} generates the images"]


def test_auto_compiles_on_a_gpu(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is decided where there is a GPU: here there need not be one, so nothing moves and nothing is compiled."""
    done: list[Any] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(BigGANModel, "to", lambda self, *args: done.append(args))
    monkeypatch.setattr(BigGANModel, "compile", lambda self, **kwargs: done.append(kwargs))
    pipe = BigGANPipeline.from_pretrained(exported, engine="auto", precision="bf16")
    assert done == [("cuda",), {"mode": "reduce-overhead"}] and pipe.dtype == torch.bfloat16
    BigGANPipeline.from_pretrained(exported)  # asks for nothing
    assert BigGANPipeline.from_pretrained(exported, engine="openvino").model.engine == "openvino"
    options = ["--engine", "auto", "--device", "cpu", "--num_images_per_prompt", "1", "--output"]
    main(["sample", str(exported), *options, str(tmp_path / "samples.png")])  # as an engine does
    assert len(done) == 2 and (tmp_path / "samples.png").exists()


def test_openvino_reports_nothing(exported: Path) -> None:
    EngineModel(exported, "openvino", "fp32")
    assert "openvino_telemetry" not in sys.modules and "openvino.tools.ovc.telemetry_stub" in sys.modules


# The cache


@each_engine
def test_a_model_without_a_graph_is_exported_once(
    exported: Path, tmp_path: Path, engine: Any, quick_export: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biggan_hf.engines.HF_HOME", str(tmp_path / "home"))
    source = tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(exported / name, source)
    pipes = [BigGANPipeline.from_pretrained(source, engine=engine) for _ in range(2)]
    assert len(quick_export) == 1
    assert sorted(path.name for path in source.iterdir()) == ["config.json", "model.safetensors"]
    a, b = (pipe(1, generator=seeded(0), output_type="np").images for pipe in pipes)
    expected = BigGANPipeline.from_pretrained(source)(1, generator=seeded(0), output_type="np").images
    assert np.array_equal(a, b) and np.abs(a - expected).max() < 1e-5
    # Other weights are another entry.
    model = BigGANModel.from_pretrained(source)
    model.save_pretrained(source, global_step=8)
    BigGANPipeline.from_pretrained(source, engine=engine)
    assert len(quick_export) == 2
    # So are other names of the classes, in which the weights have no part.
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace("goldfish", "carp"))
    renamed = BigGANPipeline.from_pretrained(source, engine=engine)
    assert "carp" in renamed.id2label.values()


def test_keywords_without_a_use_are_refused(exported: Path) -> None:
    wrong: dict[str, Any] = {"revison": "v2", "truncation_mode": "scale", "dtype": "bfloat16"}
    for name, value in wrong.items():
        with pytest.raises(TypeError, match=rf"from_pretrained\(engine='onnx'\).*{name}"):
            BigGANPipeline.from_pretrained(exported, engine="onnx", **{name: value})


def test_a_model_of_the_package_is_exported_to_the_cache(
    exported: Path, tmp_path: Path, quick_export: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biggan_hf.engines.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("biggan_hf.embedded._FOLDER", tmp_path)
    (tmp_path / "tiny").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(exported / name, tmp_path / "tiny")
    pipes = [BigGANPipeline.from_pretrained("biggan_hf:tiny", engine=engine) for engine in ("onnx", "onnx", None)]
    assert [path.is_relative_to(tmp_path / "home") for path in quick_export] == [True]
    images = [pipe(1, generator=seeded(0), output_type="np").images for pipe in pipes]
    assert np.array_equal(*images[:2]) and np.abs(images[0] - images[2]).max() < 1e-5


# The files


def test_files_hold_nothing_of_this_machine(exported: Path) -> None:
    strange = [str(REPO), sys.prefix, str(Path.home()) + "/", str(exported), "site-packages"]
    for path in exported.rglob("*.*"):
        content = path.read_bytes()
        assert not [text for text in strange if text.encode() in content], path


def test_onnxruntime_alone_runs_a_graph(exported: Path, tmp_path: Path) -> None:
    # The code of the page, where neither torch nor this package can be imported.
    (code,) = [block.text for block in documented.blocks("docs/engines.md") if "import onnxruntime" in block.text]
    code = f"import sys\nsys.modules.update(torch=None, biggan_hf=None)\n{code}"
    code += f"\nnp.savez({str(tmp_path / 'out.npz')!r}, images=images, latents=latents)\n"
    subprocess.run([sys.executable, "-c", code], cwd=exported, check=True)
    out = np.load(tmp_path / "out.npz")
    model = BigGANModel.from_pretrained(exported)
    labels = torch.tensor([1, 1, 3, 3])
    between = 0.25 * 0.3 + 0.75 * 0.6
    expected = model._generate(torch.from_numpy(out["latents"]), labels, None, between).numpy()
    assert np.abs(out["images"] - expected).max() < 1e-5


def test_an_export_that_differs_is_not_written(
    exported: Path, tmp_path: Path, quick_export: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = BigGANModel.from_pretrained(exported)
    with torch.no_grad():
        other.class_embedding.weight.mul_(2)
    for engine in ("onnx", "openvino"):  # the graph of `exported` is no graph of this model
        with pytest.raises(ValueError, match=rf"for {engine} in fp32 is not written: its images differ .* by \d"):
            export_model(other, tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()


# Bad input


@pytest.mark.parametrize("name", ["onnx/model.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin",
                                  "onnx/class_embeddings.npy"])  # fmt: skip
def test_damaged_files(folder: Path, name: str) -> None:
    path, engine = folder / name, name.partition("/")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}' is damaged: it is not what was written \(CRC-32\)$"):
        BigGANPipeline.from_pretrained(folder, engine=engine)  # type: ignore[arg-type]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name}"):
        BigGANPipeline.from_pretrained(folder, engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"fp32": 1}', '{"fp32": {"file": "model.onnx"}}',
     '{"fp32": {"file": "../model.onnx", "weights": "0", "crc32": {"../model.onnx": "0"}}}'],
)  # fmt: skip
def test_damaged_indices(folder: Path, text: str) -> None:
    (folder / "onnx" / "export.json").write_text(text)
    with pytest.raises(ValueError, match=r"export.json' is no index of exported graphs; export the model anew$"):
        BigGANPipeline.from_pretrained(folder, engine="onnx")


def test_a_folder_with_other_weights(folder: Path, tmp_path: Path, quick_export: Any) -> None:
    model = BigGANModel.from_pretrained(folder)
    model.save_pretrained(folder, global_step=8)
    for engine in ("onnx", "openvino"):
        with pytest.raises(ValueError, match=rf"/{engine}' was exported from other weights than those in") as refused:
            BigGANPipeline.from_pretrained(folder, engine=engine)
    main(str(refused.value).split("`")[1].split()[1:])  # the command that it names
    BigGANPipeline.from_pretrained(folder, engine="openvino")
    # The weights of one model, and the graphs of one, are no place for those of another.
    other = tiny_generator(standing_truncations=[0.3, 0.6, 1.0])
    with pytest.raises(
        ValueError, match="holds the weights of another model, or its own in another dtype than torch.float32;"
    ):
        export_model(other, folder, "onnx", overwrite=True)
    with pytest.raises(ValueError, match="or its own in another dtype than torch.bfloat16; export to a folder"):
        export_model(BigGANModel.from_pretrained(folder, dtype=torch.bfloat16), folder, "onnx", overwrite=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds graphs of another model; take a folder of its own"):
        export_model(other, folder, "onnx", overwrite=True)


def test_no_graph_goes_beside_those_of_another_model(exported: Path, folder: Path) -> None:
    pipe = BigGANPipeline.from_pretrained(exported, engine="onnx")
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder / "onnx")
    index = read_index(folder / "openvino")
    write_index(folder / "openvino", {name: {**entry, "weights": "0"} for name, entry in index.items()})
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(ValueError, match="model' holds graphs of another model; take a folder of its own"):
        pipe.save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_graph_stays_unless_it_may_be_replaced(folder: Path, quick_export: list[Path]) -> None:
    model = BigGANModel.from_pretrained(folder)
    with pytest.raises(FileExistsError, match=r"model.onnx' exists; overwrite replaces it"):
        export_model(model, folder, "onnx")
    export_model(model, folder, "onnx", overwrite=True)
    assert len(quick_export) == 1 and {*json.loads((folder / "onnx/export.json").read_text())} == {"fp32"}
    # After more training, all graphs are those of the new weights.
    model.save_pretrained(folder, global_step=8)
    export_model(model, folder, "openvino", overwrite=True)
    assert {*json.loads((folder / "openvino/export.json").read_text())} == {"fp32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "engine must be one of torch, onnx, openvino or auto, got 'tensorrt'"),
        ({"engine": "onnx", "precision": "bf16"}, "the engine onnx computes in fp32, int8, got precision='bf16'"),
        ({"engine": "torch", "precision": "int8"}, "the engine torch computes in fp32, bf16, got precision='int8'"),
        ({"engine": "openvino", "precision": "fp16"}, "in fp32, bf16, int8, got precision='fp16'"),
    ],
)
def test_engines_and_precisions_that_there_are_not(exported: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigGANPipeline.from_pretrained(exported, **options)


def test_a_precision_that_was_not_exported(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    message = r"^'.*' has no graph for openvino in int8, and no weights in safetensors to export one from$"
    with pytest.raises(ValueError, match=message):
        BigGANPipeline.from_pretrained(folder, engine="openvino", precision="int8")


@pytest.mark.parametrize(
    ("package", "engine"), [("onnxruntime", "onnx"), ("openvino", "openvino"), ("onnxscript", "openvino")]
)
def test_a_package_that_is_not_installed(
    exported: Path, package: str, engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # it can't be imported
    message = rf'^engine {engine!r} needs the package {package}: pip install "biggan_hf\[{engine}\]"$'
    model = BigGANModel.from_pretrained(exported)
    with pytest.raises(ImportError, match=message):
        export_model(model, tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()
    if package == "onnxscript":  # a graph that is there runs without it
        BigGANPipeline.from_pretrained(exported, engine=engine)(0)
        return
    with pytest.raises(ImportError, match=message):
        BigGANPipeline.from_pretrained(exported, engine=engine)


def test_a_precision_that_the_processor_lacks(exported: Path) -> None:
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor computes in bf16; the fallback shows on one that does not")
    model = EngineModel(exported, "openvino", "bf16")
    assert model.computes.startswith("fp32 in openvino ")
    assert_alike(BigGANModel.from_pretrained(exported), model, TRUNCATIONS, 6e-2)


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from biggan_hf.engines import EngineModel

for engine in ("onnx", "openvino"):
    model = EngineModel(sys.argv[1], engine, "fp32")
    latents, labels = torch.randn(20_000, 16), torch.zeros(20_000, dtype=torch.long)
    model._generate(latents[:2], labels[:2], None, None)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, resource.RLIM_INFINITY))
    try:
        print(engine, len(model._generate(latents, labels, None, None)))
    except (MemoryError, RuntimeError) as error:
        from biggan_hf.memory import is_out_of_memory
        print(engine, is_out_of_memory(error))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.stdout.flush()
import os
os._exit(0)  # OpenVINO may abort at the end of a program that was short of memory
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_batch_that_does_not_fit_is_told(exported: Path) -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["onnx", "True", "openvino", "True"], done.stderr


SIGNALS_AND_FORKS = """
import os, signal, sys
import torch
from biggan_hf.engines import EngineModel

signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
torch.set_num_threads(2)
latents, labels = torch.randn(2, 16), torch.tensor([0, 1])
for engine in ("onnx", "openvino"):
    first, model = (EngineModel(sys.argv[1], engine, "fp32") for _ in range(2))
    expected = model._generate(latents, labels, None, None)
    if not (child := os.fork()):
        signal.alarm(60)
        torch.set_num_threads(1)
        try:
            model._generate(latents, labels, None, None)
        except RuntimeError as error:
            print(str(error).partition(") ")[2], flush=True)
        try:
            model = EngineModel(sys.argv[1], engine, "fp32")  # the other one is given up
        except RuntimeError as error:
            print(error, flush=True)
            os._exit(0)
        os._exit(0 if (model._generate(latents, labels, None, None) - expected).abs().max() < 1e-5 else 1)
    print(engine, os.waitpid(child, 0)[1], flush=True)
    del first, model  # in the order in which they were made
    os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_signals_and_forks(exported: Path) -> None:
    """A signal that Python handles, such as Ctrl-C, ends no program after a model; a fork does not wait for ever."""
    done = subprocess.run([sys.executable, "-c", SIGNALS_AND_FORKS, str(exported)], capture_output=True, text=True)
    refused = "was loaded before this process was forked; load it anew in "
    lines = [f"{refused}this process", "onnx 0", "handled", f"{refused}a process that was spawned"]
    # OpenVINO may wait for ever there, if another thread computes at the fork.
    lines += ["OpenVINO was in use before this process was forked; load models in a spawned process"]
    lines += ["openvino 0", "handled"]
    assert done.stdout.splitlines() == lines and done.returncode == 0, done.stderr


# Evaluations


def test_evaluations_know_the_engine(exported: Path) -> None:
    models: dict[str, Any] = {f"{e} {p}": EngineModel(exported, e, p) for e, p in GRAPHS}
    sources = {name: GeneratedImages(model, 4, truncation=0.3) for name, model in models.items()}
    sources["torch"] = GeneratedImages(BigGANModel.from_pretrained(exported), 4, truncation=0.3)
    assert len({source.fingerprint for source in sources.values()}) == 4
    assert re.fullmatch(r"fp32 in onnx \d[.\d]+", sources["onnx fp32"].description["precision"])
    assert models["openvino fp32"].saved_step == 7
    with sources["torch"].generating() as images:
        expected = images.__getitems__([2, 0])["pixel_values"]
    for name in models:
        with sources[name].generating() as images:
            difference = images.__getitems__([2, 0])["pixel_values"].int() - expected.int()
        assert difference.abs().max() <= (8 if "bf16" in name else 1), name


# biggan-hf


def test_export_and_sample(exported: Path, tmp_path: Path, quick_export: Any, capsys: Any) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(exported / name, source)
    main(["export", str(source), "--engine", "openvino"])
    path, facts, command = capsys.readouterr().out.splitlines()
    assert Path(path) == source / "openvino" / "openvino_model.xml" and Path(path).is_file()
    assert re.fullmatch(
        r"0\.\d\d MB; its images, in \[-1, 1\], differ from those of torch by at most \d\.\de-0\d", facts
    )
    output = tmp_path / "samples.png"
    words = command.removeprefix("Use it: biggan-hf ").split()
    main([*words[:-1], str(output), "--images_per_class", "1"])
    out = capsys.readouterr().out
    assert "--engine openvino --precision fp32" in out and "engine='openvino', precision='fp32')(0).images" in out
    main(["npz", str(source), "--engine", "openvino", "--num_images", "6", "--output", str(tmp_path / "a.npz")])
    main(["npz", str(source), "--num_images", "6", "--output", str(tmp_path / "b.npz")])
    a, b = (np.load(tmp_path / name)["x"].astype(int) for name in ("a.npz", "b.npz"))
    assert a.shape == b.shape and np.abs(a - b).max() <= 1
    main(["export", str(source), "--engine", "onnx", "--output", str(tmp_path / "apart")])
    assert sorted(path.name for path in (tmp_path / "apart").iterdir()) == ["config.json", "onnx"]
    assert_alike(BigGANModel.from_pretrained(source), EngineModel(tmp_path / "apart", "onnx", "fp32"), [None], 1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "{}", "--engine", "onnx", "--precision", "bf16"], "computes in fp32, int8, got precision='bf16'"),
        (["export", "{}", "--engine", "onnx"], r"onnx/model.onnx' exists; overwrite replaces it"),
        (["export", "user/model", "--engine", "onnx"], "--output is needed: 'user/model' is no folder here"),
        (["export", "{}", "--engine", "onnx", "--output", "{}/config.json"], "is a file, expected a folder"),
        (["sample", "{}", "--engine", "onnx", "--precision", "bf16", "--output", "x.png"], "got precision='bf16'"),
        (["sample", "{}", "--engine", "onnx", "--truncation", "2", "--output", "x.png"], "truncation=2.0 is outside"),
        (["evaluate", "x.npz", "--engine", "onnx", "--moments", "m.npz"], "--engine and --precision have no meaning"),
    ],
)
def test_bad_commands(
    exported: Path, words: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(exported.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main([word.format(exported) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(exported.rglob("*")) == before and not [*tmp_path.iterdir()]


def test_a_command_names_the_extra(exported: Path, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for command in (["export", str(exported)], ["sample", str(exported)]):
        with pytest.raises(SystemExit):
            main([*command, "--engine", "onnx", "--output", str(tmp_path / "out.png")])
        assert capsys.readouterr().err == (
            'biggan-hf: error: this needs the package onnxruntime: pip install "biggan_hf[onnx]"\n'
        )
    assert not [*tmp_path.iterdir()]
