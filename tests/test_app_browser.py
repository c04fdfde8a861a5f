"""
The page in a headless Chromium: `apt-get install chromium`, `pip install playwright`. Without them these tests are
skipped.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from common import tiny_generator
from test_app import ODD_NAMES, gradio_folder  # noqa: F401  # the fixture acts in this file, too

from biggan_hf import BigGANPipeline


pytest.importorskip("gradio", reason="needs gradio: the extra `app`")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: Debian's package chromium")

from biggan_hf.app import Page, build, serve  # noqa: E402
from biggan_hf.data import load_labelled_images  # noqa: E402


WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def start(page: Page) -> Any:
    blocks = build(page)
    serve(blocks, server_name="127.0.0.1", share=False, quiet=True, prevent_thread_lock=True)
    return blocks.local_url


@pytest.fixture(scope="module")
def url(pictures: Path) -> str:
    """The page of the embedded model with a data set."""
    pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
    data_set = load_labelled_images(str(pictures), image_size=32, num_channels=1, label_column="none")
    return start(Page(pipe, "biggan_hf:fashion", data_set))


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any, url: str) -> Iterator[Any]:
    """A tab of the browser; at its end, what a page may not do has not happened."""
    wrong: list[str] = []
    tab = browser.new_page(viewport=WIDE)
    tab.set_default_timeout(60_000)

    def on_dialog(dialog: Any) -> None:
        wrong.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def on_request(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            wrong.append(f"request of {request.url}")

    tab.on("dialog", on_dialog)
    tab.on("pageerror", lambda error: wrong.append(f"error {error}"))
    tab.on("request", on_request)
    yield tab
    tab.close()
    assert wrong == []


PICTURES = "[...document.querySelectorAll('.thumbnail-item img')].map(image => image.src)"
FRAME = "[...document.querySelectorAll('[role=tabpanel] img')].filter(i => i.offsetParent).map(image => image.src)"


def shown(tab: Any, before: list[str] | None = None, script: str = PICTURES) -> list[str]:
    """The pictures on the page, once there are others than before."""
    tab.wait_for_function(f"before => {{ const now = {script}; return now.length && now.join() !== before }}",
                          arg=",".join(before or []))  # fmt: skip
    return tab.evaluate(script)


def test_a_class_and_a_truncation_are_chosen(tab: Any, url: str) -> None:
    tab.goto(url)
    first = shown(tab)
    assert len(first) == 8
    tab.get_by_role("combobox", name="Classes").fill("boo")
    tab.get_by_role("option", name="Ankle boot").click()
    with_boots = shown(tab, first)
    assert len(with_boots) == 12 and with_boots[:8] == first
    assert tab.get_by_role("img", name="Ankle boot, 9").count() == 1
    tab.get_by_role("slider", name="Truncation").fill("0.3")
    typical = shown(tab, with_boots)
    assert not {*typical} & {*with_boots}
    assert tab.url.endswith("?classes=T-shirt%2Ftop&classes=Trouser&classes=Ankle+boot&truncation=0.3")
    tab.goto(tab.url)
    assert shown(tab) == typical
    tab.get_by_role("checkbox", name="One mixture").check()
    assert len(shown(tab, typical)) == 4
    tab.get_by_role("slider", name="Weight of Trouser").wait_for()
    for button, suffix in (("sheet", "png"), ("settings", "json")):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=f"Download the {button}").click()
        assert download.value.suggested_filename == f"seed-0.{suffix}"


def test_pictures_move_along_a_direction(tab: Any, url: str) -> None:
    tab.goto(url)
    still = shown(tab)
    tab.get_by_role("slider", name="Brightness").fill("-2")
    dark = shown(tab, still)
    assert len(dark) == 8 and not {*dark} & {*still}
    assert tab.url.endswith("?direction_1=-2")
    tab.goto(tab.url)
    assert shown(tab) == dark


def test_all_by_keyboard(tab: Any, url: str) -> None:
    tab.goto(url)
    first = shown(tab)
    focused = """() => {
        const part = document.activeElement;
        return part === document.body ? '' : part.getAttribute('aria-label') || part.textContent.trim();
    }"""

    def move_to(name: str, key: str = "Tab") -> None:
        for _ in range(60):
            if name in tab.evaluate(focused):
                return
            tab.keyboard.press(key)
        raise AssertionError(f"{key} does not lead to {name}")

    move_to("Classes")
    tab.keyboard.type("Bag")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Escape")
    with_bags = shown(tab, first)
    assert len(with_bags) == 12
    move_to("range slider for Truncation")
    tab.keyboard.press("ArrowRight")
    other = shown(tab, with_bags)
    move_to("Another seed")
    tab.keyboard.press("Enter")
    shown(tab, other)
    assert re.search(r"truncation=0.71&seed=\d+", tab.url)
    move_to("Walk")
    tab.keyboard.press("Enter")
    frame = shown(tab, script=FRAME)
    move_to("range slider for Place")
    tab.keyboard.press("ArrowRight")
    shown(tab, frame, FRAME)
    move_to("Make a film")
    tab.keyboard.press("Enter")
    tab.wait_for_function("[...document.images].some(image => image.src.endsWith('walk.gif'))")


WITHOUT_NAME = """() => [...document.querySelectorAll('button, input, [role=tab], img')].filter(part => {
    if (!part.offsetParent || part.closest('[aria-hidden=true]')) return false;
    const label = part.labels && part.labels.length ? part.labels[0].textContent : '';
    const inside = part.closest('button');
    return !(part.getAttribute('aria-label') || part.alt || part.title || label.trim() || part.textContent.trim()
        || (part.tagName === 'IMG' && inside && inside.textContent.trim()) || part.querySelector?.('img[alt]'));
}).map(part => part.outerHTML.slice(0, 200))"""


def test_all_tabs_and_their_names(tab: Any, url: str) -> None:
    tab.goto(f"{url}?tab=sweep&classes=Sneaker&classes=Bag")
    tab.get_by_role("button", name="Compare truncations").click()
    tab.get_by_role("img", name="the same draws, a column a truncation").wait_for()
    assert tab.evaluate(WITHOUT_NAME) == []
    tab.get_by_role("tab", name="Nearest pictures").click()
    tab.get_by_role("button", name="Find the nearest pictures").click()
    tab.get_by_role("img", name="generated pictures, each beside").wait_for()
    assert tab.evaluate(WITHOUT_NAME) == [] and "tab=neighbours" in tab.url
    tab.goto(f"{url}?tab=walk&classes=Bag")
    tab.get_by_text("A walk between classes needs two of them").wait_for()


def test_a_phone(tab: Any, url: str) -> None:
    tab.set_viewport_size(PHONE)
    tab.goto(f"{url}?classes=Sneaker&classes=Bag&mix=true")
    shown(tab)
    tab.get_by_role("slider", name="Weight of Bag").wait_for()
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 390
    outside = "part => { const box = part.getBoundingClientRect(); return box.left < 0 || box.right > 390 }"
    parts = "[...document.querySelectorAll('button, input, .thumbnail-item')].filter(part => part.offsetParent)"
    parts += ".filter(part => part.tabIndex >= 0)"
    assert tab.evaluate(f"{parts}.filter({outside}).map(part => part.outerHTML.slice(0, 200))") == []


def test_odd_names_break_no_page(tab: Any) -> None:
    model = tiny_generator(id2label=dict(enumerate(ODD_NAMES)))
    tab.goto(f"{start(Page(BigGANPipeline(model), ODD_NAMES[1]))}?classes=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E")
    shown(tab)
    assert tab.get_by_role("heading", name="<img src=x onerror=alert(1)>").count() == 1
    tab.get_by_role("combobox", name="Classes").click()
    assert tab.get_by_role("option").count() == len(ODD_NAMES)
    assert tab.locator("img[src=x]").count() == 0
