"""The Responses API."""

from typing import Any, Final

import msgspec

from service.errors import ClientError
from service.gateway.assembly import Assembly, Response
from service.gateway.call import EVENTS, JSON, Inbound
from service.gateway.endpoints.members import Count
from service.gateway.endpoints.tokens import (
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    read,
    relay_of,
)

UNSET_VALUES: Final = (None, False, msgspec.UNSET)


class ResponsesRequest(TokenRequest, kw_only=True):
    """The members that are read here. All others are passed on."""

    input: str | list[dict[str, Any]]
    max_output_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None


class ResponsesEndpoint(TokenEndpoint[TokenCall]):
    """``POST /responses``: a response, streamed or not. Venice stores nothing."""

    path = "/responses"
    answer_member = "output"
    model_type = "text"
    request_type = ResponsesRequest
    answer_types = (JSON, EVENTS)
    cap_member = "max_output_tokens"
    needs_cap_member = True

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: when Venice would certainly refuse or silently ignore a member."""
        _, request, facts = read(inbound, self, ResponsesRequest)
        for name in ("previous_response_id", "conversation", "background"):
            if getattr(request, name) not in UNSET_VALUES:
                raise ClientError(
                    f"{name}: responses are not stored; send the whole conversation as input.",
                    param=name,
                )
        return TokenCall(
            **facts,
            is_stream=request.stream is True,
            relay=relay_of(request, inbound, facts["max_output_tokens"]),
        )

    def assembly(self) -> Assembly:
        """See :meth:`Endpoint.assembly`."""
        return Response()


RESPONSES: Final = ResponsesEndpoint()
