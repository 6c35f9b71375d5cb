"""Bounds how often somebody may try to sign in, since anybody can."""

import ipaddress
import math
import time
from collections import OrderedDict
from typing import Final

from service.errors import RateLimited
from service.formats.addresses import Address, Network

ATTEMPTS_OF_ADDRESS: Final = 10
ATTEMPTS_OF_ALL: Final = 200
WINDOW_S: Final = 60.0
"""The attempts that are allowed at once, and how long they take to come back."""
MAX_ADDRESSES: Final = 10_000
IPV6_PREFIX: Final = 64
"""A customer of a provider has at least such a network, and all of its addresses."""


class _Bucket:
    """Attempts that are left; they come back evenly over the window."""

    __slots__ = ("changed_at", "left")

    def __init__(self, left: float, now: float) -> None:
        self.left = left
        self.changed_at = now

    def refill(self, most: int, now: float) -> None:
        self.left = min(most, self.left + (now - self.changed_at) * most / WINDOW_S)
        self.changed_at = now


class SignInAttempts:
    """The attempts of one process: of each address, and of all together.

    At most ``MAX_ADDRESSES`` addresses are known; the one that tried least recently is forgotten.
    """

    def __init__(self) -> None:
        now = time.monotonic()
        self._all = _Bucket(ATTEMPTS_OF_ALL, now)
        self._of: OrderedDict[Network | None, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def count(self, address: Address | None) -> None:
        """Count one attempt.

        :raises RateLimited: when the address, or everybody, has made too many; it is not counted.
        """
        now = time.monotonic()
        network = network_of(address)
        own = self._of.get(network)
        if own is None:
            own = self._of[network] = _Bucket(ATTEMPTS_OF_ADDRESS, now)
            if len(self._of) > MAX_ADDRESSES:
                self._of.popitem(last=False)
        self._of.move_to_end(network)
        own.refill(ATTEMPTS_OF_ADDRESS, now)
        self._all.refill(ATTEMPTS_OF_ALL, now)
        for bucket, most in ((own, ATTEMPTS_OF_ADDRESS), (self._all, ATTEMPTS_OF_ALL)):
            if bucket.left < 1:
                wait_s = math.ceil((1 - bucket.left) * WINDOW_S / most)
                raise RateLimited(
                    f"There were too many attempts to sign in. Try again in {wait_s} s.",
                    retry_after_s=wait_s,
                )
        own.left -= 1
        self._all.left -= 1


def network_of(address: Address | None) -> Network | None:
    """The network whose attempts are counted together: of IPv6 that of a customer. Clients whose
    address is not known count together too."""
    if address is None:
        return None
    prefix = IPV6_PREFIX if address.version == 6 else address.max_prefixlen
    return ipaddress.ip_network((address, prefix), strict=False)
