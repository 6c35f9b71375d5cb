"""A paid call, as it was asked for."""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from service.accounts import Caller
from service.catalog import Catalog
from service.errors import ClientError, ServiceError
from service.ledger import Admission, Limit
from service.prices import Usage

TAGS_HEADER: Final = "x-rialto-tags"
MOST_TAGS: Final = 10
TAG: Final = re.compile(r"([A-Za-z0-9_.-]{1,64})=([A-Za-z0-9_.:/@+-]{1,128})")


def parse_tags(headers: Mapping[str, str]) -> dict[str, str] | None:
    """The caller's own words for a call: ``x-rialto-tags: team=a,feature=b``.

    :raises ClientError: naming the header and the rule.
    """
    stated = headers.get(TAGS_HEADER, "").strip()
    if not stated:
        return None
    tags: dict[str, str] = {}
    for part in stated.split(","):
        match = TAG.fullmatch(part.strip())
        if match is None:
            raise ClientError(
                f"{TAGS_HEADER}: {part.strip()[:200]!r} is no tag, which is name=value: a name of 1"
                " to 64 letters, digits, _ . - and a value of 1 to 128 of these and : / @ +",
                param=TAGS_HEADER,
            )
        if match[1] in tags:
            raise ClientError(f"{TAGS_HEADER}: {match[1]} is there twice.", param=TAGS_HEADER)
        tags[match[1]] = match[2]
    if len(tags) > MOST_TAGS:
        raise ClientError(f"{TAGS_HEADER}: at most {MOST_TAGS} tags.", param=TAGS_HEADER)
    return tags


class Endpoint(Protocol):
    """What the kinds of call differ in; the methods are called in the order they stand."""

    path: str
    """Venice's own path below ``/api/v1``; also the ledger's name for the kind of call."""

    def parse(self, content: bytes, request_id: str, headers: Mapping[str, str]) -> "Call":
        """:raises ClientError: when Venice would surely refuse the body."""
        ...

    def bound(self, call: "Call", caller: Caller, catalog: Catalog) -> "Bound":
        """The most that the call can use."""
        ...

    def cut(self, call: "Call", bound: "Bound", granted: Admission, catalog: Catalog) -> "Bound":
        """The bound with as much output as was granted."""
        ...

    def learn(self, call: "Call", bound: "Bound", usage: Usage, catalog: Catalog) -> None:
        """Let the catalogue know what the call says of the next one's bound."""
        ...

    def upstream_body(self, call: "Call", caller: Caller, bound: "Bound") -> bytes:
        """The body that Venice gets."""
        ...


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a call can use. ``nanos`` is None where there is no price.

    ``output_cap`` is a maximum that is put into the body: the caller set none, or more than their
    limits afford. Where a call may be cut down to what they do, ``least_nanos`` and
    ``least_tokens`` are the least that is worth a call.
    """

    nanos: int | None
    tokens: int
    input_tokens: int
    prompt_tokens: int | None
    """The prompt alone, without what Venice adds; None where bytes do not bound it."""
    has_venice_prompt: bool
    output_cap: int | None = None
    least_nanos: int | None = None
    least_tokens: int | None = None


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a call could cost, and what admission would say to it."""

    bound: Bound
    limits: Sequence[Limit]
    refusal: ServiceError | None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of one endpoint. ``headers`` are those that are passed on to Venice."""

    endpoint: Endpoint
    request_id: str
    model: str
    is_stream: bool
    body: bytes
    end_user: str | None = None
    """The end user as the caller names them."""
    tags: dict[str, str] | None = None
    """The caller's own words for the call, for reports."""
    present: frozenset[str]
    """Which of the members that may be set by us the body has already."""
    headers: Mapping[str, str]
    parts: int = 1
    """Messages and tools: each costs a few tokens beside its text."""
    choices: int = 1
    max_output_tokens: int | None = None
    """What the caller allows for one choice; None where they set nothing."""
    has_extras: bool = False
    """Whether Venice adds what only the model's window bounds: results, pages, a character."""
    has_venice_prompt: bool | None = None
    """Whether Venice's own system prompt is wanted; None where the caller does not say."""
    venice_parameters: bytes = b"{}"
    surcharge_nanos: int = 0
    """What is charged beside the tokens, at most."""
    has_price: bool = True
    """Whether the model's price is that of the call."""

    def __repr__(self) -> str:
        return f"<Call {self.request_id} {self.endpoint.path} {self.model}>"

    def estimated_input_tokens(self) -> int:
        """Four bytes of the body a token: for the books when nothing better is known."""
        return len(self.body) // 4 + 1

    @property
    def is_end_to_end_encrypted(self) -> bool:
        """Whether only the model may read the body; then no byte of it is touched."""
        return self.model.startswith("e2ee-")
