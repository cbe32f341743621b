"""From an engine's URL to the engine and the models that it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.errors import InvalidInputError
from services.inference.engine import Engine
from services.inference.repository import ServedModel, load_models
from services.runtime.settings import Settings


async def open_engine(
    url: str, settings: Settings | None = None
) -> tuple[Engine, dict[str, ServedModel]]:
    """Open the engine that the URL names, its models loaded and warmed up.

    Parameters
    ----------
    url
        ``embedded:DIR``: ONNX Runtime in this process, on the model repository DIR.
        ``triton:HOST:PORT[,HOST:PORT...]``: Triton servers, on the repository that the settings
        name.
    settings
        How to talk to Triton; by default as the environment has them, without `.env`.

    Returns
    -------
    tuple[Engine, dict[str, ServedModel]]
        The engine, which the caller closes, and its models by name.

    Raises
    ------
    InvalidInputError
        Not a URL of an engine.
    RepositoryError
        The model repository, or a model in it, cannot be used.
    UnavailableError
        No Triton server answers.
    """
    scheme, _, place = url.partition(":")
    if scheme not in ("embedded", "triton") or not place:
        raise InvalidInputError(
            f"unknown engine {url!r}: name embedded:DIR or triton:HOST:PORT[,HOST:PORT...]"
        )
    # Imported here, so that a client of another engine needs no ONNX Runtime.
    if scheme == "embedded":
        from services.inference.embedded import EmbeddedEngine

        models = await asyncio.to_thread(load_models, Path(place))
        return await EmbeddedEngine.open(models), models
    from services.inference.triton import TritonEngine

    settings = settings or Settings(_env_file=None)
    models = await asyncio.to_thread(load_models, settings.model_repository)
    engine = await TritonEngine.open(
        place,
        models,
        concurrent_requests=settings.triton_concurrent_requests,
        retry_seconds=settings.triton_retry_seconds,
        shared_memory=settings.triton_shared_memory,
    )
    return engine, models
