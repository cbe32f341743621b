"""The demo network's model card: its figures as JSON, and as a page to read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

_PAGE = """# The demo network and its idealized sibling

Two small ConvNeXt V2 networks (timm's class; {parameters:,} parameters, dims {dims}, depths
{depths}, stem of 2) for 32x32 images of Fashion-MNIST's 10 classes. They are mkf's embedded
default: small enough to be committed, real enough to be compared.

| network | depthwise filters | test top-1 | 95 % interval (Wilson) |
|---|---|---|---|
| baseline | learned | {baseline} |
| idealized | method {method}, separate scales, frozen; the rest trained around them | {idealized} |
| substituted | the same filters put into the trained baseline, nothing trained | {substituted} |

Measured by torch on the {images:,} test images. None of them was used for training, and the last
epoch's weights are kept, not the best; but the recipe was settled after an earlier one's accuracy
on these images had been seen. `make eval` measures the served graphs. The third row is not served;
it shows what the training around the filters is worth.

## Protocol

The published one in small (Babaiee et al. 2025; Lindeberg et al. 2026, section 5). The baseline is
trained from a fresh start. Each of its {filters} depthwise filters y is assigned the key f that
keeps most of it, and a f + b is put into the same fresh start and frozen. Everything else is
trained with the same recipe, seed and budget:

```json
{recipe}
```

| key | {key_header} |
|---|{key_rule}|
| filters | {key_counts} |

The keys keep {kept:.1%} of the variance of the baseline's filters. That is little: the training is
short, and in the last stage, of 2x2 pixels, 40 of a filter's 49 taps never see an image.

AdamW, one-cycle cosine schedule, random crops and mirroring. Test images of 28x28 pixels are
resized to 32x32 (bicubic), as the services do. Environment: {environment}. The logs of both runs
are in [logs](logs). `make demo-network` repeats all of it, from a seed.

## License and limits

Weights and graphs: Apache-2.0, as the project. Data: Fashion-MNIST (Zalando SE, MIT license; see
[fashion_mnist/LICENSE](fashion_mnist/LICENSE)). The networks show the road from training to a
served comparison; one seed, one dataset and a small network say little about ImageNet.
"""


def write_card(figures: dict[str, Any], directory: Path) -> None:
    """Write `card.json`, which the export reads, and `README.md`."""
    figures = figures | {"recipe": asdict(figures["recipe"])}
    (directory / "card.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    idealization = figures["idealization"]
    page = _PAGE.format(
        parameters=figures["parameters"],
        dims=", ".join(map(str, figures["dims"])),
        depths=", ".join(map(str, figures["depths"])),
        baseline=_row(figures["baseline"]),
        idealized=_row(figures["idealized"]),
        substituted=_row(figures["substituted"]),
        method=figures["method"],
        images=figures["baseline"]["test_images"],
        filters=idealization["filters"],
        kept=idealization["kept"],
        key_header=" | ".join(idealization["keys"]),
        key_rule="---|" * (len(idealization["keys"]) - 1) + "---",
        key_counts=" | ".join(map(str, idealization["keys"].values())),
        recipe=json.dumps(figures["recipe"], indent=2),
        environment=", ".join(f"{name} {value}" for name, value in figures["environment"].items()),
    )
    (directory / "README.md").write_text(page, encoding="utf-8")


def _row(accuracy: dict[str, Any]) -> str:
    low, high = accuracy["test_top1_interval"]
    return f"{accuracy['test_top1']:.2%} | {low:.2%} to {high:.2%}"
