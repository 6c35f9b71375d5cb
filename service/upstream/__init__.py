"""The HTTP client for Venice, its keys, and the parsing of its responses.

Venice is the only host that the service contacts.
"""

from service.upstream.client import KEY_TIMEOUT_S, Venice, open_venice
from service.upstream.cooldowns import Source
from service.upstream.findings import Finding
from service.upstream.http import Departure, StreamedBody
from service.upstream.keys import (
    ENVIRONMENT_KEY_ID,
    KeyCooldown,
    UpstreamKey,
    UpstreamKeys,
    UpstreamKeyState,
)
from service.upstream.meter import (
    MAX_HELD_BYTES,
    Metered,
    StreamMeter,
    TokenCounts,
    read_headers,
    read_plain,
)
from service.upstream.refusals import ERROR_MEMBER, failed_response, split_at_error
from service.upstream.response import PASSED_HEADERS, PLAIN_BODY_BYTES, UpstreamResponse
from service.upstream.retries import is_repeatable, is_uncharged, pause_s
from service.upstream.sinks import Sink
from service.upstream.stored import (
    KEY_PROBLEMS,
    KeyCheck,
    StoredKey,
    add,
    check,
    disable,
    enable,
    find_stored,
    list_stored,
    load,
    note_state,
    record,
)

__all__ = [
    "ENVIRONMENT_KEY_ID",
    "ERROR_MEMBER",
    "KEY_PROBLEMS",
    "KEY_TIMEOUT_S",
    "MAX_HELD_BYTES",
    "PASSED_HEADERS",
    "PLAIN_BODY_BYTES",
    "Departure",
    "Finding",
    "KeyCheck",
    "KeyCooldown",
    "Metered",
    "Sink",
    "Source",
    "StoredKey",
    "StreamMeter",
    "StreamedBody",
    "TokenCounts",
    "UpstreamKey",
    "UpstreamKeyState",
    "UpstreamKeys",
    "UpstreamResponse",
    "Venice",
    "add",
    "check",
    "disable",
    "enable",
    "failed_response",
    "find_stored",
    "is_repeatable",
    "is_uncharged",
    "list_stored",
    "load",
    "note_state",
    "open_venice",
    "pause_s",
    "read_headers",
    "read_plain",
    "record",
    "split_at_error",
]
