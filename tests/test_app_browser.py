"""
The page in a headless Chromium: `apt-get install chromium`, `pip install playwright`. Without them these tests are
skipped.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_app import ODD_NAMES, gradio_folder  # noqa: F401  # the fixture acts in this file, too

from biggan_hf import BigGANPipeline


pytest.importorskip("gradio", reason="needs gradio: the extra `app`")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: Debian's package chromium")

from biggan_hf.app import Page, build, serve  # noqa: E402
from biggan_hf.data import load_labelled_images  # noqa: E402


WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def start(page: Page) -> str:
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
