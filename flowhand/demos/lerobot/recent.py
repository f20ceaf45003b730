"""Descriptions of the files that were read last."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

MOST_OPEN = 16  # files of each kind whose descriptions are kept


class Recent:
    """The last few things that were made from a path."""

    def __init__(self, make: Any):
        self.make, self.kept = make, OrderedDict()

    def __call__(self, path: Path) -> Any:
        """What is made from the path, or was made from it not long ago."""
        if path not in self.kept:
            self.kept[path] = self.make(path)
            if len(self.kept) > MOST_OPEN:
                self.kept.popitem(last=False)
        self.kept.move_to_end(path)
        return self.kept[path]

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self.make,)  # open files do not travel to another process
