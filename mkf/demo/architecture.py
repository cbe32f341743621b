"""The demo network: timm's ConvNeXt V2 in small, for 32x32 images and 10 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkf.networks.zoo import import_timm

if TYPE_CHECKING:
    from torch import nn

DIMS = (24, 48, 96, 192)  # channels of the four stages
DEPTHS = (1, 2, 2, 1)  # blocks of the four stages


def create_network(*, drop_path_rate: float = 0.0) -> nn.Module:
    """The untrained network: float32 (N, 3, 32, 32), normalized -> float32 logits (N, 10).

    Weights are drawn from torch's global generator; seed it first for a reproducible start.

    Raises
    ------
    MissingExtraError
        torch or timm is not installed.
    """
    import_timm()
    from timm.models.convnext import ConvNeXt
    from torch import nn

    network = ConvNeXt(
        in_chans=3,
        num_classes=10,
        dims=DIMS,
        depths=DEPTHS,
        patch_size=2,
        use_grn=True,  # V2: global response normalization instead of layer scale
        ls_init_value=None,
        drop_path_rate=drop_path_rate,
    )
    # timm adds a step of 2 in stage 0 when the stem's is 2; a true stem of 2 keeps 16x16 there.
    network.stages[0].downsample = nn.Identity()
    return network
