"""The Responses API, whole and as typed events."""

from typing import Any, Final

import msgspec

from service.accounts import Caller
from service.errors import ClientError
from service.gateway.assembly import Assembly, Response
from service.gateway.call import EVENTS, JSON, Bound, Inbound, check_model
from service.gateway.tokens import (
    Count,
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    Tool,
    end_user,
    read,
    relay_of,
    spliced,
    venice_facts,
)

NOTHING: Final = (None, False, msgspec.UNSET)
SEARCHES: Final = (b'"web_search', b'"x_search')
"""Tools that Venice runs itself."""


class ResponsesRequest(TokenRequest, kw_only=True):
    """The members of a request that are read here; all others pass unread."""

    input: str | list[Tool]
    max_output_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None


class ResponsesEndpoint(TokenEndpoint[TokenCall]):
    """``POST /responses``: a response, whole or as typed events; nothing is stored."""

    path = "/responses"
    answer_member = "output"
    model_type = "text"
    request_type = ResponsesRequest
    answer_types = (JSON, EVENTS)
    cap_member = "max_output_tokens"

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: for what Venice would surely refuse, or silently ignore."""
        json, request = read(inbound, self, ResponsesRequest)
        check_model(request.model)
        for name in ("previous_response_id", "conversation", "background"):
            if getattr(request, name) not in NOTHING:
                raise ClientError(
                    f"{name}: responses are not stored; send the whole conversation as input.",
                    param=name,
                )
        facts = venice_facts(request)
        # A search within a call has its price and its results.
        if any(name in inbound.content for name in SEARCHES):
            facts["has_extras"] = True
            facts["has_price"] = False
        parts = len(request.input) if isinstance(request.input, list) else 1
        return TokenCall(
            endpoint=self,
            **inbound.facts(json),
            text_bytes=json.text_bytes,
            **facts,
            model=request.model,
            is_stream=request.stream is True,
            relay=relay_of(request, inbound, request.max_output_tokens or None),
            end_user=end_user(request),
            parts=parts + len(request.tools or ()),
            max_output_tokens=request.max_output_tokens or None,
        )

    def upstream_body(self, call: TokenCall, caller: Caller, bound: Bound) -> bytes:
        """See :func:`spliced`."""
        return spliced(call, caller, bound, ("max_output_tokens",))

    def assembly(self) -> Assembly:
        """See :meth:`Endpoint.assembly`."""
        return Response()


RESPONSES: Final = ResponsesEndpoint()
