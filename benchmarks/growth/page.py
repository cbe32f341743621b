"""The figures of docs/growth.md, worked out from what was measured, between marks in the page."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
PAGE = ROOT / "docs" / "growth.md"
BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# ConvNeXt V2 Tiny at 224 x 224 on one NVIDIA RTX 4090: PyTorch 2.4, AMP, channels last, batch 512;
# timm, results/benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv. Published, not measured here.
PUBLISHED_IMAGES_PER_SECOND = 2107.29
GPUS = (1, 10, 100)
LINKS_GBIT = (10, 25, 100)
CORES_A_POD = 1.4  # of its 2, at which the autoscaler adds pods: deploy/kubernetes/base
FEWEST_SERVERS = 2  # that the autoscaler leaves


def write_page(results: dict[str, Any]) -> None:
    """Put the figures into the page."""
    PAGE.write_text(filled(PAGE.read_text(), results))


def filled(page: str, results: dict[str, Any]) -> str:
    """The page with these figures; the marks stay."""
    blocks = {
        "measured": measured(results),
        "network": network(results),
        "growth": growth(results),
        "evaluation": evaluation(results),
        "names": names(results),
    }
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}\n{match[3]}", page)


def measured(results: dict[str, Any]) -> str:
    """What was measured, and on what."""
    environment, asking, runs = (results[key] for key in ("environment", "client", "evaluation"))
    known, new = results["names"], results["new_server"]
    photo_kb = results["decode"]["jpeg_bytes"] / 1000
    rows = [
        ("a photo on the wire, as pixels in a request", f"{_bytes_an_image(results):,.0f} bytes"),
        ("a photo, JPEG to pixels", f"{results['decode']['cpu_ms']:.1f} ms of a core"),
        *(
            (
                f"asking Triton, an image of a request of {batch}",
                f"{asking[batch]['cpu_ms_an_image']:.2f} ms of a core",
            )
            for batch in asking
        ),
        (
            "classifying a photo: gRPC, decoding, asking, ranking",
            f"{results['service']['cpu_ms_an_image']:.1f} ms of a core",
        ),
        *(
            (
                f"an evaluation in batches of {batch}, models that answer at once",
                f"{runs[batch]['images_per_second']:,.0f} images a second",
            )
            for batch in runs
        ),
        *(
            (f"recording a batch of {batch}", f"{runs[batch]['record_ms_a_batch']:.1f} ms")
            for batch in runs
        ),
        (
            f"{known['servers']} servers behind one name: all are asked within",
            f"{known['seconds']:.1f} s",
        ),
        (
            f"a new server's first request, connections of {new['connection_age_seconds']} s",
            _after(new["seconds"], new["patience_seconds"]),
        ),
        (
            "the same, connections without an end",
            _after(new["seconds_without_age"], new["patience_seconds"]),
        ),
    ]
    return "\n".join(
        [
            f"{environment['date']}, {environment['cpus']} cores ({environment['machine']}), load "
            f"{environment['load_before']} before; photos of 500 x 375 pixels, "
            f"{photo_kb:,.0f} kB as JPEG.",
            "",
            "| what | measured |",
            "|---|---:|",
            *(f"| {what} | {figure} |" for what, figure in rows),
        ]
    )


def network(results: dict[str, Any]) -> str:
    """What one GPU takes off the wire, and how many GPUs a link feeds."""
    size, rate = _bytes_an_image(results), PUBLISHED_IMAGES_PER_SECOND
    gbit = rate * size * 8 / 1e9
    links = ", ".join(f"{link} Gbit/s feed {int(link / gbit)}" for link in LINKS_GBIT)
    return _paragraph(
        f"{rate:,.0f} images a second x {size:,.0f} bytes x 8 = {gbit:.2f} Gbit/s for each GPU. Of "
        f"links, {links} GPUs."
    )


def growth(results: dict[str, Any]) -> str:
    """Table: what so many GPUs ask of everything else."""
    ms, size = results["service"]["cpu_ms_an_image"], _bytes_an_image(results)
    lines = [
        "| GPUs | images a second | pixels, Gbit/s | cores that classify | of these, decoding | "
        "pods | connections |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for gpus in GPUS:
        rate = gpus * PUBLISHED_IMAGES_PER_SECOND
        cores = rate * ms / 1000
        pods = math.ceil(cores / CORES_A_POD)
        lines.append(
            f"| {gpus} | {rate:,.0f} | {rate * size * 8 / 1e9:,.1f} | {cores:,.0f} | "
            f"{rate * results['decode']['cpu_ms'] / 1000:,.0f} | {pods:,} | {pods * gpus:,} |"
        )
    return "\n".join(lines)


def evaluation(results: dict[str, Any]) -> str:
    """How much of a GPU one run uses."""
    batch, run = max(results["evaluation"].items(), key=lambda item: item[1]["images_per_second"])
    rate = run["images_per_second"]
    cores = PUBLISHED_IMAGES_PER_SECOND / 2 * run["cpu_ms_an_image"] / 1000
    share = 2 * rate / PUBLISHED_IMAGES_PER_SECOND
    records = 1000 * int(batch) / run["record_ms_a_batch"]
    return _paragraph(
        f"At best {rate:,.0f} images a second here, in batches of {batch}, if the models took no "
        f"time: two passes an image, so 2 x {rate:,.0f} / {PUBLISHED_IMAGES_PER_SECOND:,.0f} = "
        f"{share:.0%} of one GPU. To feed a whole GPU ({PUBLISHED_IMAGES_PER_SECOND / 2:,.0f} "
        f"images a second through both models) a run would need {cores:.1f} cores at "
        f"{run['cpu_ms_an_image']:.1f} ms an image. Recording is no limit: "
        f"{batch} images in {run['record_ms_a_batch']:.1f} ms are {records:,.0f} images a second."
    )


def names(results: dict[str, Any]) -> str:
    """How often a client asks the DNS, and what for."""
    known, age = results["names"], results["new_server"]["connection_age_seconds"]
    most = known["servers"]
    return _paragraph(
        f"A client's connections end every {age} s: with {FEWEST_SERVERS} servers it asks the DNS "
        f"every {age / FEWEST_SERVERS:.0f} s, with {most} it would every {age / most:.1f} s, and "
        f"does once a second, which the engine sets as the shortest pause. The answer for {most} "
        f"servers has {known['answer_bytes']:,} bytes: too many for UDP, so that it is asked for "
        f"again over TCP (here {known['questions']['udp']} questions over UDP, "
        f"{known['questions']['tcp']} over TCP).",
        indent="   ",
    )


def _paragraph(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)


def _bytes_an_image(results: dict[str, Any]) -> float:
    """Of pixels in a request; the largest is the least favorable by less than a thousandth."""
    return max(entry["request_bytes"] / int(batch) for batch, entry in results["wire"].items())


def _after(seconds: float | None, patience: float) -> str:
    return f"not within {patience} s" if seconds is None else f"after {seconds:.0f} s"
