"""From an engine's URL to the engine and the models that it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.errors import InvalidInputError
from services.inference.engine import Engine
from services.inference.repository import ServedModel, load_models


async def open_engine(url: str) -> tuple[Engine, dict[str, ServedModel]]:
    """Open the engine that the URL names, its models loaded and warmed up.

    Parameters
    ----------
    url
        ``embedded:DIR``: ONNX Runtime in this process, on the model repository DIR.

    Returns
    -------
    tuple[Engine, dict[str, ServedModel]]
        The engine, which the caller closes, and its models by name.

    Raises
    ------
    InvalidInputError
        Not a URL of an engine that this version knows.
    RepositoryError
        The model repository, or a model in it, cannot be used.
    """
    scheme, _, place = url.partition(":")
    if scheme != "embedded" or not place:
        raise InvalidInputError(f"unknown engine {url!r}: this version knows embedded:DIR")
    # Imported here, so that a client of another engine needs no ONNX Runtime.
    from services.inference.embedded import EmbeddedEngine

    models = await asyncio.to_thread(load_models, Path(place))
    return await EmbeddedEngine.open(models), models
