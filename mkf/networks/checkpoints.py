"""Networks from files of weights: whose architecture they are, nothing run (extra `train`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mkf.demo import CLASSES, demo_preprocessing
from mkf.demo.architecture import create_network
from mkf.errors import InputError, SourceError
from mkf.networks.zoo import LoadedNetwork, create, describe, import_timm

if TYPE_CHECKING:
    from torch import Tensor

DEMO = "demo"  # stands among timm's names for the demo's architecture


def checkpoint_network(path: Path, *, architecture: str | None) -> LoadedNetwork:
    """A network from a safetensors or torch file of weights; pickled code is never run.

    Without `architecture` (timm's name) it is the first of timm's ConvNeXt networks, or the demo's,
    whose weights have the file's names and shapes.

    Raises
    ------
    InputError
        The file cannot be read, or holds no weights.
    SourceError
        The weights do not fit the architecture, or no known architecture.
    """
    timm = import_timm()
    weights = read_weights(path)
    candidates = [architecture] if architecture else [*timm.list_models("convnext*"), DEMO]
    found = _matching(timm, weights, candidates)
    if found is None:
        if architecture:
            raise SourceError(
                f"the weights of {path} do not have the names and shapes of {architecture}'s; "
                "name the network that they belong to"
            )
        raise SourceError(
            f"the weights of {path} fit no ConvNeXt that timm knows, nor the demo network; "
            "name the network that they belong to with --architecture NAME"
        )
    name, module = found
    module.float()
    if name != DEMO:
        known = describe(module, random_weights=False)
        license_ = f"not stated (timm's published weights of {name}: {known.license})"
        return replace(known, license=license_)
    return LoadedNetwork(
        module=module,
        preprocessing=demo_preprocessing(),
        license="not stated",
        classes=len(CLASSES),
        labels=list(CLASSES),
        class_ids=None,
        expected_top1=None,
        random_weights=False,
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, under the names they have there.

    Raises
    ------
    InputError
        The file cannot be read, holds no weights, or weights that are not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"the checkpoint {path} is not there")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file: {error}") from error
    except Exception as error:  # torch raises a dozen unrelated kinds for a broken file
        first = str(error).strip().splitlines()[0][:200]
        reason = Text.from_ansi(first).plain  # torch prints in bold
        raise InputError(
            f"{path} is no file of weights that can be read without running its code ({reason}); "
            "save the state dict alone, best as safetensors"
        ) from error
    for key in ("model_ema", "state_dict_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no state dict; save network.state_dict()")
    if any(not bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise InputError(f"{path} holds weights that are not finite; the training went wrong")
    return tensors


def _matching(
    timm: ModuleType, weights: dict[str, Tensor], candidates: list[str]
) -> tuple[str, Any] | None:
    """The first architecture that has the weights' names and shapes, with them in it."""
    import torch
    from timm.models import clean_state_dict
    from timm.models.convnext import checkpoint_filter_fn

    weights = clean_state_dict(weights)  # without a "module." before each name
    published = any(".dwconv." in name for name in weights)  # the names of the papers' own code

    def build(name: str) -> Any:
        if name == DEMO:
            return create_network().eval()
        module = create(timm, name, pretrained=False)
        heads = (f"{module.pretrained_cfg.get('classifier')}.weight", "head.weight")
        classes = [len(weights[head]) for head in heads if head in weights]
        if not classes or classes[0] == module.num_classes:
            return module
        return create(timm, name, pretrained=False, num_classes=classes[0])

    for name in candidates:
        with torch.device("meta"):  # shapes without memory
            skeleton = build(name)
        try:
            renamed = checkpoint_filter_fn(weights, skeleton) if published else weights
        except (KeyError, RuntimeError):
            continue  # another architecture's
        if _shapes(renamed) == _shapes(skeleton.state_dict()):
            module = build(name)
            module.load_state_dict(renamed)
            return name, module
    return None


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}
