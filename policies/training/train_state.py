"""Training states from a file that a stranger may have written: no code, no more memory than the file has bytes.

The file is what `torch.save` writes: an archive of stored entries, of which one is a pickle and the others are the
tensors' numbers. It is read here rather than by `torch.load`, which unpacks deflated entries of any size, calls what
allocates (`bytearray(10**10)`), and gives tensors as much memory as their shapes ask for.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ALLOWED = (  # in protocol 2, those of tensors, numbers, strings, lists, tuples and dicts
    "PROTO STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS "
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE GLOBAL REDUCE BUILD BINPERSID BINPUT "
    "LONG_BINPUT BINGET LONG_BINGET"
)
OPCODES = frozenset(_ALLOWED.split(" "))
MOST_DEPTH = 30  # of lists and dicts in each other
MOST_DIMENSIONS = 16
MOST_THREADS = 4096


class _Guarded:
    """What the unpickler makes, upon which the file can force no state."""

    __slots__ = ("value",)
    value: Tensor

    def __setstate__(self, state: object) -> None:
        raise ValueError("a tensor is given a state")


class _Storage(_Guarded):
    """The numbers of a tensor."""

    def __init__(self, value: Tensor):
        self.value = value


class _Tensor(_Guarded):
    """A tensor, which may not be larger than its numbers are."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: object):
        known = isinstance(storage, _Storage) and type(shape) is tuple and type(strides) is tuple
        if not known or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
            raise ValueError("a tensor is described in another way")
        if any(type(number) is not int or not 0 <= number < 2**60 for number in (offset, *shape, *strides)):
            raise ValueError("a tensor's shape is none")
        data, count = storage.value, math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if count and max(count - 1, last) >= len(data):
            raise ValueError(f"a tensor of shape {shape} has {len(data)} numbers"[:200])
        self.value = data.as_strided(shape, strides, offset) if count else torch.empty(shape, dtype=data.dtype)


class _Names(OrderedDict[Any, Any]):
    """An ordered dict that forgets the attributes it had."""

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dicts, and nothing else to call."""

    def __init__(self, program: bytes, record: Callable[[str], bytes]):
        super().__init__(io.BytesIO(program))
        self._record = record
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Names
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise ValueError(f"it asks for {module}.{name}"[:200])

    def persistent_load(self, pid: Any, /) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str(name), str(), int(size)):
                if name not in self._storages:
                    content = bytearray(self._record(name)) or bytearray(1)
                    self._storages[name] = torch.frombuffer(content, dtype=torch.uint8).clone()  # aligned by torch
                data, used = self._storages[name], size * dtype.itemsize
                if size < 0 or used > len(data):
                    raise ValueError("a tensor asks for numbers that are not there")
                return _Storage(data[:used].view(dtype))
        raise ValueError("it refers to something that is no tensor")


def unpacked(content: bytes) -> Any:
    """What was given to `torch.save`: tensors, numbers, strings, and lists, tuples and dicts of them.

    Raises:
        ValueError: it is another file, or would take more memory than it has bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _unpacked(archive, len(content))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes meet archive and unpickler with errors of any kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(reason) from error


def _unpacked(archive: zipfile.ZipFile, size: int) -> Any:
    entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename!r} is compressed"[:200])
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its parts together are larger than the file")
    names = [entry.filename for entry in entries]
    root = names[0].partition("/")[0] if names else ""
    if len(set(names)) < len(names):
        raise ValueError("two of its parts have one name")
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("its numbers have another byte order")
    program = archive.read(f"{root}/data.pkl")
    count = _steps(program)
    value = _Unpickler(program, lambda name: archive.read(f"{root}/data/{name}")).load()
    return _Plain(1000 + 4 * count).value(value, 0)


def _steps(program: bytes) -> int:
    """The number of the pickle's instructions, all of which are allowed."""
    count = 0
    for opcode, argument, _ in pickletools.genops(program):
        count += 1
        if opcode.name not in OPCODES:
            raise ValueError(f"it holds the instruction {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:  # memory for as many would be taken
            raise ValueError("it notes more than it holds")
    return count


class _Plain:
    """Makes plain values of what was unpickled, and counts them: a value in many places is small in the file only."""

    def __init__(self, most: int):
        self._left = most

    def value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MOST_DEPTH:
            raise ValueError("its values are too many, or too deep in each other")
        if isinstance(value, _Tensor):
            return value.value
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple):
            return type(value)(self.value(item, depth + 1) for item in value)
        if type(value) in (dict, _Names):
            if any(type(key) not in (str, int) for key in value):
                raise ValueError("a key is neither a string nor a number")
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        raise ValueError(f"it holds a {type(value).__name__}")


def require_state(state: Mapping[str, Any], own: Mapping[str, Any], parameters: list[Tensor], steps: int) -> None:
    """Raises `ValueError` naming the field of a training state that a trainer could not go on from.

    Args:
        state: what is to be restored.
        own: the state of that trainer before.
        parameters: what its optimizer changes.
        steps: how many the run has in all.
    """
    for name in own:
        if name not in state and name != "threads":  # an earlier version did not note them
            _refuse(name, "is missing")
    for name in ("step", "ema_updates"):
        _require(_is_count(state[name], steps), name, f"a number of steps up to {steps}", state[name])
    seconds = state["seconds"]
    _require(_is_number(seconds) and 0 <= seconds < math.inf, "seconds", "a time", seconds)
    require_history(state["history"])
    _require_threads(state.get("threads", own["threads"]), steps)
    for name in ("policy", "ema"):
        _require_tensors(name, state[name], own[name])
    _require_optimizer(state["optimizer"], own["optimizer"], parameters, steps)
    for name in sorted({"generator", "order"} & set(own)):
        _require_generator(name, state[name], own[name])


def _require_generator(name: str, generator: Any, own: Tensor) -> None:
    _require_tensors(name, {"state": generator}, {"state": own})
    try:
        if generator.shape == torch.Generator().get_state().shape:  # the CPU's
            torch.Generator().set_state(generator)
    except RuntimeError as error:
        raise ValueError(f"the training state's {name} is no state of a random generator") from error


def require_history(history: Any) -> list[dict[str, Any]]:
    """The log of a training state; raises `ValueError` when it is none."""
    _require(isinstance(history, list), "history", "a list", history)
    for at, entry in enumerate(history):
        where = f"history[{at}]"
        _require(isinstance(entry, dict), where, "a dict", entry)
        for name in ("step", "loss"):
            _require(_is_number(entry.get(name)), f"{where}.{name}", "a number", entry.get(name))
        for name, value in entry.items():
            values = value.values() if isinstance(value, dict) else (value,)
            _require(all(_is_number(number) for number in values), f"{where}.{name}", "a number, or several", value)
    return history


def _require_threads(threads: Any, steps: int) -> None:
    _require(isinstance(threads, list) and len(threads) > 0, "threads", "a list of [step, count]", threads)
    for entry in threads:
        good = isinstance(entry, list) and len(entry) == 2 and _is_count(entry[0], steps)
        _require(good and _is_count(entry[1], MOST_THREADS) and entry[1] > 0, "threads", "[step, count] each", entry)


def _require_optimizer(state: Any, own: Mapping[str, Any], parameters: list[Tensor], steps: int) -> None:
    _require(isinstance(state, dict) and set(state) == set(own), "optimizer", f"a dict of {sorted(own)}", state)
    groups, count = state["param_groups"], len(parameters)
    good = isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
    _require(good and {"params", "lr"} <= set(groups[0]), "optimizer.param_groups", "a list of one group", groups)
    for name, value in groups[0].items():
        mine, where = own["param_groups"][0].get(name), f"optimizer.param_groups.{name}"
        if name == "lr":
            _require(_is_number(value) and 0 <= value < math.inf, where, "a number", value)
        else:
            _require(repr(value) == repr(mine), where, repr(mine)[:100], value)
    _require(isinstance(state["state"], dict), "optimizer.state", "a dict", state["state"])
    for at, moments in state["state"].items():
        where = f"optimizer.state[{at}]"
        _require(_is_count(at, count - 1), where, f"a parameter's number below {count}", at)
        _require_tensors(where, moments, _moments(parameters[at]))
        _require(0 <= moments["step"].item() <= steps, f"{where}.step", f"up to {steps}", moments["step"].item())


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    """Tensors like those that AdamW keeps of a parameter."""
    return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


def _require_tensors(where: str, tensors: Any, own: Mapping[str, Tensor]) -> None:
    _require(isinstance(tensors, dict) and set(tensors) == set(own), where, f"the names {list(own)}"[:200], tensors)
    for name, mine in own.items():
        value, field = tensors[name], f"{where}.{name}"
        like = f"{mine.dtype} {tuple(mine.shape)}"
        good = isinstance(value, Tensor) and value.shape == mine.shape and value.dtype == mine.dtype
        _require(good, field, like, value)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            _refuse(field, "is not finite")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _require(good: bool, field: str, expected: str, got: Any) -> None:
    if not good:
        told = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else f"{type(got).__name__} {got!r}"
        _refuse(field, f"is {' '.join(told.split())[:100]}, expected {expected}")


def _refuse(field: str, what: str) -> None:
    field = " ".join(ascii(field)[1:-1].split())[:100]
    raise ValueError(f"the training state's {field} {what}; resume from another checkpoint")
