"""Idealize an ONNX file: a new file, equal to the old one in every byte but the weights'.

The new file is made in a folder of its own beside its destination, read back, compared, and only
then moved in place; an error leaves no trace. Where the network keeps tensors in external files,
all of them are copied into one, `OUT.data` beside `OUT`, and the graph refers to that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto

from mkf.errors import GraphError, one_line
from mkf.networks import tensor_storage
from mkf.networks.onnx_graph import Choose, Idealization, assign_layers, parse
from mkf.networks.protobuf_patch import Path as FieldPath
from mkf.networks.protobuf_patch import patch

if TYPE_CHECKING:
    from mkf.idealization import Idealizer
    from mkf.networks.sources import Options

# Readers that map external files into memory want tensors to start on a page.
_PAGE = 4096


def idealize_file(
    source: Path, out: Path, choose: Choose, *, skip_unsuitable: bool = False
) -> Idealization:
    """Write a copy of an ONNX file with the filters of all depthwise convolutions idealized.

    Parameters
    ----------
    source : Path
        The network's file; never changed, nor are its external files.
    out : Path
        The new file, replaced if it exists; its folder must exist.
    choose : callable
        From a layer's filters (n, k, k) to their keys, such as `mkf.idealization.idealizer` makes.
    skip_unsuitable : bool
        Leave layers that cannot be idealized as they are instead of refusing the file.

    Returns
    -------
    Idealization
        The keys of every layer.

    Raises
    ------
    GraphError
        The file is not ONNX, has no depthwise convolution or one that cannot be idealized, or the
        new file would replace the network's own.
    OSError
        A file cannot be read or written.
    """
    _check_destination(source, out)
    try:
        data = source.read_bytes()
        model = parse(data)
        found = assign_layers(model, choose, skip_unsuitable=skip_unsuitable, folder=source.parent)
        with TemporaryDirectory(prefix=".mkf-", dir=out.parent) as staging:
            staged = Path(staging, out.name)
            changes = _change(model, found, source, staged)
            with staged.open("wb") as file:
                file.writelines(patch(data, changes, ModelProto.DESCRIPTOR))
            _check_written(staged, model, source)
            _move(staged, out)
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from error
    return found


def calibrate_file(
    source: Path,
    out: Path,
    idealize: Idealizer,
    *,
    dataset: str,
    images: int,
    options: Options,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Idealization, dict[str, float]]:
    """Write a copy of an ONNX file, idealized and calibrated (`mkf.calibration.calibrate`).

    Weights, biases and the means of normalizations change and nothing else; external data goes into
    the file itself.

    Parameters
    ----------
    dataset, images
        The URI of a dataset, and how many of its first images are looked at.
    options
        How images become the network's inputs.

    Returns
    -------
    Idealization, dict
        The keys of every layer, and the share of its outputs' variance that is missed.

    Raises
    ------
    InputError
        The dataset cannot be used.
    GraphError
        As `idealize_file` does, or the result would be larger than a file of ONNX can be.
    """
    from mkf.accuracy import network_inputs, open_images_of
    from mkf.calibration import calibrate
    from mkf.networks.sources import load_source

    _check_destination(source, out)
    loaded = load_source(f"onnx:{source}", options)
    inputs = network_inputs(loaded, open_images_of(loaded, dataset), count=images)
    model = parse(source.read_bytes())
    _check_external(model, source.parent, out)
    onnx.load_external_data_for_model(model, str(source.parent))
    try:
        result = calibrate(model, inputs, idealize, advance=advance)
        data = model.SerializeToString()
    except (GraphError, EncodeError, ValueError) as error:
        raise GraphError(f"{source}: {one_line(error)}") from error
    with TemporaryDirectory(prefix=".mkf-", dir=out.parent) as staging:
        staged = Path(staging, out.name)
        staged.write_bytes(data)
        staged.replace(out)
    return result.idealization, result.missed


def _check_destination(source: Path, out: Path) -> None:
    if out.is_dir():
        raise GraphError(f"{out} is a folder: name the file to write")
    if not out.parent.is_dir():
        raise GraphError(f"the folder {out.parent} does not exist: make it first")
    if out.exists() and source.exists() and out.samefile(source):
        raise GraphError(f"{out} is the network itself: write to another file, to keep both")


def _check_external(model: ModelProto, folder: Path, out: Path) -> None:
    """Raise GraphError where `out` is a file that the network keeps weights in."""
    for _, tensor in tensor_storage.tensors(model):
        if tensor_storage.is_external(tensor) and out.exists():
            original = folder / tensor_storage.external_span(tensor).location
            if original.exists() and out.samefile(original):
                raise GraphError(
                    f"{out} holds weights of the network: write to another name, to keep both"
                )


def _change(
    model: ModelProto, found: Idealization, source: Path, staged: Path
) -> dict[FieldPath, Mapping[str, bytes]]:
    """Put the new weights into the model and its new external file; say which fields changed."""
    outside: list[tuple[TensorProto, bytes]] = []
    changes: dict[FieldPath, Mapping[str, bytes]] = {}
    for layer in found.layers:
        filters = layer.assignment.idealized()
        if tensor_storage.is_external(layer.tensor):
            outside.append((layer.tensor, tensor_storage.encode(layer.tensor, filters)))
        else:
            name = tensor_storage.store(layer.tensor, filters)
            field = tensor_storage.serialized_field(layer.tensor, name)
            changes[layer.layer.weight.path] = {name: field}

    external = [
        (path, tensor)
        for path, tensor in tensor_storage.tensors(model)
        if tensor_storage.is_external(tensor)
    ]
    if external:
        data = _data_file(staged)
        starts = _copy_external([tensor for _, tensor in external], source.parent, data)
        with data.open("r+b") as file:
            for tensor, encoded in outside:
                span = tensor_storage.external_span(tensor)
                file.seek(starts[span.location] + span.offset)
                file.write(encoded)
        for path, tensor in external:
            _relocate(tensor, data.name, starts)
            field = tensor_storage.serialized_field(tensor, "external_data")
            changes[path] = {"external_data": field}
    return changes


def _data_file(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")


def _copy_external(tensors: list[TensorProto], folder: Path, data: Path) -> dict[str, int]:
    """Copy all external files of `tensors` into one; returns where each starts there, in bytes."""
    starts: dict[str, int] = {}
    # The folder of `data` is for staging, inside the one that it is meant for.
    target = data.parent.parent / data.name
    with data.open("wb") as file:
        for tensor in tensors:
            location = tensor_storage.external_span(tensor).location
            if location in starts:
                continue
            original = folder / location
            if target.exists() and original.exists() and target.samefile(original):
                raise GraphError(
                    f"keeps weights in {original}: write to another name, to keep both"
                )
            file.write(b"\0" * (-file.tell() % _PAGE))
            starts[location] = file.tell()
            with tensor_storage.open_external(folder, location) as stored:
                shutil.copyfileobj(stored, file)
    return starts


def _relocate(tensor: TensorProto, location: str, starts: Mapping[str, int]) -> None:
    """Make a tensor refer to the new external file, leaving an offset that stays as it was."""
    span = tensor_storage.external_span(tensor)
    start = starts[span.location]
    entries = {entry.key: entry for entry in tensor.external_data}
    entries["location"].value = location
    if start:
        offset = entries.get("offset") or tensor.external_data.add(key="offset")
        offset.value = str(start + span.offset)
    if "checksum" in entries:
        # Of the whole file, which is another one now; the entry is optional.
        tensor.external_data.remove(entries["checksum"])


def _check_written(staged: Path, model: ModelProto, source: Path) -> None:
    """Read the new file back: it must mean what was meant, and be as valid as its source."""
    if _digest(ModelProto.FromString(staged.read_bytes())) != _digest(model):
        raise GraphError("was not written as intended: load it with onnx and save it again first")
    try:
        onnx.checker.check_model(staged)
    except onnx.checker.ValidationError as error:
        # Some runtimes take graphs that the checker does not; those stay as they were.
        with suppress(onnx.checker.ValidationError):
            onnx.checker.check_model(source)
            raise GraphError(f"would be written as an invalid graph ({error})") from error


def _digest(model: ModelProto) -> bytes:
    """A digest of what a model means; comparing models themselves fails where they hold NaN."""
    return sha256(model.SerializeToString()).digest()


def _move(staged: Path, out: Path) -> None:
    """Move the graph, and before it the external file it needs, where they belong."""
    staged_data, data, previous = _data_file(staged), _data_file(out), staged.with_name("previous")
    if not staged_data.exists():
        staged.replace(out)
        return
    if data.exists():
        data.replace(previous)
    try:
        staged_data.replace(data)
        staged.replace(out)
    except OSError:
        data.unlink(missing_ok=True)
        if previous.exists():
            previous.replace(data)
        raise
