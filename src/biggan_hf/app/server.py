"""The server of the page: which requests it takes, and how it starts."""

import json
import re
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse


MOST_BYTES = 2**16  # of a request; the page's own have less than 2 kB
MOST_WAITING = 32  # requests; one at a time is computed
MOST_SESSIONS = 256  # of which gradio keeps the settings, 100 kB each
# Of gradio's paths, those to which the page and programs send settings, and those that are open to nobody: addresses
# that the server would fetch, and settings that it would keep on its disk.
EVENTS = re.compile(r"/gradio_api/(queue/join|(call|run|api)/.+|cancel|reset|mcp(/.*)?)/?")
CLOSED = re.compile(r"/gradio_api/(proxy=|file[=/]https?:|deep_link)")

# Small pictures keep their pixels. A phone has two columns.
CSS = """
.small img { image-rendering: pixelated; }
.small:not(.pictures) img { width: 100%; height: 100%; object-fit: contain; }
h1 { overflow-wrap: anywhere; }
@media (max-width: 640px) { .pictures .grid-container { grid-template-columns: repeat(2, 1fr) !important; } }
"""


class OwnRequests:
    """
    The page takes what it sends itself, and what programs may call: no files, nothing that makes the server fetch an
    address, and no more than `MOST_BYTES` (ASGI).
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sends = scope["method"] == "POST"
        if CLOSED.match(scope["path"]) or (sends and not EVENTS.fullmatch(scope["path"])):
            return await PlainTextResponse("not here", 404)(scope, receive, send)
        body = await _received(receive) if sends else b""
        if len(body) > MOST_BYTES:
            return await PlainTextResponse("too large", 413)(scope, receive, send)
        if sends and not _is_of_settings(body):
            return await PlainTextResponse("no JSON, or with a file", 400)(scope, receive, send)
        messages = [{"type": "http.request", "body": body}] * sends

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, received, send)


async def _received(receive: Any) -> bytes:
    """The body of a request, as far as it is needed to say that it is too large."""
    body, more = b"", True
    while more and len(body) <= MOST_BYTES:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _is_of_settings(body: bytes) -> bool:
    """Whether a body is JSON, and holds nothing that gradio takes for a file: of that it would fetch the address."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if {"path", "meta"} <= {name for name, _ in pairs}:
            raise ValueError("a file")

    try:
        json.loads(body, object_pairs_hook=check)
    except (ValueError, RecursionError):
        return False
    return True


def serve(blocks: gr.Blocks, **options: Any) -> None:
    """
    Starts the server.

    Args:
        blocks: As `build` returns them.
        options: Of gradio's `launch`. Without a `server_name` the address is 127.0.0.1, or what GRADIO_SERVER_NAME
            says, as on a Space.
    """
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # which are fetched nowhere
    # Else `/run/` would compute beside the queue, many at once.
    blocks.queue(max_size=MOST_WAITING, api_open=False).launch(
        theme=gr.themes.Default(font=fonts[0], font_mono=fonts[1]),
        css=CSS,
        footer_links=["api", "settings"],
        run_history=False,
        allowed_paths=[get_upload_folder()],  # an empty list would leave it to GRADIO_ALLOWED_PATHS
        state_session_capacity=MOST_SESSIONS,
        app_kwargs={"middleware": [Middleware(OwnRequests)]},
        **options,
    )
