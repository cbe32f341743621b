"""The served networks as torch modules, made from their source without the served graph."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mkf.demo import DIRECTORY
from mkf.errors import InputError, MissingExtraError, SourceError
from mkf.idealization import Choice, idealizer
from mkf.keys import load_keys
from mkf.networks import zoo
from services.inference.repository import Preprocessing, ServedModel

if TYPE_CHECKING:
    from torch import nn

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (n, h, w, 3) -> logits


def torch_networks(
    models: Mapping[str, ServedModel], source: str | None
) -> tuple[dict[str, Network], dict[str, str]]:
    """The models that torch can run, and why it cannot run the others.

    Parameters
    ----------
    source
        demo, timm:NAME or checkpoint:FILE; None takes what the manifests name.

    Raises
    ------
    InputError, SourceError
        The source that was given is another, or cannot be loaded.
    """
    networks: dict[str, Network] = {}
    reasons: dict[str, str] = {}
    for name, model in models.items():
        given = source or model.manifest.source
        if source is None and model.manifest.random_weights:
            reasons[name] = "its weights are random, and its source has them not"
            continue
        if source is None and given.partition(":")[0] not in ("demo", "timm", "checkpoint"):
            reasons[name] = f"its source, {given}, is none that torch can run; name one: --source"
            continue
        try:
            module = _module(model, given)
        except (MissingExtraError, SourceError, InputError) as error:
            if source is not None and not isinstance(error, MissingExtraError):
                raise  # what was asked for is told
            module = str(error)
        if isinstance(module, str):
            reasons[name] = module
        else:
            networks[name] = _network(module, model.preprocessing)
    return networks, reasons


def _module(model: ServedModel, source: str) -> nn.Module | str:
    """The network, or why there is none."""
    if model.manifest.role == "baseline":
        return _baseline(source)
    record: dict[str, Any] = json.loads((model.graph.parent / "manifest.json").read_bytes())
    fit = model.manifest.fit
    if record.get("trained"):
        if source == "demo":
            return _demo("idealized")
        return "its weights were trained around its filters, and the source has them not"
    if fit is None or fit.calibration is not None:
        return "its filters were refitted to activations, which the source alone does not tell"
    if not np.array_equal(model.manifest.learned_keys or [], load_keys()):
        return "its filters were fitted to other keys than the published ones"
    return _idealized(
        _baseline(source),
        Choice(method=fit.method, scales=fit.scales, boundary=fit.boundary, terms=fit.terms),
    )


def _baseline(source: str) -> nn.Module:
    scheme, _, place = source.partition(":")
    if source == "demo":
        return _demo("baseline")
    if scheme == "timm" and place:
        return zoo.pretrained_network(place).module
    if scheme == "checkpoint" and place:
        from mkf.networks.checkpoints import checkpoint_network

        return checkpoint_network(Path(place), architecture=None).module
    raise InputError(f"torch cannot run {source!r}; use demo, timm:NAME or checkpoint:FILE")


def _demo(name: str) -> nn.Module:
    zoo.import_timm()
    from safetensors.torch import load_file

    from mkf.demo.architecture import create_network

    network = create_network()
    network.load_state_dict(load_file(DIRECTORY / f"{name}.safetensors"))
    return network.eval()


def _idealized(network: nn.Module, choice: Choice) -> nn.Module:
    import torch

    from mkf.networks.torch_module import depthwise_convolutions

    network, idealize = copy.deepcopy(network), idealizer(choice)
    for _, layer in depthwise_convolutions(network):
        learned = layer.weight.detach().numpy()[:, 0].astype(np.float64)  # (n, k, k)
        filters = torch.from_numpy(idealize(learned).idealized()[:, None])
        with torch.no_grad():
            layer.weight.copy_(filters)
    return network


def _network(module: nn.Module, preprocessing: Preprocessing) -> Network:
    """Pixels scaled and normalized in torch, as timm's transform does it."""
    import torch

    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255  # (n, 3, h, w)
            logits: NDArray[np.float32] = module((images - mean) / std).numpy()
        return logits

    return run
