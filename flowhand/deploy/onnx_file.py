"""Whether an ONNX model is all in one file: read from its bytes, before any runtime believes them. No dependencies.

Another parser must not read the bytes otherwise than this one. So only one form of a message is taken, the one that
protobuf's own writers give it: known fields with their own wire types, in the order of their numbers, a single one
once, no number longer than it has to be. Fields that no exported policy has are not known here.
"""

from __future__ import annotations

NUMBER, INT32, FLOAT, TEXT, BYTES = "number", "int32", "float", "text", "bytes"
PACKED = {"floats": 4, "doubles": 8, "int32s": 0, "int64s": 0}  # kinds of packed numbers: bytes of one, 0 for varints
# Messages of onnx.proto, number and content of their fields; * where a field may be repeated.
MESSAGES = {
    "model": "1:number 2:text 3:text 4:text 5:number 6:text 7:graph 8:opset* 14:entry*",
    "graph": "1:node* 2:text 5:tensor* 10:text 11:value* 12:value* 13:value* 16:entry*",
    "node": "1:text* 2:text* 3:text 4:text 5:attribute* 6:text 7:text 9:entry*",
    "attribute": "1:text 2:float 3:number 4:bytes 5:tensor 7:float* 8:number* 9:bytes* 13:text 20:int32",
    "tensor": "1:number* 2:int32 4:floats 5:int32s 6:bytes* 7:int64s 8:text 9:bytes 10:doubles 11:int64s 12:text "
    "14:int32 16:entry*",
    "value": "1:text 2:type 3:text 4:entry*",
    "type": "1:tensor_type 6:text",
    "tensor_type": "1:int32 2:shape",
    "shape": "1:dimension*",
    "dimension": "1:number 2:text 3:text",
    "opset": "1:text 2:number",
    "entry": "1:text 2:text",
}
FORBIDDEN = {
    ("model", 20): "instructions for training",
    ("model", 25): "functions of its own",
    ("graph", 15): "sparse weights",
    ("attribute", 6): "a graph inside the graph (a loop or a branch)",
    ("attribute", 11): "a graph inside the graph (a loop or a branch)",
    ("tensor", 13): "weights in another file",
}
WIRE = {NUMBER: 0, INT32: 0, FLOAT: 5}  # the wire type of all else is 2: its length stands before it
ONE_OF = {"attribute": {2, 3, 4, 5, 7, 8, 9}, "tensor": {4, 5, 6, 7, 9, 10, 11}, "dimension": {1, 2}}
NAMES = {"attribute": 1, "tensor": 8, "value": 1, "opset": 1, "entry": 1}  # of which a list has each once
HOLDS = {1: 2, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8, 8: 9}  # the stated type of an attribute: the field that holds it
STANDARD = ("", "ai.onnx")
CHECKED = {"model", "graph", "node", "attribute", "tensor", "value", "dimension"}


def _tags(fields: str) -> dict[int, tuple[int, str, bool]]:
    """By tag, which is number and wire type: the field's number, what it holds, whether it may be repeated."""
    pairs = [field.split(":") for field in fields.split()]
    known = [(int(number), content.rstrip("*"), content.endswith("*")) for number, content in pairs]
    return {field[0] << 3 | WIRE.get(field[1], 2): field for field in known}


TAGS = {kind: _tags(fields) for kind, fields in MESSAGES.items()}
NAMED = {  # by message: the lists in it of which the entries have names, and their number of the name
    kind: {number: (held, NAMES[held]) for number, held, repeated in tags.values() if repeated and held in NAMES}
    for kind, tags in TAGS.items()
}


def require_self_contained(model: bytes) -> None:
    """Raises `ValueError` unless the model consists of standard operators and of weights that stand in it.

    What is refused could read another file, or run code that is not part of the runtime: weights in other files,
    operators of other domains, functions, loops and branches. Nothing of it occurs in an exported policy, nor does
    anything that one parser could read otherwise than another.
    """
    try:
        _read("model", model, 0, len(model))
    except IndexError:
        raise ValueError("the model is no ONNX file, or it is truncated") from None


def _read(kind: str, data: bytes, at: int, end: int) -> dict[int, list]:
    """The fields of the message in data[at:end] by their numbers; bytes and packed numbers are left out."""
    tags, last, found = TAGS[kind], 0, {}
    while at < end:
        start, tag = at, data[at]
        at += 1
        if tag > 127:
            tag += (data[at] - 1) << 7
            at += 1
        if tag not in tags or (tag > 127) != (at - start > 1):
            raise _unknown(kind, data, start)
        number, held, repeated = tags[tag]
        if tag <= last and not (tag == last and repeated):
            raise _no_onnx(f"field {number} of a {kind} comes again or out of order", start)
        last = tag
        if held == FLOAT:
            value, at = 0, at + 4  # which does not matter
        else:
            value, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)
            if held not in WIRE:
                if value > end - at:
                    raise _no_onnx(f"field {number} of a {kind} is longer than the {kind}", start)
                at += value
                value = _content(held, data, at - value, at)
            elif held == INT32 and value >= 2**31:
                raise _no_onnx(f"field {number} of a {kind} is larger than its kind", start)
        if number in found:
            found[number].append(value)
        else:
            found[number] = [value]
    if at != end:
        raise _no_onnx(f"a {kind} is longer than it says", end)
    if kind in CHECKED:
        _require_sound(kind, found)
    return found


def _content(held: str, data: bytes, at: int, end: int) -> dict[int, list] | str | None:
    """What stands in data[at:end]: a message, a text; None: bytes, whose content does not matter."""
    if held == TEXT:
        try:
            text = data[at:end].decode()
        except UnicodeDecodeError:
            raise _no_onnx("a text is not UTF-8", at) from None
        if "\0" in text:
            raise _no_onnx("a text has a character of value 0, where some readers end", at)
        return text
    if held in TAGS:
        return _read(held, data, at, end)
    if held in PACKED:
        _require_packed(held, data, at, end)
    return None


def _require_packed(held: str, data: bytes, at: int, end: int) -> None:
    """Raises `ValueError` unless numbers of this kind, at least one, fill data[at:end]."""
    if at == end or (PACKED[held] and (end - at) % PACKED[held]):
        raise _no_onnx(f"{held} have {end - at} bytes", at)
    while not PACKED[held] and at < end:
        value, after = _varint(data, at)
        if after > end or (held == "int32s" and 2**31 <= value < 2**64 - 2**31):
            raise _no_onnx("a number is longer or larger than its kind", at)
        at = after


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for i in range(1, 10):
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            if byte == 0 or value >= 2**64:
                break
            return value, at + i + 1
    raise _no_onnx("a number is longer than it has to be", at)


def _require_sound(kind: str, found: dict[int, list]) -> None:
    """Raises `ValueError` where the fields of a message say something twice, or what an exported policy never says."""
    if kind in ONE_OF and len(given := ONE_OF[kind].intersection(found)) > 1:
        raise ValueError(f"the model is ambiguous: a {kind} has the fields {sorted(given)}, expected one of them")
    for number, (held, name) in NAMED[kind].items():
        if len(values := found.get(number, ())) > 1:
            names = [value.get(name, [""])[0] for value in values]
            if len(set(names)) < len(names):
                twice = next(n for n in names if names.count(n) > 1)
                raise ValueError(f"the model is ambiguous: a {kind} has two of {held} {twice[:60]!r}")
    if kind == "node" and found.get(7, [""])[0] not in STANDARD:
        raise ValueError(f"the model has an operator of the domain {found[7][0]!r}, expected only standard ones")
    if kind == "tensor" and found.get(14, [0]) != [0]:
        raise ValueError("the model has weights in another file, which an exported policy never has")
    if kind == "attribute":
        type_, given = found.get(20, [0])[0], ONE_OF[kind].intersection(found)
        if type_ not in HOLDS or given - {HOLDS[type_]}:
            raise ValueError(f"the model is ambiguous: an attribute of type {type_} has the fields {sorted(given)}")
    if kind == "model":
        _require_plain(found)


def _require_plain(model: dict[int, list]) -> None:
    """Raises `ValueError` where a model has two versions of the standard operators, or settings of the runtime."""
    if len([s for s in model.get(8, []) if s.get(1, [""])[0] in STANDARD]) > 1:
        raise ValueError("the model is ambiguous: it names the standard operators twice")
    if any(entry.get(1) == ["ort_config"] for entry in model.get(14, [])):
        raise ValueError("the model has settings of the runtime (ort_config), which an exported policy never has")


def _unknown(kind: str, data: bytes, at: int) -> ValueError:
    """What to say of a tag that this message does not have."""
    tag, _ = _varint(data, at)
    if (kind, tag >> 3) in FORBIDDEN:
        return ValueError(f"the model has {FORBIDDEN[kind, tag >> 3]}, which an exported policy never has")
    return _no_onnx(f"a {kind} has field {tag >> 3} of wire type {tag & 7}, which an exported policy never has", at)


def _no_onnx(what: str, at: int) -> ValueError:
    return ValueError(f"the model is no ONNX file as its writers write it: {what} (byte {at})")
