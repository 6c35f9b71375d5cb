"""A paid call, as it was asked for."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from service.accounts import Caller
from service.catalog import Price


class Endpoint(Protocol):
    """What the kinds of call differ in; the methods are called in the order they stand."""

    path: str
    """Venice's own path below ``/api/v1``; also the ledger's name for the kind of call."""

    def parse(self, content: bytes, request_id: str, headers: Mapping[str, str]) -> "Call":
        """:raises ClientError: when Venice would surely refuse the body."""
        ...

    def bound(self, call: "Call", price: Price | None) -> "Bound":
        """The most that the call can use."""
        ...

    def upstream_body(self, call: "Call", caller: Caller, bound: "Bound") -> bytes:
        """The body that Venice gets."""
        ...


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a call can use. ``nanos`` is None where there is no price.

    ``output_cap`` is a maximum that was put into the body since the caller set none.
    """

    nanos: int | None
    tokens: int
    output_cap: int | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of one endpoint. ``headers`` are those that are passed on to Venice."""

    endpoint: Endpoint
    request_id: str
    model: str
    is_stream: bool
    body: bytes
    user: str | None = None
    """The end user as the caller names them."""
    present: frozenset[str]
    """Which of the members that may be set by us the body has already."""
    headers: Mapping[str, str]
    parts: int = 1
    """Messages and tools: each costs a few tokens beside its text."""
    choices: int = 1
    max_output_tokens: int | None = None
    """What the caller allows for one choice; None where they set nothing."""
    overhead_tokens: int | None = 0
    """What Venice adds to the prompt at most; None when only the model's window bounds it."""
    surcharge_nanos: int = 0
    """What is charged beside the tokens, at most."""

    def __repr__(self) -> str:
        return f"<Call {self.request_id} {self.endpoint.path} {self.model}>"

    def estimated_input_tokens(self) -> int:
        """Four bytes of the body a token: for the books when nothing better is known."""
        return len(self.body) // 4 + 1

    @property
    def is_end_to_end_encrypted(self) -> bool:
        """Whether only the model may read the body; then no byte of it is touched."""
        return self.model.startswith("e2ee-")
