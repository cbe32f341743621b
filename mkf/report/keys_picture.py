"""The 8 keys beside their models in one PNG: `python -m mkf.report.keys_picture docs/keys.png`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkf.fitting import fit_keys
from mkf.keys import load_keys
from mkf.report.drawing import SOFT, draw_color_bar, draw_kernels, draw_png, row_height
from mkf.report.figures import color_limit, key_panels, scales_text
from mkf.report.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

WIDTH, COLUMNS = 800, 2  # CSS pixels across, keys side by side
_TITLE, _BAR = 40, 48  # heights in CSS pixels


def keys_picture(study: Study) -> bytes:
    """The PNG: each key as learned, idealized, and their difference, all on one scale of color."""
    across = WIDTH / COLUMNS
    down = _TITLE + row_height(3, across) + 6
    height = down * -(-len(study.pairs) // COLUMNS) + _BAR
    limit = color_limit(study.pairs)

    def draw(canvas: Canvas) -> None:
        def write(x: float, y: float, text: str, **style: str) -> None:
            canvas.text(x / WIDTH, 1 - y / height, text, va="top", **style)  # type: ignore[arg-type]

        for place, pair in enumerate(study.pairs):
            left, top = across * (place % COLUMNS), down * (place // COLUMNS)
            write(left + 8, top + 6, f"Key {pair.fit.key}: {pair.operator}", weight="bold")
            write(left + 8, top + 22, f"{scales_text(pair)}, cosine {pair.cosine:.3f}", color=SOFT)
            draw_kernels(
                canvas, key_panels(pair), limit, left=left, top=top + _TITLE - 4, width=across
            )
        draw_color_bar(canvas, limit, left=WIDTH / 4, top=height - _BAR + 6, width=WIDTH / 2)

    return draw_png(height, draw, width=WIDTH)


def main() -> None:
    """Write the picture of the published keys and method B's models."""
    keys = load_keys()
    study = Study("B", "separate", "symmetric", keys, fit_keys(keys, method="B"), layers=[])
    Path(sys.argv[1]).write_bytes(keys_picture(study))


if __name__ == "__main__":
    main()
