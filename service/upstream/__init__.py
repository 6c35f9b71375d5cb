"""Venice, and nothing else of the outside world: the only ``ClientSession`` lives here."""

from service.upstream.client import Answer, Venice, open_venice
from service.upstream.meter import Metered, StreamMeter, WholeEvents, read_headers, read_plain

__all__ = [
    "Answer",
    "Metered",
    "StreamMeter",
    "Venice",
    "WholeEvents",
    "open_venice",
    "read_headers",
    "read_plain",
]
