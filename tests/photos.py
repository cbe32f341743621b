"""Where real ImageNet photos are, for the tests that skip without them."""

from __future__ import annotations

import os
from pathlib import Path

PHOTOS = Path(
    os.environ.get("MKF_IMAGENET_DIR")
    or Path(__file__).parents[2] / "shared" / "data" / "imagenet_val_1300"
)
