"""Decisions: questions about a state, answered by the token."""

from typing import Any, Final

from service import body
from service.gateway.call import Inbound, check_model
from service.gateway.tokens import TokenCall, TokenEndpoint, TokenRequest, end_user


class DecisionsRequest(TokenRequest, kw_only=True):
    """The members of a request that are read here; all others pass unread."""

    questions: dict[str, Any]


class DecisionsEndpoint(TokenEndpoint[TokenCall]):
    """``POST /decisions``: answers to questions about a state; also as ``/systemone``."""

    path = "/decisions"
    answer_member = "answers"
    model_type = "decision"
    request_type = DecisionsRequest

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: for what Venice would surely refuse."""
        json = body.read(inbound.content, self.body_limits)
        request = json.convert(DecisionsRequest)
        return TokenCall(
            endpoint=self,
            **inbound.facts(json),
            text_bytes=json.text_bytes,
            model=check_model(request.model),
            path=inbound.path,
            end_user=end_user(request),
            parts=len(request.questions) + 1,
            has_venice_prompt=False,
        )


DECISIONS: Final = DecisionsEndpoint()
