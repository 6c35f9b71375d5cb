"""Names of hosts as a resolver gets them, so that what is compared is what is used (pure)."""

import ipaddress
import re
import socket
import unicodedata
from typing import Final

DOTS: Final = str.maketrans("\u3002\uff0e\uff61", "...")
"""What resolvers take for a dot besides the dot."""
LOOPBACK_NAME: Final = re.compile(
    r"(.+\.)?localhost(\.localdomain)?|localhost[46]?(\.localdomain[46]?)?|ip6-(localhost|loopback)"
)
"""The names of systemd's resolver, and those in the host files of Red Hat and Debian."""
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

ANYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
"""Addresses to listen on that a client cannot connect to."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def normalize_host(host: str) -> str:
    """The host in lower case and ASCII, without brackets and a final dot; an international name in
    its ``xn--`` form, an IPv4 address in four decimal numbers.

    :raises ValueError: when no host can be called so.
    """
    name = unicodedata.normalize("NFKC", host).translate(DOTS).strip()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        name = name.encode("idna").decode("ascii").rstrip(".").lower()
    except UnicodeError:
        raise ValueError("is no name of a host") from None
    if not name.isprintable() or " " in name:
        raise ValueError("is no name of a host")
    address = None if ":" in name else parse_ip(name)
    return name if address is None else str(address)


def local_host(host: str) -> str:
    """The host in a URL by which a client on this machine reaches what listens on ``host``."""
    if host in ANYWHERE:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def parse_ip(name: str) -> IPAddress | None:
    """The address that a name is, in any spelling that resolvers take: ``127.1``, ``0x7f.1``,
    ``2130706433``, ``::1%eth0``. An IPv4 address that an IPv6 one stands for is that one."""
    try:
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, UnicodeError):
        pass
    try:
        address = ipaddress.IPv6Address(name.partition("%")[0])
    except ValueError:
        return None
    if address in NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_loopback(host: str) -> bool:
    """Whether the host means this machine; what is no host's name does."""
    try:
        name = normalize_host(host)
    except ValueError:
        return True
    if LOOPBACK_NAME.fullmatch(name):
        return True
    address = parse_ip(name)
    if address is None:
        return not name
    in_network_zero = address.version == 4 and int(address) >> 24 == 0
    return address.is_loopback or address.is_unspecified or in_network_zero
