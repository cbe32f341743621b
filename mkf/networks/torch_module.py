"""Depthwise filters in torch modules, and their way to ONNX (extra `train`)."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import onnx

from mkf.errors import MissingExtraError
from mkf.repository import OPSET

if TYPE_CHECKING:
    from torch import Tensor, nn


def depthwise_convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """The 2-d convolutions of one input channel a filter, above 1x1, with their names."""
    from torch import nn

    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and max(module.kernel_size) > 1
    ]


def to_onnx(network: nn.Module, input_size: tuple[int, int]) -> onnx.ModelProto:
    """The network's graph at opset 20: float32 (batch, 3, height, width) -> (batch, classes).

    Raises
    ------
    MissingExtraError
        onnxscript, which torch's exporter needs, is not installed.
    """
    import torch

    module = _with_plain_pooling(network).eval()
    example = torch.zeros(2, 3, *input_size)  # a batch of 1 would be taken for a constant
    try:
        with warnings.catch_warnings():
            # The exporter uses what torch itself has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except ImportError as error:
        raise MissingExtraError(
            f"torch's ONNX exporter needs onnxscript ({error}); "
            "install it with: pip install 'mkf[train]'"
        ) from error
    if program is None:
        raise TypeError("torch.onnx.export gave no program")
    model: onnx.ModelProto = program.model_proto
    _strip_traces(model.graph)
    return model


def _strip_traces(graph: onnx.GraphProto) -> None:
    """Take out where in whose files each node was traced: no one's business, and half the size."""
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.ClearField("doc_string")


def _with_plain_pooling(network: nn.Module) -> nn.Module:
    """A copy whose global average pools are means: the exporter makes gathers of the others."""
    from torch import nn

    class GlobalMean(nn.Module):
        def forward(self, features: Tensor) -> Tensor:  # (n, c, h, w) -> (n, c, 1, 1)
            return features.mean((2, 3), keepdim=True)

    plain = copy.deepcopy(network)
    for parent in list(plain.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, GlobalMean())
    return plain
