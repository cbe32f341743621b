"""The numbers of an ONNX tensor: read in whatever form they are stored, written in the same one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from mkf.errors import GraphError
from mkf.networks import protobuf_patch

# Data type of a tensor: the type of its bytes in `raw_data` or an external file, and the field that
# holds the numbers where neither does. The 16-bit types go through int32_data as bit patterns.
_FORMS: dict[int, tuple[np.dtype[Any], str]] = {
    TensorProto.FLOAT: (np.dtype("<f4"), "float_data"),
    TensorProto.DOUBLE: (np.dtype("<f8"), "double_data"),
    TensorProto.FLOAT16: (np.dtype("<f2"), "int32_data"),
    TensorProto.BFLOAT16: (np.dtype("<u2"), "int32_data"),
}


@dataclass(frozen=True)
class Span:
    """Bytes `offset` to `offset + length` of the external file `location`."""

    location: str
    offset: int
    length: int

    def overlaps(self, other: Span) -> bool:
        """Whether some byte belongs to both."""
        return self.location == other.location and (
            self.offset < other.offset + other.length and other.offset < self.offset + self.length
        )


def is_external(tensor: TensorProto) -> bool:
    """Whether the numbers are kept in a file of their own beside the graph."""
    return tensor.data_location == TensorProto.EXTERNAL


def external_span(tensor: TensorProto) -> Span:
    """Where the numbers of an external tensor are kept.

    Raises
    ------
    GraphError
        The entry is malformed, or its file would lie outside the graph's folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = PurePosixPath(os.fsdecode(entries.get("location", "")))
    unnamed = not location.name or "\0" in str(location)
    if unnamed or location.is_absolute() or ".." in location.parts:
        raise GraphError(f"its external file {str(location)!r} is not one in the graph's folder")
    try:
        # Without a length the tensor says it by its shape; an unknown type has some length.
        form = _FORMS.get(tensor.data_type)
        implied = math.prod(tensor.dims) * (form[0].itemsize if form else 1)
        span = Span(
            str(location), int(entries.get("offset", 0)), int(entries.get("length", implied))
        )
    except ValueError:
        raise GraphError("its external data has an offset or length that is no number") from None
    if span.offset < 0 or span.length < 0:
        raise GraphError("its external data has a negative offset or length")
    return span


def read(tensor: TensorProto, folder: Path | None) -> NDArray[np.float64]:
    """The numbers of a floating-point tensor.

    Parameters
    ----------
    tensor : TensorProto
        A tensor of type float32, float64, float16 or bfloat16.
    folder : Path or None
        The graph's folder, where external files are looked for.

    Returns
    -------
    float64 array
        Of the tensor's own shape.

    Raises
    ------
    GraphError
        Another type, a missing or short external file, or not as many numbers as the shape says.
    """
    if tensor.data_type not in _FORMS:
        name = _type_name(tensor.data_type)
        raise GraphError(f"its weights are of type {name}, not float16, bfloat16, float32, float64")
    dtype, field = _FORMS[tensor.data_type]
    if is_external(tensor) or tensor.HasField("raw_data"):
        stored = _read_external(tensor, folder) if is_external(tensor) else tensor.raw_data
        numbers = np.frombuffer(stored, dtype if len(stored) % dtype.itemsize == 0 else np.uint8)
    elif field == "int32_data":
        numbers = np.array(tensor.int32_data, dtype=np.int64).astype("<u2").view(dtype)
    else:
        numbers = np.array(getattr(tensor, field), dtype)
    if numbers.size != math.prod(tensor.dims):
        raise GraphError(
            f"the count of its weights does not fit their shape {tuple(tensor.dims)}: "
            "the file is damaged"
        )
    if tensor.data_type == TensorProto.BFLOAT16:
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    # A signaling NaN is for the caller to find, not for the conversion to warn of.
    with np.errstate(invalid="ignore"):
        return np.asarray(numbers.reshape(tuple(tensor.dims)), dtype=np.float64)


def encode(tensor: TensorProto, values: NDArray[np.float64]) -> bytes:
    """`values` as little-endian bytes, each rounded to the nearest finite number of the type."""
    dtype, _ = _FORMS[tensor.data_type]
    if tensor.data_type != TensorProto.BFLOAT16:
        largest = np.finfo(dtype).max
        return bytes(np.clip(values, -largest, largest).astype(dtype).tobytes())
    # bfloat16 is the upper half of a float32; adding half of the lower one rounds, ties to even.
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bytes(rounded.astype(dtype).tobytes())


def store(tensor: TensorProto, values: NDArray[np.float64]) -> str:
    """Put `values` into a tensor that is not external, in the form it had.

    Returns
    -------
    str
        The name of the field that was written.
    """
    encoded = encode(tensor, values)
    if tensor.HasField("raw_data"):
        tensor.raw_data = encoded
        return "raw_data"
    dtype, field = _FORMS[tensor.data_type]
    numbers = np.frombuffer(encoded, "<u2" if field == "int32_data" else dtype)
    getattr(tensor, field)[:] = numbers.tolist()
    return field


def serialized_field(tensor: TensorProto, field: str) -> bytes:
    """One field of a tensor as it stands on the wire."""
    alone = TensorProto()
    if field == "raw_data":
        alone.raw_data = tensor.raw_data
    else:
        getattr(alone, field).extend(getattr(tensor, field))
    return bytes(alone.SerializeToString())


def tensors(
    message: Any, path: protobuf_patch.Path = ()
) -> Iterator[tuple[protobuf_patch.Path, TensorProto]]:
    """Every tensor anywhere inside a message, with its path."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        values = [value] if hasattr(value, "ListFields") else value
        for i, inner in enumerate(values):
            inner_path = (*path, (field.name, i))
            if isinstance(inner, TensorProto):
                yield inner_path, inner
            else:
                yield from tensors(inner, inner_path)


def open_external(folder: Path, location: str) -> BinaryIO:
    """Open an external file for reading.

    Raises
    ------
    GraphError
        It is not there, or not to be read.
    """
    try:
        return (folder / location).open("rb")
    except OSError as error:
        raise GraphError(
            f"its external file {location!r} cannot be read ({error.strerror}): put it beside the "
            "graph"
        ) from error


def _read_external(tensor: TensorProto, folder: Path | None) -> bytes:
    span = external_span(tensor)
    if folder is None:
        raise GraphError(
            f"its weights are in the external file {span.location!r}: load the model with its "
            "external data"
        )
    with open_external(folder, span.location) as file:
        file.seek(span.offset)
        stored = file.read(span.length)
    if len(stored) != span.length:
        raise GraphError(f"its external file {span.location!r} is cut short: copy it again")
    return stored


def _type_name(data_type: int) -> str:
    if data_type in TensorProto.DataType.values():
        return str(TensorProto.DataType.Name(data_type)).lower()
    return f"number {data_type}"
