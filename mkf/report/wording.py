"""What the figures show, in sentences; every one is computed from what it speaks of."""

from __future__ import annotations

from collections.abc import Sequence

from mkf.ladder_results import Ladder, Rung
from mkf.report.discovered import Discovered
from mkf.report.figures import SIGMA
from mkf.report.numbers import percent
from mkf.report.study import KeyPair, Study, WorstFilter

ENOUGH = 0.99  # share of the baseline's top-1 that a rung is to keep


def keys(pairs: Sequence[KeyPair]) -> str:
    """Which key its model misses most, which it meets best."""
    far, near = (choose(pairs, key=lambda pair: pair.cosine) for choose in (min, max))
    return (
        f"Key {far.fit.key} ({far.operator}) is missed most: the cosine between the learned key "
        f"and its model is {far.cosine:.3f}. Key {near.fit.key} ({near.operator}) is met best, "
        f"with {near.cosine:.3f}."
    )


def methods(study: Study) -> str:
    """Where the methods disagree most and least."""
    found = study.fits_by_method
    spans = {}
    for place, fit in enumerate(study.fits):
        for axis in "xy":
            scales = [getattr(fits[place], f"sigma_{axis}") for fits in found.values()]
            spans[fit.key, axis] = (min(scales), max(scales))
    (key, axis), (low, high) = max(spans.items(), key=lambda item: item[1][1] - item[1][0])
    (calm, calm_axis), (least, most) = min(spans.items(), key=lambda item: item[1][1] - item[1][0])
    return (
        f"The methods differ most about {SIGMA}{axis} of key {key}: from {low:.3f} to {high:.3f} "
        f"pixels. They agree best about {SIGMA}{calm_axis} of key {calm}: {least:.3f} to "
        f"{most:.3f}."
    )


def layers(study: Study) -> str:
    """What the filters keep, where least and most, and which key is taken most and least."""
    counts = study.counts()
    common, rare = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
    total = study.filters
    text = (
        f"With one key each, the {total:,} filters keep {percent(study.kept, 1)} of their "
        f"variance. Key {common} is taken most often ({counts[common]:,} filters, "
        f"{percent(counts[common] / total)}), key {rare} least often ({counts[rare]:,}, "
        f"{percent(counts[rare] / total)})."
    )
    if len(study.layers) > 1:
        low = min(study.layers, key=lambda layer: layer.kept)
        high = max(study.layers, key=lambda layer: layer.kept)
        text += (
            f" {low.name} keeps least ({percent(low.kept)}), "
            f"{high.name} most ({percent(high.kept)})."
        )
    return text


def worst(filters: Sequence[WorstFilter]) -> str:
    """How the filters were chosen, and how much of the loss is theirs."""
    if not filters:
        return "Every filter is kept whole."
    share = sum(one.share_of_loss for one in filters)
    return (
        f"The {len(filters)} filters that lose most: of all variance that the network's filters "
        f"lose, these carry {percent(share, 1)}. A filter that keeps little of a small variance "
        "costs little and is not among them. Learned, idealized and difference of one filter share "
        "a scale of color, from minus to plus the largest of their absolute values."
    )


def ladder(found: Ladder) -> str:
    """The shortest rung that keeps enough of the baseline's accuracy."""
    rung = found.enough(ENOUGH)
    if rung is None:
        best = max(found.rungs, key=lambda one: one.top1)
        return (
            f"No rung keeps {percent(ENOUGH)} of the learned network's top-1. The best is "
            f"\N{LEFT DOUBLE QUOTATION MARK}{best.label}\N{RIGHT DOUBLE QUOTATION MARK} with "
            f"{_kept(best)}."
        )
    return (
        f"The rung of fewest numbers that keeps {percent(ENOUGH)} of the learned network's top-1 "
        "is "
        f"\N{LEFT DOUBLE QUOTATION MARK}{rung.label}\N{RIGHT DOUBLE QUOTATION MARK}: {_kept(rung)}."
    )


def _kept(rung: Rung) -> str:
    return (
        f"{rung.numbers_per_filter:.3g} free numbers a filter, {percent(rung.top1, 2)} top-1, "
        f"{percent(rung.share_of_baseline, 1)} of the learned network's"
    )


def discovered(found: Discovered) -> str:
    """How many keys were found, and which of them is taken most."""
    common = max(found.keys, key=lambda key: key.share)
    named = sum(key.well for key in found.keys)
    return (
        f"{len(found.keys)} keys were found in {found.filters:,} filters of "
        f"{', '.join(found.sources)}; an operator fits {named} of them well. Key {common.key} "
        f"({common.name}) is taken most often, by {percent(common.share)} "
        "of the filters."
    )
