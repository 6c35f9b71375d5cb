"""Chat completions."""

from typing import Annotated, Any, Final

import msgspec

from service import body
from service.accounts import Caller
from service.errors import ClientError
from service.gateway.assembly import Assembly, ChatCompletion
from service.gateway.call import EVENTS, JSON, Bound, Inbound, Relay, check_model
from service.gateway.tokens import (
    END_USER_FIELDS,
    Count,
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    end_user,
    read,
    relay_of,
    venice_facts,
    without_venice_prompt,
)

MAXIMA: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""What a caller may call the most output of one choice."""
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
Maximum = Count | msgspec.UnsetType | None


class Message(msgspec.Struct, gc=False):
    """One of the conversation; made to be counted."""

    role: str


class ChatRequest(TokenRequest, kw_only=True):
    """The members of a request that are read here; all others pass unread."""

    messages: list[Message]
    n: Choices | None = None
    max_completion_tokens: Maximum = msgspec.UNSET
    max_tokens: Maximum = msgspec.UNSET
    max_output_tokens: Maximum = msgspec.UNSET


class ChatEndpoint(TokenEndpoint[TokenCall]):
    """``POST /chat/completions``: a chat completion, streamed or not."""

    path = "/chat/completions"
    model_type = "text"
    request_type = ChatRequest
    answer_types = (JSON, EVENTS)
    cap_member = "max_completion_tokens"

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: for what Venice would surely refuse."""
        inbound, request = read(inbound, ChatRequest)
        check_model(request.model)
        if not request.messages:
            raise ClientError("messages: must have at least one message.", param="messages")
        # Whichever of them Venice heeds.
        most_output = max([getattr(request, name) or 0 for name in MAXIMA]) or None
        return TokenCall(
            endpoint=self,
            **inbound.facts(),
            **venice_facts(request),
            model=request.model,
            is_stream=request.stream is True,
            relay=relay_of(request, inbound, most_output),
            end_user=end_user(request),
            present=frozenset(
                [name for name in SPLICED if getattr(request, name) is not msgspec.UNSET]
            ),
            parts=len(request.messages) + len(request.tools or ()),
            choices=request.n or 1,
            max_output_tokens=most_output,
        )

    def upstream_body(self, call: TokenCall, caller: Caller, bound: Bound) -> bytes:
        """The caller's bytes with what names the end user replaced, the cap on the output where
        they set none or more than they can afford, and Venice's prompt off where that is default.

        Venice counts bad requests per key, model and ``user`` and locks the bucket for all; with a
        pseudonym for each key and end user, callers share no bucket and Venice learns no names.
        """
        if call.is_end_to_end_encrypted:
            return call.body
        pseudonym = caller.pseudonym(call.end_user or "")
        members: dict[str, Any] = {"user": pseudonym}
        if "anon_user_id" in call.present:
            members["anon_user_id"] = pseudonym
        if bound.output_cap is not None:
            members[self.cap_member] = bound.output_cap
            members |= {name: bound.output_cap for name in MAXIMA if name in call.present}
        members |= without_venice_prompt(call, bound)
        if call.relay is Relay.ASSEMBLED:
            members["stream"] = True
        content = call.body
        if "safety_identifier" in call.present:
            # OpenAI's name for it, which Venice does not know.
            content = body.without_members(content, {"safety_identifier"})
        return body.set_members(content, members, call.present)

    def assembly(self) -> Assembly:
        """See :meth:`Endpoint.assembly`."""
        return ChatCompletion()


SPLICED: Final = (*END_USER_FIELDS, *MAXIMA, "stream", "venice_parameters")
CHAT: Final = ChatEndpoint()
