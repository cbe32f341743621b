"""What is said of found keys: `mkf discover`'s JSON, and what `mkf report` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mkf.discovery import FilterSet, filters_by_key
from mkf.key_search import Found
from mkf.keys import COUNT
from mkf.naming import best, name_key, one_to_one
from mkf.networks.filter_collection import FilterLayer


def described(filters: FilterSet, layers: Sequence[FilterLayer], found: Found) -> dict[str, Any]:
    """Keys, curve and filters, ready for JSON.

    8 keys are numbered so that key n goes with operator n, since that is what other commands take
    the keys of a file to be: one to one, with the greatest sum of cosines. Others are numbered by
    falling share of filters.

    Returns
    -------
    dict
        `size`, `filters`, `count`; `keys`, each with `key`, the operator that fits best (`operator`
        as a formula, `operator_key` as a number 1-8, `sigma_x`, `sigma_y`, `gamma`, `cosine`, and
        whether that is `well`), `own_cosine` and `own_well` with the operator of the key's number
        (None unless there are 8), `filters` and `share` of those it explains best, `kept` of their
        variance on average (None if there are none), `kernel` (k x k, zero mean, unit norm, turned
        toward its operator); `kept` of all; `cost` (`reconstruction` or `top1_error`), `costs` by
        `count`, `elbow`, `top1`; `left_out`.
    """
    keys = _keys(filters, found)
    return {
        "size": filters.size,
        "filters": len(filters.lines),
        "count": len(keys),
        "kept": sum(key["share"] * key["kept"] for key in keys if key["filters"]),
        "keys": keys,
        "cost": found.cost,
        "costs": [{"count": n, "cost": cost} for n, cost in enumerate(found.costs, start=1)],
        "elbow": found.elbow,
        "top1": found.top1,
        "left_out": {
            "constant": filters.dead,
            "sizes": {str(size): number for size, number in filters.other_sizes.items()},
            "layers": [
                {"source": layer.source, "name": layer.name, "reason": layer.left_out}
                for layer in layers
                if layer.left_out
            ],
        },
    }


def _keys(filters: FilterSet, found: Found) -> list[dict[str, Any]]:
    shapes = found.lines.reshape(-1, filters.size, filters.size)
    names = [name_key(kernel) for kernel in shapes]
    counts, kept = filters_by_key(filters.lines, found.lines)
    if len(shapes) == COUNT:
        order = one_to_one(names)
    else:
        order = sorted(range(len(shapes)), key=lambda i: -counts[i])
    keys = []
    for key, i in enumerate(order, start=1):
        name = best(names[i])
        own = names[i][key - 1] if len(shapes) == COUNT else None
        keys.append(
            {
                "key": key,
                "operator": name.operator,
                "operator_key": name.key,
                "cosine": name.cosine,
                "well": name.well,
                "own_cosine": own and own.cosine,
                "own_well": own and own.well,
                "sigma_x": name.sigma_x,
                "sigma_y": name.sigma_y,
                "gamma": name.gamma,
                "filters": counts[i],
                "share": counts[i] / len(filters.lines),
                "kept": kept[i],
                "kernel": (shapes[i] * (own or name).sign).tolist(),
            }
        )
    return keys
