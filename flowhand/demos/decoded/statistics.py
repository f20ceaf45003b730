"""Statistics in a file, so that the rows of a large set are read for them once."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowhand.contracts.data.statistics import QUANTILES, FeatureStatistics, Statistics

from ..archive import read_bounded

MOST_BYTES = 2**27
FIELDS = ("mean", "std", "low", "high", "quantiles")


def kept_statistics(file: Path, measure: Callable[[], Statistics]) -> Statistics:
    """What the file holds, to the last bit; where there is none, what `measure` gives, which it holds from then on.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return _parsed(read_bounded(file, MOST_BYTES))
    except FileNotFoundError:
        pass
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} holds no statistics ({error}); delete it") from error
    found = measure()
    content = {
        name: {"count": each.count, **{field: getattr(each, field).tolist() for field in FIELDS}}
        for name, each in found.items()
    }
    temporary = file.with_name(f".{file.name}.tmp-{secrets.token_hex(4)}")
    try:
        with temporary.open("w") as sink:
            json.dump(content, sink)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _parsed(content: bytes) -> Statistics:
    found = {}
    for name, each in json.loads(content).items():
        values = {field: np.array(each[field], np.float64) for field in FIELDS}
        size = len(values["mean"])
        expected = {field: (len(QUANTILES), size) if field == "quantiles" else (size,) for field in FIELDS}
        if {field: value.shape for field, value in values.items()} != expected:
            raise ValueError(f"{name!r} has other shapes than its mean")
        found[name] = FeatureStatistics(int(each["count"]), **values)
    return found
