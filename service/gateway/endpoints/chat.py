"""Chat completions."""

from typing import Final

import msgspec

from service.errors import ClientError
from service.gateway.assembly import Assembly, ChatCompletion
from service.gateway.call import EVENTS, JSON, Inbound
from service.gateway.endpoints.members import Choices, Count
from service.gateway.endpoints.tokens import (
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    read,
    relay_of,
)

Maximum = Count | msgspec.UnsetType | None


class Message(msgspec.Struct, gc=False):
    """A message of the conversation; gives the count of messages."""

    role: str


class ChatRequest(TokenRequest, kw_only=True):
    """The members that are read here. All others are passed on."""

    messages: list[Message]
    n: Choices | None = None
    max_completion_tokens: Maximum = msgspec.UNSET
    max_tokens: Maximum = msgspec.UNSET
    max_output_tokens: Maximum = msgspec.UNSET


class ChatEndpoint(TokenEndpoint[TokenCall]):
    """``POST /chat/completions``: a chat completion, streamed or not."""

    path = "/chat/completions"
    answer_member = "choices"
    model_type = "text"
    request_type = ChatRequest
    answer_types = (JSON, EVENTS)
    cap_member = "max_completion_tokens"

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        _, request, facts = read(inbound, self, ChatRequest)
        if not request.messages:
            raise ClientError("messages: must have at least one message.", param="messages")
        return TokenCall(
            **facts,
            is_stream=request.stream is True,
            relay=relay_of(request, inbound, facts["max_output_tokens"]),
        )

    def assembly(self) -> Assembly:
        """See :meth:`Endpoint.assembly`."""
        return ChatCompletion()


CHAT: Final = ChatEndpoint()
