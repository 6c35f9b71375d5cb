"""Chat completions."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from service import body
from service.accounts import Caller
from service.errors import ClientError
from service.gateway.call import Call

PASSED_HEADERS: Final = (
    "x-venice-tee-client-pub-key",
    "x-venice-tee-model-pub-key",
    "x-venice-tee-signing-algo",
)


# What the books can take, and more than any model is called.
MODEL_NAME: Final = re.compile(r"[!-~]{1,256}")


class ChatRequest(msgspec.Struct):
    """The members of a request that are read here; all others pass unread."""

    model: str
    messages: list[msgspec.Raw]
    stream: bool | None = None
    user: str | msgspec.UnsetType | None = msgspec.UNSET


class ChatEndpoint:
    """``POST /chat/completions``."""

    path = "/chat/completions"

    def parse(self, content: bytes, request_id: str, headers: Mapping[str, str]) -> Call:
        """:raises ClientError: for what Venice would surely refuse."""
        request = body.decode(content, ChatRequest)
        if not MODEL_NAME.fullmatch(request.model):
            raise ClientError(
                "model: must be 1 to 256 printable ASCII characters without spaces.",
                param="model",
            )
        if not request.messages:
            raise ClientError("messages: must have at least one message.", param="messages")
        return Call(
            endpoint=self,
            request_id=request_id,
            model=request.model,
            is_stream=bool(request.stream),
            user=request.user or None if isinstance(request.user, str) else None,
            has_user=request.user is not msgspec.UNSET,
            body=content,
            headers={name: headers[name] for name in PASSED_HEADERS if name in headers},
        )

    def upstream_body(self, call: Call, caller: Caller) -> bytes:
        """The caller's bytes with ``user`` replaced.

        Venice counts bad requests per key, model and ``user`` and locks the bucket for all; with a
        pseudonym for each key and end user, callers share no bucket and Venice learns no names.
        """
        if call.is_end_to_end_encrypted:
            return call.body
        user = caller.pseudonym(call.user or "")
        return body.set_members(call.body, {"user": user}, {"user"} if call.has_user else ())


CHAT: Final = ChatEndpoint()
