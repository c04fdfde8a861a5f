"""The page of a generator in gradio: `Page` computes what it shows, `build` lays it out, `serve` starts its server."""

from .layout import build
from .page import Page
from .server import serve


__all__ = ["Page", "build", "serve"]
