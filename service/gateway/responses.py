"""The Responses API, whole and as typed events."""

from typing import Any, Final

import msgspec

from service import body
from service.accounts import Caller
from service.errors import ClientError
from service.gateway.assembly import Assembly, Response
from service.gateway.call import EVENTS, JSON, Bound, Inbound, Relay, check_model
from service.gateway.tokens import (
    END_USER_FIELDS,
    Count,
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    Tool,
    end_user,
    read,
    relay_of,
    venice_facts,
    without_venice_prompt,
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
    model_type = "text"
    request_type = ResponsesRequest
    answer_types = (JSON, EVENTS)
    cap_member = "max_output_tokens"

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: for what Venice would surely refuse, or silently ignore."""
        inbound, request = read(inbound, ResponsesRequest)
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
            **inbound.facts(),
            **facts,
            model=request.model,
            is_stream=request.stream is True,
            relay=relay_of(request, inbound, request.max_output_tokens or None),
            end_user=end_user(request),
            present=frozenset(
                name for name in SPLICED if getattr(request, name) is not msgspec.UNSET
            ),
            parts=parts + len(request.tools or ()),
            max_output_tokens=request.max_output_tokens or None,
        )

    def upstream_body(self, call: TokenCall, caller: Caller, bound: Bound) -> bytes:
        """The caller's bytes with what names the end user replaced, the cap on the output, and
        Venice's prompt off where that is default."""
        if call.is_end_to_end_encrypted:
            return call.body
        pseudonym = caller.pseudonym(call.end_user or "")
        members: dict[str, Any] = {"user": pseudonym}
        if "anon_user_id" in call.present:
            members["anon_user_id"] = pseudonym
        if bound.output_cap is not None:
            members["max_output_tokens"] = bound.output_cap
        members |= without_venice_prompt(call, bound)
        if call.relay is Relay.ASSEMBLED:
            members["stream"] = True
        content = call.body
        if "safety_identifier" in call.present:
            content = body.without_members(content, {"safety_identifier"})
        return body.set_members(content, members, call.present)

    def assembly(self) -> Assembly:
        """See :meth:`Endpoint.assembly`."""
        return Response()


SPLICED: Final = (*END_USER_FIELDS, "max_output_tokens", "stream", "venice_parameters")
RESPONSES: Final = ResponsesEndpoint()
