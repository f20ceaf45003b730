"""`flowhand push`: a policy or demonstrations go to the Hugging Face hub."""

from .upload import main

__all__ = ["main"]
