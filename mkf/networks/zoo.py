"""timm's networks: the one place that imports timm, lazily (extra `train`)."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mkf.errors import MissingExtraError, SourceError, one_line
from mkf.repository import Preprocessing

if TYPE_CHECKING:
    from torch import nn

# timm's own evaluation at 224 pixels, crop 0.875, bicubic (its results-imagenet.csv), in percent.
PUBLISHED_TOP1 = {
    "convnextv2_atto.fcmae_ft_in1k": 76.644,
    "convnextv2_femto.fcmae_ft_in1k": 78.476,
    "convnextv2_pico.fcmae_ft_in1k": 80.304,
    "convnextv2_nano.fcmae_ft_in1k": 81.856,
    "convnextv2_tiny.fcmae_ft_in1k": 82.948,
    "convnextv2_base.fcmae_ft_in1k": 84.890,
}
HUB_TIMEOUT_SECONDS = 10

_declared: list[Any] = []  # torch forgets the schemas when their Library object is collected


def import_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not fit torch.

    torchvision registers meta kernels for `nms` and `qnms` while it is imported, which fails when
    its compiled operators cannot be loaded (a CUDA build of torchvision beside a CPU build of
    torch). Declaring the two schemas first lets the import pass; torchvision's transforms and all
    of timm work without the operators. With a matching pair nothing is declared.

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


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode, with what timm knows of it."""

    module: nn.Module
    preprocessing: Preprocessing
    license: str
    classes: int
    labels: list[str] | None
    class_ids: list[str] | None  # synset ids, for ImageNet-1k's 1,000 classes
    expected_top1: float | None  # percent
    random_weights: bool


def random_network(name: str, *, seed: int) -> LoadedNetwork:
    """The named architecture with weights drawn from `seed`.

    Raises
    ------
    SourceError
        timm has no network of that name.
    """
    timm = import_timm()
    import torch

    torch.manual_seed(seed)
    return describe(create(timm, name, pretrained=False), random_weights=True)


def pretrained_network(name: str) -> LoadedNetwork:
    """The named network with its published weights, from the local cache or from the hub.

    Raises
    ------
    SourceError
        timm has no network of that name, it has no published weights, or they cannot be fetched.
    """
    timm = import_timm()
    module = create(timm, name, pretrained=False)
    repository = module.pretrained_cfg.get("hf_hub_id")
    if not repository:
        raise SourceError(
            f"timm has no published weights for {name!r}; give a file (--source checkpoint:FILE), "
            "or export the untrained network with --random-weights"
        )
    _require_weights(name, repository)
    try:
        module = create(timm, name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise _out_of_reach(name, error) from error
    tag = f"{module.pretrained_cfg['architecture']}.{module.pretrained_cfg['tag']}"
    return describe(module, random_weights=False, expected_top1=PUBLISHED_TOP1.get(tag))


def create(timm: ModuleType, name: str, *, pretrained: bool, **options: Any) -> Any:
    """Build timm's network of that name, in evaluation mode.

    Raises
    ------
    SourceError
        timm has no network of that name; the message names close ones.
    """
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise SourceError(f"timm has no network {name!r}{hint}")
    return timm.create_model(name, pretrained=pretrained, **options).eval()


def _require_weights(name: str, repository: str) -> None:
    """Fail soon where the hub cannot be reached: its client would retry for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # the client's HTTP library is not ours to choose, nor its errors
        raise _out_of_reach(name, error) from error


def _out_of_reach(name: str, error: Exception) -> SourceError:
    reason = one_line(error, limit=200)
    return SourceError(
        f"the pretrained weights of {name} cannot be fetched from the model hub ({reason}); "
        "download them elsewhere and give --source checkpoint:FILE, "
        "or export the untrained network with --random-weights"
    )


def describe(
    module: Any, *, random_weights: bool, expected_top1: float | None = None
) -> LoadedNetwork:
    """What timm knows of one of its networks; labels only for ImageNet-1k's 1,000 classes."""
    from timm.data import ImageNetInfo

    config = module.pretrained_cfg
    labels: list[str] | None = None
    class_ids: list[str] | None = None
    if module.num_classes == 1000:
        information = ImageNetInfo("imagenet-1k")
        labels = list(information.label_descriptions())
        class_ids = information.label_names()
    license_ = "none: random weights" if random_weights else config.get("license") or "not stated"
    return LoadedNetwork(
        module=module,
        preprocessing=Preprocessing(
            input_size=config["input_size"][1:],
            crop_fraction=config["crop_pct"],
            interpolation=config["interpolation"],
            crop_mode=config.get("crop_mode") or "center",
            mean=config["mean"],
            std=config["std"],
        ),
        license=license_,
        classes=module.num_classes,
        labels=labels,
        class_ids=class_ids,
        expected_top1=expected_top1,
        random_weights=random_weights,
    )
