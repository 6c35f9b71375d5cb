"""A paid call, as it was asked for."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from service.accounts import Caller


class Endpoint(Protocol):
    """What the kinds of call differ in; the methods are called in the order they stand."""

    path: str
    """Venice's own path below ``/api/v1``; also the ledger's name for the kind of call."""

    def parse(self, content: bytes, request_id: str, headers: Mapping[str, str]) -> "Call":
        """:raises ClientError: when Venice would surely refuse the body."""
        ...

    def upstream_body(self, call: "Call", caller: Caller) -> bytes:
        """The body that Venice gets."""
        ...


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of one endpoint. ``headers`` are those that are passed on to Venice."""

    endpoint: Endpoint
    request_id: str
    model: str
    is_stream: bool
    body: bytes
    user: str | None = None
    """The end user as the caller names them."""
    has_user: bool
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<Call {self.request_id} {self.endpoint.path} {self.model}>"

    def estimated_input_tokens(self) -> int:
        """Four bytes of the body a token: for the books when nothing better is known."""
        return len(self.body) // 4 + 1

    @property
    def is_end_to_end_encrypted(self) -> bool:
        """Whether only the model may read the body; then no byte of it is touched."""
        return self.model.startswith("e2ee-")
