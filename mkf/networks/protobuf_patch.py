"""Change a few fields of a serialized protobuf message and copy every other byte as it is.

Parsing a file and serializing it again keeps its meaning, not its bytes: writers differ in the
order of fields, in the packing of numbers and in fields that this library does not know. So the
message is walked on the wire (https://protobuf.dev/programming-guides/encoding): only the fields to
change are encoded anew, with the lengths of the messages around them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mkf.errors import GraphError

Path = tuple[tuple[str, int], ...]
"""From the outermost message to one inside: the name of each field and which of its occurrences."""

Buffer = bytes | memoryview

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    """One field on the wire; its bytes are `start:end`, tag and length included."""

    number: int
    wire_type: int
    start: int
    length_at: int  # where the payload's length starts, if it has one
    payload_at: int
    end: int


def patch(
    message: Buffer, changes: Mapping[Path, Mapping[str, bytes]], descriptor: Any
) -> list[Buffer]:
    """Give some messages inside `message` new fields.

    Parameters
    ----------
    message : bytes or memoryview
        A serialized message.
    changes : mapping of Path to mapping of str to bytes
        For each inner message to change, by its path: the names of the fields to replace, with all
        their new occurrences in serialized form, tags included.
    descriptor : google.protobuf.descriptor.Descriptor
        The type of `message`.

    Returns
    -------
    list of bytes-like
        The new message in pieces to be joined; what stays is not copied.

    Raises
    ------
    GraphError
        The bytes are no protobuf message, or a path leads nowhere.
    """
    whole = memoryview(message)
    own: dict[int, bytes] = {}
    inner: dict[tuple[int, int], dict[Path, Mapping[str, bytes]]] = {}
    for path, fields in changes.items():
        if path:
            (name, occurrence), *rest = path
            number = descriptor.fields_by_name[name].number
            inner.setdefault((number, occurrence), {})[tuple(rest)] = fields
        else:
            own = {descriptor.fields_by_name[name].number: new for name, new in fields.items()}

    pieces: list[Buffer] = []
    seen: Counter[int] = Counter()
    for field in _fields(whole):
        occurrence = seen[field.number]
        seen[field.number] += 1
        if field.number in own:
            pieces.append(own[field.number] if occurrence == 0 else b"")
        elif deeper := inner.pop((field.number, occurrence), None):
            message_type = descriptor.fields_by_number[field.number].message_type
            payload = patch(whole[field.payload_at : field.end], deeper, message_type)
            pieces += _with_length(whole, field, payload)
        else:
            pieces.append(whole[field.start : field.end])
    if inner:
        raise GraphError(
            "the file is encoded in a way that its weights cannot be replaced in place: "
            "load it with the onnx package and save it again first"
        )
    return pieces + [new for number, new in own.items() if number not in seen]


def _with_length(whole: memoryview, field: _Field, payload: list[Buffer]) -> list[Buffer]:
    """Tag, length and new payload of a field; a length that stays keeps its bytes."""
    size = sum(len(piece) for piece in payload)
    if size == field.end - field.payload_at:
        return [whole[field.start : field.payload_at], *payload]
    return [whole[field.start : field.length_at], _encode_varint(size), *payload]


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _decode_varint(message, at)
        length_at = at
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, end = _decode_varint(message, at)
        elif wire_type == _LENGTH:
            size, at = _decode_varint(message, at)
            end = at + size
        elif wire_type in (_FIXED64, _FIXED32):
            end = at + (8 if wire_type == _FIXED64 else 4)
        else:
            raise GraphError(f"wire type {wire_type} at byte {start} is none of ONNX's")
        if end > len(message):
            raise GraphError(f"the field at byte {start} is cut short")
        yield _Field(tag >> 3, wire_type, start, length_at, at, end)
        at = end


def _decode_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at byte `at`, and the byte after it."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise GraphError("a number is cut short")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
