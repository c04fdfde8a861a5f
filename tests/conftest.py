import os
import shutil
import tempfile


# Read once, when torch and huggingface_hub are first imported: the workers share the cores, and no test reaches the
# network (what needs a Hub takes the `fake_hub` fixture).
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Removed when the tests end; what tests prepare does not pile up in the user's own cache.
_datasets_cache = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name
_trackio = tempfile.TemporaryDirectory()
os.environ["TRACKIO_DIR"] = _trackio.name

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from fake_hub import FakeHub  # noqa: E402
from huggingface_hub.utils import (  # noqa: E402
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from training_runs import write_pictures  # noqa: E402


# Their tests start processes and last minutes. They come first: neither worker shall end with them alone.
LONGEST = {"test_training_options.py", "test_training_exact.py", "test_stability.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """The Hub of huggingface_hub, transformers and datasets for one test and the processes that it starts."""
    home = tmp_path_factory.mktemp("hf-home")
    with FakeHub() as hub:
        files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
        # transformers keeps a client of its own, which knows the endpoint of its making.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(home))
        # Not the token of whoever runs the tests.
        monkeypatch.setenv("HF_TOKEN", "hf_dummy")
        yield hub


@pytest.fixture
def tf32_switches() -> Iterator[Any]:
    """Off, and afterwards as they were."""
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.fixture
def bars_as_before() -> Iterator[None]:
    """Undoes what `hf` does in this process (findings/hub_cli_in_process_turns_off_bars.sh)."""
    are_off = are_progress_bars_disabled()
    yield
    (disable_progress_bars if are_off else enable_progress_bars)()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten grey pictures of noise in two classes, to train on."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The folder of a tiny generator with five classes and three standing truncations, and of its graphs: onnx fp32,
    openvino fp32, openvino bf16. Tests copy it before they change it. One graph from torch serves all three, since
    making it costs seconds.
    """
    from common import tiny_generator, with_standing_statistics

    from biggan_hf import exporting

    folder = tmp_path_factory.mktemp("exported")
    model = with_standing_statistics(tiny_generator(standing_truncations=[0.3, 0.6, 1.0], id2label=NAMES))
    model.save_pretrained(folder, global_step=7)
    model.saved_step = 7
    exporting.export_model(model, folder, "onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "write_onnx", copies_of(folder))
        for precision in ("fp32", "bf16"):
            exporting.export_model(model, folder, "openvino", precision)
    return folder


NAMES = dict(enumerate(["tench, Tinca tinca", "goldfish", "great white shark", "tiger shark", "hammerhead"]))


def copies_of(exported: Path) -> Any:
    """What gives the graph of `exported` in the place of `exporting.write_onnx`, for exports of the same model."""
    return lambda model, path: shutil.copyfile(exported / "onnx" / "model.onnx", path)


@pytest.fixture
def quick_export(exported: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Exports of the model of `exported` take its graph. Holds where they put it."""
    paths: list[Path] = []

    def write(model: Any, path: Path) -> None:
        paths.append(path)
        copies_of(exported)(model, path)

    monkeypatch.setattr("biggan_hf.exporting.write_onnx", write)
    return paths
