"""The addresses of a `triton:` URL, and how gRPC reaches them all."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from services.errors import InvalidInputError, UnavailableError
from services.runtime.channel import format_address


@dataclass(frozen=True)
class Address:
    """One HOST:PORT of the URL."""

    host: str  # without brackets
    port: int

    def __str__(self) -> str:
        return format_address(self.host, self.port)


@dataclass(frozen=True)
class Target:
    """Servers as gRPC's channels take them."""

    balanced: str  # all of them
    servers: tuple[str, ...]  # each alone: a server answers for itself when it is asked for sums


def parse_addresses(text: str) -> tuple[Address, ...]:
    """The addresses of ``HOST:PORT[,HOST:PORT...]``; IPv6 in brackets, ``[::1]:8001``.

    Raises
    ------
    InvalidInputError
        Not of that form, or an address twice.
    """
    addresses = tuple(_parse_address(part) for part in text.split(","))
    if len(set(addresses)) < len(addresses):
        raise InvalidInputError(f"triton:{text} names an address twice; name each server once")
    return addresses


async def resolve(addresses: tuple[Address, ...]) -> Target:
    """Look the addresses up.

    One name, however many servers it stands for (a headless service of Kubernetes, say), is left to
    gRPC's DNS resolver, which looks it up again when a server is lost. gRPC takes several addresses
    as numbers only: names among them are looked up once, here.

    Raises
    ------
    UnavailableError
        A name that cannot be looked up.
    InvalidInputError
        Servers of which some have IPv4 addresses and some IPv6 addresses alone.
    """
    places = await asyncio.gather(*(_look_up(address) for address in addresses))
    servers = tuple(dict.fromkeys(place for found in places for place in found))
    if len(addresses) == 1:
        return Target(f"dns:///{addresses[0]}", servers)
    families = {"ipv6" if place.startswith("[") else "ipv4" for place in servers}
    if len(families) > 1:
        raise InvalidInputError(
            f"triton:{','.join(map(str, addresses))} mixes IPv4 and IPv6; name the servers by "
            "addresses of one kind"
        )
    return Target(f"{families.pop()}:{','.join(servers)}", servers)


def _parse_address(text: str) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.netloc != text or "@" in text:
        raise InvalidInputError(
            f"{text!r} is no address of a Triton server; one looks like 127.0.0.1:8001"
        )
    return Address(host, port)


async def _look_up(address: Address) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"{address.host} cannot be looked up: {error.strerror}") from error
    by_family = {
        family: [
            format_address(str(place[0]), address.port)
            for kind, _, _, _, place in found
            if kind == family
        ]
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    return list(dict.fromkeys(by_family[socket.AF_INET] or by_family[socket.AF_INET6]))
