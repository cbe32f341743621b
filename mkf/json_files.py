"""Reads what other commands wrote, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mkf.errors import InputError

Content = TypeVar("Content", bound=BaseModel)


def read_json(path: Path, kind: type[Content], *, wanted: str) -> Content:
    """The content of a file; `wanted` says in an error which file is asked for.

    Raises
    ------
    InputError
        The file cannot be read or holds something else.
    """
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{place}: {first['msg']}".removeprefix(": ")
        raise InputError(f"{path}: {what}; give {wanted}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give {wanted}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give {wanted}") from error
