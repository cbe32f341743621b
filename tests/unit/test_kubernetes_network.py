"""The network policies of deploy/kubernetes, worked out: who reaches whom, on which port."""

from __future__ import annotations

import pytest
from kubernetes_manifests import (
    OVERLAYS,
    Object,
    of_kind,
    pods,
    port_number,
    render,
    selects,
    server,
)

PLACES = {
    "prometheus": ({"kubernetes.io/metadata.name": "monitoring"}, {}),
    "a client": ({"kubernetes.io/metadata.name": "shop", "mkf-client": "true"}, {}),
    "a stranger": ({"kubernetes.io/metadata.name": "shop"}, {}),
    "dns": ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"}),
    "kube-proxy": ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-proxy"}),
}
NEEDED = {
    *(("classification", "triton", "TCP", 8001), ("evaluation", "triton", "TCP", 8001)),
    *(("a client", "classification", "TCP", 50051), ("a client", "evaluation", "TCP", 50052)),
    ("evaluation-client", "evaluation", "TCP", 50052),
    *(("prometheus", name, "TCP", 9464) for name in ("classification", "evaluation")),
    ("prometheus", "triton", "TCP", 8002),
    *(
        (name, "dns", protocol, 53)
        for name in ("classification", "evaluation", "evaluation-client")
        for protocol in ("TCP", "UDP")
    ),
}
DOWNLOADS = {("export", "dns", protocol, 53) for protocol in ("TCP", "UDP")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_lets_through_what_is_needed_and_nothing_else(overlay: str) -> None:
    objects = render(overlay)
    ends = [*pods(objects), *PLACES]
    ports = {("TCP", port) for port in (53, 443, 8000, 8001, 8002, 9464, 50051, 50052)}
    open_edges = {
        (source, target, protocol, port)
        for source in ends
        for target in ends
        for protocol, port in ports | {("UDP", 53)}
        if (source in pods(objects) or target in pods(objects))
        and _passes(objects, source, target, protocol, port)
    }
    assert open_edges == (NEEDED | DOWNLOADS if overlay == "imagenet" else NEEDED)


def test_only_the_export_reaches_the_internet() -> None:
    for overlay in OVERLAYS:
        reaching = [
            (policy["metadata"]["name"], peer["ipBlock"], rule["ports"])
            for policy in of_kind(render(overlay), "NetworkPolicy")
            for rule in policy["spec"].get("egress", [])
            for peer in rule["to"]
            if "ipBlock" in peer
        ]
        if overlay == "imagenet":
            ((name, block, ports),) = reaching
            assert name == "export"
            assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(block["except"])
            assert ports == [{"protocol": "TCP", "port": 443}]
        else:
            assert reaching == []


def _passes(objects: list[Object], source: str, target: str, protocol: str, port: int) -> bool:
    """Whether the policies of both ends let a connection through; other namespaces have none."""
    return all(
        _side(objects, direction, own, other, target, protocol, port)
        for direction, own, other in (("egress", source, target), ("ingress", target, source))
        if own in pods(objects)
    )


def _side(
    objects: list[Object],
    direction: str,
    own: str,
    other: str,
    target: str,
    protocol: str,
    port: int,
) -> bool:
    labels = pods(objects)[own]["metadata"]["labels"]
    policies = [
        policy["spec"]
        for policy in of_kind(objects, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], labels)
        and direction.capitalize() in policy["spec"]["policyTypes"]
    ]
    peers = {"egress": "to", "ingress": "from"}[direction]
    return not policies or any(
        any(_is_peer(objects, peer, other) for peer in rule[peers])
        and any(
            entry["protocol"] == protocol and _policy_port(objects, target, entry["port"]) == port
            for entry in rule["ports"]
        )
        for policy in policies
        for rule in policy.get(direction, [])
    )


def _is_peer(objects: list[Object], peer: Object, name: str) -> bool:
    if "ipBlock" in peer:
        return False  # every end here is inside of the cluster
    inside = name in pods(objects)
    own = {"kubernetes.io/metadata.name": "mkf"}
    space, labels = (own, pods(objects)[name]["metadata"]["labels"]) if inside else PLACES[name]
    if "namespaceSelector" in peer:
        return selects(peer["namespaceSelector"], space) and selects(
            peer.get("podSelector", {}), labels
        )
    return inside and selects(peer["podSelector"], labels)


def _policy_port(objects: list[Object], target: str, port: str | int) -> int:
    if isinstance(port, int):
        return port
    return port_number(server(objects, target), port) if target in pods(objects) else -1
