"""Parses IP addresses and networks, and finds the address of a client behind proxies. Pure
functions."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS: Final = 32
"""The most addresses of a header that are read. A header with more trusted proxies proves
nothing."""
MAPPED_PREFIX: Final = 96
"""The prefix of IPv4 addresses that are written as IPv6, such as ``::ffff:192.0.2.1``."""
FORM: Final = "must be an address or a network in CIDR notation, as 192.0.2.0/24 or 2001:db8::/32"
_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?", re.ASCII)
_WITH_PORT: Final = re.compile(r"\[([^\]]+)\](:[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", re.ASCII)


def parse_network(text: str) -> Network:
    """Parse a network. An address is a network of itself, and IPv4 written as IPv6 becomes IPv4.

    :raises ValueError: when it is neither, or has bits of a host; a network that is meant is named.
    """
    if not _NETWORK.fullmatch(text):
        raise ValueError(f"{FORM}; {text[:60]!r} is neither")
    try:
        network = ipaddress.ip_network(text, strict=False)
        stated = ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        raise ValueError(f"{FORM}; {text[:60]!r} is neither") from None
    if stated != network.network_address:
        raise ValueError(f"{FORM}; {text!r} has bits beyond its prefix, so write {str(network)!r}")
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - MAPPED_PREFIX))
    return network


def parse_address(text: str) -> Address | None:
    """Parse an address, of which a port and a zone are dropped; None if it is none. IPv4 written as
    IPv6 becomes IPv4."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[3]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether the address is in one of the networks."""
    return any(address in network for network in networks)


def are_within(networks: Iterable[Network], others: Sequence[Network]) -> bool:
    """Whether each network is a part of one of the others."""
    return all(any(_is_part(network, other) for other in others) for network in networks)


def _is_part(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]


def client_address(
    peer: str, forwarded: Sequence[str], proxies: Sequence[Network]
) -> Address | None:
    """The address of the client of a request, or None if it cannot be known.

    ``peer`` is the address at the other end of the connection. ``forwarded`` are the values of the
    header in which each proxy states the address that it got the request from, the nearest proxy
    last. Only a proxy that is trusted is believed, so what a client writes into the header changes
    nothing.
    """
    address = parse_address(peer)
    # Beyond MAX_HOPS the rest stays one text, which is no address.
    hops = ",".join(forwarded).rsplit(",", MAX_HOPS) if forwarded else []
    for hop in reversed(hops):
        if address is None or not is_within(address, proxies):
            break
        address = parse_address(hop)
    return address
