"""Decisions: answers to questions about a state, charged by the token."""

from typing import Any, Final

from service.gateway.call import Inbound
from service.gateway.endpoints import members
from service.gateway.endpoints.tokens import TokenCall, TokenEndpoint, TokenRequest, read


class DecisionsRequest(TokenRequest, kw_only=True):
    """The members that are read here. All others are passed on."""

    questions: dict[str, Any]


class DecisionsEndpoint(TokenEndpoint[TokenCall]):
    """``POST /decisions``: answers to questions about a state; also as ``/systemone``."""

    path = "/decisions"
    answer_member = "answers"
    model_type = "decision"
    request_type = DecisionsRequest
    table = members.DECISIONS

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        facts = read(inbound, self, DecisionsRequest).facts
        return TokenCall(**{**facts, "path": inbound.path, "has_venice_prompt": False})


DECISIONS: Final = DecisionsEndpoint()
