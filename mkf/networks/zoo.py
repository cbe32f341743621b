"""The one place that imports timm, lazily (extra `train`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from mkf.errors import MissingExtraError

_declared: list[Any] = []  # torch forgets the schemas when their Library object is collected


def import_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not fit the installed torch.

    torchvision registers meta kernels for `nms` and `qnms` while it is imported, which fails when its
    compiled operators cannot be loaded (a CUDA build of torchvision beside a CPU build of torch).
    Declaring the two schemas first lets the import pass; torchvision's transforms and all of timm
    work without the operators. With a matching pair nothing is declared.

    Raises
    ------
    MissingExtraError
        torch, torchvision or timm is not installed.
    """
    try:
        import torch

        if not _declared and not _operators_load(torch):
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"this needs torch and timm ({error}); install them with: pip install 'mkf[train]'"
        ) from error
    return timm


def _operators_load(torch: ModuleType) -> bool:
    spec = importlib.util.find_spec("torchvision")  # finds the package without running it
    if spec is None or spec.origin is None:
        return True  # nothing to mend: the import of timm says what is missing
    libraries = sorted(Path(spec.origin).parent.glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except (OSError, RuntimeError):
        return False
    return bool(libraries)
