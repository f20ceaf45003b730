"""The browser as a world: pages of MiniWoB++, our own and a user's, driven over the DevTools protocol."""

from .chromium import BrowserError
from .config import WebConfig
from .env import WebEnv

__all__ = ["BrowserError", "WebConfig", "WebEnv"]
