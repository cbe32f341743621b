"""Addresses of triton: URLs, and what gRPC is told of them."""

from __future__ import annotations

import pytest

from services.errors import InvalidInputError, UnavailableError
from services.inference.triton_addresses import Address, parse_addresses, resolve


def test_addresses_are_read_one_by_one() -> None:
    assert parse_addresses("127.0.0.1:8001") == (Address("127.0.0.1", 8001),)
    assert parse_addresses("triton:1,[::1]:65535") == (Address("triton", 1), Address("::1", 65535))
    assert str(Address("::1", 8001)) == "[::1]:8001"


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":8001", "host:0", "host:65536", "host:grpc", "a:1,,b:2", "a:1,"),
        *(
            "::1:8001",
            "[::1]",
            "grpc://host:8001",
            "host:8001/",
            "user@host:8001",
            "a b:1 ",
            "a:1?",
        ),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"127\.0\.0\.1:8001"):
        parse_addresses(text)


def test_an_address_stands_once() -> None:
    with pytest.raises(InvalidInputError, match="twice"):
        parse_addresses("a:1,b:1,a:1")


async def test_one_name_is_left_to_grpc() -> None:
    target = await resolve(parse_addresses("localhost:8001"))
    assert target.balanced == "dns:///localhost:8001"
    assert target.servers == ("127.0.0.1:8001",)


async def test_several_addresses_are_numbers_for_grpc() -> None:
    target = await resolve(parse_addresses("127.0.0.1:1,127.0.0.2:2"))
    assert target.balanced == "ipv4:127.0.0.1:1,127.0.0.2:2"
    assert target.servers == ("127.0.0.1:1", "127.0.0.2:2")
    assert (await resolve(parse_addresses("[::1]:1,[::1]:2"))).balanced == "ipv6:[::1]:1,[::1]:2"


async def test_addresses_of_two_kinds_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="mixes"):
        await resolve(parse_addresses("127.0.0.1:1,[::1]:1"))


async def test_a_name_that_is_not_known_is_told() -> None:
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid cannot be looked up"):
        await resolve(parse_addresses("nowhere.invalid:8001"))
