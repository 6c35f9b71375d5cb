"""Decisions: questions about a state, answered by the token."""

from typing import Any, Final

from service.gateway.call import Inbound
from service.gateway.endpoints import members
from service.gateway.endpoints.tokens import TokenCall, TokenEndpoint, TokenRequest, read


class DecisionsRequest(TokenRequest, kw_only=True):
    """The members of a request that are read here; all others pass unread."""

    questions: dict[str, Any]


class DecisionsEndpoint(TokenEndpoint[TokenCall]):
    """``POST /decisions``: answers to questions about a state; also as ``/systemone``."""

    path = "/decisions"
    answer_member = "answers"
    model_type = "decision"
    request_type = DecisionsRequest
    table = members.DECISIONS

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: for what Venice would surely refuse."""
        facts = read(inbound, self, DecisionsRequest).facts
        return TokenCall(**{**facts, "path": inbound.path, "has_venice_prompt": False})


DECISIONS: Final = DecisionsEndpoint()
