"""Hosts are compared in the form that a resolver gives them."""

import pytest

from service.settings.address import AddressError, parse_database_url
from service.settings.hosts import is_loopback, normalize_host

THIS_MACHINE = [
    "127\u30020\u30020\u30021",
    "127\uff0e0\uff0e0\uff0e1",
    "127\uff610\uff610\uff611",
    "\uff11\uff12\uff17\u30020.0.1",
    "127.1",
    "0x7f.1",
    "0X7F000001",
    "0177.0.0.1",
    "2130706433",
    "0",
    "localhost.",
    "localhost\u3002",
    "LOCALHOST",
    "local\u00adhost",
    "local\u200bhost",
    "\u24dbocalhost",
    "any.localhost",
    "any\u3002localhost.",
    "localhost.localdomain",
    "any.localhost.localdomain",
    "localhost4",
    "localhost4.localdomain4",
    "localhost6",
    "localhost6.localdomain6",
    "ip6-localhost",
    "ip6-loopback",
    "[::1]",
    "[::]",
    "[::1%25lo]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "%31%32%37.0.0.1",
    "localhost%2e",
]


@pytest.mark.parametrize("host", THIS_MACHINE)
def test_this_machine_in_every_spelling(host):
    """No spelling of a loopback address passes the rule for production."""
    with pytest.raises(AddressError, match="points at this machine"):
        parse_database_url(f"postgresql://u:p@{host}/d", production=True)


@pytest.mark.parametrize(
    ("host", "used"),
    [
        ("DB.Example.com.", "db.example.com"),
        ("db\u3002example\uff0ecom", "db.example.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("10.1", "10.0.0.1"),
        ("[FD12::1]", "fd12::1"),
        ("[fe80::1%25eth0]", "fe80::1%eth0"),
        ("a_b.railway.internal", "a_b.railway.internal"),
        ("localhost.example", "localhost.example"),
        ("notlocalhost", "notlocalhost"),
    ],
)
def test_the_compared_host_is_the_one_used(host, used):
    """The driver gets the host that the rule has checked."""
    address = parse_database_url(f"postgresql://u:p@{host}/d", production=True)
    assert address.host == used


@pytest.mark.parametrize("host", ["a b", "a..b", "x" * 64, "a\x00b", "\ud800"])
def test_invalid_hosts(host):
    """An invalid host is refused instead of being taken for another machine."""
    with pytest.raises(ValueError, match="no name of a host"):
        normalize_host(host)
    assert is_loopback(host)
