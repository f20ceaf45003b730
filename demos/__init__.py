"""Demonstrations: episodes, the store that keeps them, and the collector that lets a scripted expert record them."""

# demos.collect is not imported here: who reads a store needs no simulator.
from .episode import Episode
from .store import Store, StoreMeta

__all__ = ["Episode", "Store", "StoreMeta"]
