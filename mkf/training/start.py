"""The networks of a retraining: the one that assigns keys, and the one that training starts from.

Both come from timm, from a file of weights or from the demo. A file may lack a classifier, as those
of ConvNeXt V2's masked autoencoder (FCMAE) do, and may have the names of timm, of ConvNeXt V2's own
code, or of its sparse encoder in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkf.demo import DIRECTORY, demo_preprocessing
from mkf.demo.architecture import create_network
from mkf.errors import InputError, SourceError, one_line
from mkf.networks import zoo
from mkf.networks.checkpoints import DEMO, read_weights
from mkf.repository import Preprocessing

HEAD_STD = 2e-5  # of a fresh classifier's weights (ConvNeXt V2, main_finetune.py)


@dataclass(frozen=True)
class Origin:
    """Where a network comes from: its architecture, and the weights that are known of it."""

    architecture: str  # timm's name, or "demo"
    weights: dict[str, Tensor]  # in the architecture's own names; the head's may be missing
    preprocessing: Preprocessing
    license: str


def find_origin(
    uri: str, *, architecture: str | None = None, random_weights: bool = False
) -> Origin:
    """Weights and architecture of `demo`, `timm:NAME` or `checkpoint:FILE`.

    Parameters
    ----------
    architecture
        timm's name of a file's network; found by names and shapes if not given, the head aside.
    random_weights
        Of a timm network take the architecture alone.

    Raises
    ------
    InputError
        The URI cannot be used, or the file cannot be read.
    SourceError
        The weights cannot be fetched, or fit no architecture.
    """
    scheme, _, rest = uri.partition(":")
    if random_weights and scheme != "timm":
        raise InputError(f"--random-weights goes with timm:NAME, not with {uri}")
    if uri == DEMO:
        weights = read_weights(DIRECTORY / "baseline.safetensors")
        return Origin(DEMO, weights, demo_preprocessing(), "Apache-2.0")
    if scheme == "timm" and rest:
        if random_weights:
            module = zoo.create(zoo.import_timm(), rest, pretrained=False)
            loaded = zoo.describe(module, random_weights=True)
            return Origin(rest, {}, loaded.preprocessing, loaded.license)
        loaded = zoo.pretrained_network(rest)
        return Origin(rest, loaded.module.state_dict(), loaded.preprocessing, loaded.license)
    if scheme == "checkpoint" and rest:
        return _from_file(Path(rest), architecture)
    raise InputError(f"unknown source {uri!r}; use demo, timm:NAME or checkpoint:FILE")


def build(
    origin: Origin, *, classes: int | None = None, drop_path: float = 0.0, seed: int = 0
) -> tuple[nn.Module, bool]:
    """The network in training mode, and whether its classifier is the origin's.

    A classifier of another number of classes, or none, is drawn afresh from `seed`.

    Parameters
    ----------
    classes
        Of the classifier; as many as the origin has if not given.
    drop_path
        Rate of the last block.

    Raises
    ------
    SourceError
        The origin's weights are not whole, or its architecture drops no paths.
    """
    torch.manual_seed(seed)
    network = _create(origin.architecture, classes or _classes(origin), drop_path)
    own = network.state_dict()
    head = _head(network, origin.architecture)
    fitting = {
        name: value
        for name, value in origin.weights.items()
        if name in own and value.shape == own[name].shape
    }
    missing = sorted(name for name in own.keys() - fitting.keys() if not name.startswith(head))
    if origin.weights and missing:
        raise SourceError(
            f"the weights have no {missing[0]} of {origin.architecture}'s shape; "
            "name another source"
        )
    network.load_state_dict(own | fitting)
    classifier = _classifier(network, origin.architecture)
    last = network.get_submodule(classifier)
    kept = all(f"{classifier}.{name}" in fitting for name in last.state_dict())
    if origin.weights and not kept:
        nn.init.trunc_normal_(last.get_parameter("weight"), std=HEAD_STD)
        nn.init.zeros_(last.get_parameter("bias"))
    return network.float().train(), kept


def _create(architecture: str, classes: int | None, drop_path: float) -> nn.Module:
    if architecture == DEMO:
        network: Any = create_network(drop_path_rate=drop_path)
        if classes and classes != network.num_classes:
            network.reset_classifier(classes)
    else:
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        if classes:
            options["num_classes"] = classes
        try:
            network = zoo.create(zoo.import_timm(), architecture, pretrained=False, **options)
        except TypeError as error:
            raise SourceError(
                f"{architecture} cannot be built to be trained so ({one_line(error)}); "
                "give --drop-path 0"
            ) from error
    module: nn.Module = network
    return module


def _from_file(path: Path, architecture: str | None) -> Origin:
    timm = zoo.import_timm()
    from timm.models import clean_state_dict
    from timm.models.convnext import checkpoint_filter_fn

    weights = _dense(clean_state_dict(read_weights(path)))
    published = any(".dwconv." in name for name in weights)  # the names of the papers' own code
    if not any(value.ndim == 4 and value.shape[1] == 1 for value in weights.values()):
        raise SourceError(f"{path} holds no depthwise filters; name the weights of another network")
    second = any(".grn." in name for name in weights)
    likely = sorted(timm.list_models("convnext*"), key=lambda name: ("v2" in name) != second)
    for name in [architecture] if architecture else [DEMO, *likely]:
        with torch.device("meta"):  # shapes without memory
            skeleton = _create(name, None, 0.0)
        try:
            renamed = checkpoint_filter_fn(weights, skeleton) if published else weights
        except (KeyError, RuntimeError):
            continue  # another architecture's
        head = _head(skeleton, name)
        if _trunk(renamed, head) != _trunk(skeleton.state_dict(), head):
            continue
        if name == DEMO:
            return Origin(name, renamed, demo_preprocessing(), "not stated")
        known = zoo.describe(skeleton, random_weights=False)
        license_ = f"not stated (timm's published weights of {name}: {known.license})"
        return Origin(name, renamed, known.preprocessing, license_)
    if architecture:
        raise SourceError(
            f"the weights of {path} do not have the names and shapes of {architecture}'s; "
            "name the network that they belong to"
        )
    raise SourceError(
        f"the weights of {path} fit no ConvNeXt that timm knows, nor the demo network; "
        "name the network that they belong to with --architecture NAME"
    )


def _dense(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A masked autoencoder's encoder as a network of its own; others as they are.

    While it is trained, ConvNeXt V2's masked autoencoder keeps the encoder under a prefix, wraps
    norms and linear layers, and stores convolutions as (k * k, ...), columns first.
    """
    if not any(name.startswith("encoder.") for name in weights):
        return weights
    dense = {}
    for name, value in weights.items():
        if not name.startswith("encoder."):
            continue  # decoder, projection, mask token
        plain = name.removeprefix("encoder.").replace(".ln.", ".").replace(".linear.", ".")
        if plain.endswith(".kernel"):
            k = math.isqrt(len(value))
            value = value.unflatten(0, (k, k))  # (x, y, in, out), or (x, y, channels)
            if value.ndim == 3:
                value = value[:, :, None]
            value = value.permute(3, 2, 1, 0)
            plain = plain.removesuffix("kernel") + "weight"
        elif plain.endswith(".bias"):
            value = value.flatten()
        dense[plain] = value.contiguous()
    return dense


def _trunk(weights: dict[str, Tensor], head: str) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape) for name, value in weights.items() if not name.startswith(head)
    }


def _classifier(network: nn.Module, architecture: str) -> str:
    """The name of the last linear layer."""
    if architecture == DEMO:
        return "head.fc"
    name: Any = network.pretrained_cfg.get("classifier")  # type: ignore[union-attr,operator]
    if not isinstance(name, str):
        raise SourceError(f"{architecture} has no classifier of its own; name a network that has")
    return name


def _head(network: nn.Module, architecture: str) -> str:
    """What the names of the head's weights begin with: its norm's too, which FCMAE lacks."""
    return _classifier(network, architecture).split(".")[0] + "."


def _classes(origin: Origin) -> int | None:
    """How many classes the origin's own classifier has, where it has one."""
    if not origin.weights:
        return None
    with torch.device("meta"):
        skeleton = _create(origin.architecture, None, 0.0)
    weight = origin.weights.get(f"{_classifier(skeleton, origin.architecture)}.weight")
    return None if weight is None else len(weight)
