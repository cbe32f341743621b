"""docs/growth.md says what was measured, of the deployment as it is."""

from __future__ import annotations

import json

from kubernetes_manifests import flags, one, render, server

from benchmarks.growth import names
from benchmarks.growth.page import (
    CORES_A_POD,
    FEWEST_SERVERS,
    PAGE,
    PUBLISHED_IMAGES_PER_SECOND,
    RESULTS,
    filled,
)


def test_the_page_has_the_measured_figures() -> None:
    page, results = PAGE.read_text(), json.loads(RESULTS.read_text())
    assert filled(page, results) == page
    other = json.loads(RESULTS.read_text())
    other["decode"]["cpu_ms"] *= 2
    assert filled(page, other) != page


def test_the_page_is_about_this_deployment() -> None:
    page, objects = PAGE.read_text(), render("gpu")
    assert f"{PUBLISHED_IMAGES_PER_SECOND:,.0f} images a second" in page
    assert int(flags(objects)["grpc-max-connection-age"]) == 1000 * names.CONNECTION_AGE_SECONDS
    scaler = one(objects, "HorizontalPodAutoscaler", "triton")["spec"]
    assert scaler["minReplicas"] == FEWEST_SERVERS
    assert scaler["maxReplicas"] == names.SERVERS
    waiting, busy = (metric["pods"]["target"]["averageValue"] for metric in scaler["metrics"])
    assert f"more than {waiting} requests" in page
    assert busy == "700m"
    resources = server(objects, "classification")["resources"]
    load = one(objects, "HorizontalPodAutoscaler", "classification")["spec"]["metrics"][0]
    percent = load["resource"]["target"]["averageUtilization"]
    assert int(resources["requests"]["cpu"]) * percent / 100 == CORES_A_POD
