"""Addresses and networks, and the address of a client behind proxies."""

import ipaddress

import pytest

from service.formats.addresses import (
    MAX_HOPS,
    are_within,
    client_address,
    is_within,
    parse_address,
    parse_network,
)
from service.settings.allow_lists import parse_proxies


def networks(*texts):
    return [parse_network(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8:0:0:0:0:0:1", "2001:db8::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_networks_are_normalized(text, network):
    """A network has one form, however it is written."""
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "192.0.2.0/33",
        "192.0.2.0/-1",
        "192.0.2.0/255.255.255.0",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.01",
        "192.0.2.0/24 ",
        "fe80::1%eth0",
        "2001:db8::/129",
        "2001:db8:::/32",
        "example.com",
        "1",
        "x" * 1000,
        "\u0661.0.0.0",
    ],
)
def test_what_is_no_network(text):
    """Anything else is refused with the form that is expected."""
    with pytest.raises(ValueError, match="must be an address or a network") as raised:
        parse_network(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "meant"),
    [("192.0.2.5/24", "192.0.2.0/24"), ("2001:db8::1/32", "2001:db8::/32")],
)
def test_bits_of_a_host(text, meant):
    """A network with bits beyond its prefix is refused with the one that may be meant."""
    with pytest.raises(ValueError, match=f"write '{meant}'"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("192.0.2.1, 192.0.2.2", None),
        ("192.0.2", None),
        ("[192.0.2.1", None),
        ("[]", None),
        ("[]:80", None),
    ],
)
def test_addresses(text, address):
    """An address is read with or without a port; anything else is none."""
    found = parse_address(text)
    assert (found and str(found)) == address


PROXIES = networks("10.0.0.0/8", "2001:db8:ffff::/48")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        # Nobody is believed who is no proxy.
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        # The last that is no proxy.
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.1, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1:4711,10.0.0.2"], "198.51.100.1"),
        ("2001:db8:ffff::1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        # The proxies' own requests.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        # What cannot be read proves nothing.
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", [""], None),
        ("10.0.0.1", ["198.51.100.1, "], None),
        ("", ["198.51.100.1"], None),
    ],
)
def test_the_address_of_a_client(peer, forwarded, address):
    """Only trusted proxies are believed, from the nearest one on."""
    found = client_address(peer, forwarded, PROXIES)
    assert (found and str(found)) == address


def test_a_header_with_too_many_proxies():
    """Of a header as many addresses are read as a chain of proxies may have."""
    proxies = ["10.0.0.2"] * (MAX_HOPS - 1)
    few, many = ["198.51.100.1", *proxies], ["198.51.100.1", *proxies, "10.0.0.2"]

    assert str(client_address("10.0.0.1", [", ".join(few)], PROXIES)) == "198.51.100.1"
    assert client_address("10.0.0.1", [", ".join(["1.1.1.1", *many])], PROXIES) is None


def test_membership():
    """An address is compared with networks of its own version."""
    assert is_within(ipaddress.ip_address("10.1.2.3"), PROXIES)
    assert not is_within(ipaddress.ip_address("::1"), networks("0.0.0.0/0"))
    assert not is_within(ipaddress.ip_address("127.0.0.1"), networks("::/0"))


@pytest.mark.parametrize(
    ("parts", "wholes", "expected"),
    [
        (["10.1.0.0/16"], ["10.0.0.0/8"], True),
        (["10.0.0.0/8"], ["10.1.0.0/16"], False),
        (["10.1.0.0/16", "192.0.2.1"], ["10.0.0.0/8"], False),
        (["2001:db8::1"], ["10.0.0.0/8", "2001:db8::/32"], True),
        (["::/0"], ["0.0.0.0/0"], False),
    ],
)
def test_parts_of_networks(parts, wholes, expected):
    """Networks are within others if each is a part of one of them."""
    assert are_within(networks(*parts), networks(*wholes)) is expected


def test_proxies_of_the_settings():
    """TRUSTED_PROXIES lists networks, of which none has every address."""
    assert list(map(str, parse_proxies("10.0.0.0/8, 2001:DB8::1"))) == [
        "10.0.0.0/8",
        "2001:db8::1/128",
    ]
    for text in ("0.0.0.0/0", "::/0", "::ffff:0:0/96", "10.0.0.0/8,", "10.0.0.1/8", "x"):
        with pytest.raises(ValueError, match="must "):
            parse_proxies(text)
