"""Chat completions."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from service import body
from service.accounts import Caller
from service.catalog import Price
from service.errors import ClientError
from service.gateway.call import Bound, Call

PASSED_HEADERS: Final = (
    "x-venice-tee-client-pub-key",
    "x-venice-tee-model-pub-key",
    "x-venice-tee-signing-algo",
)


# What the books can take, and more than any model is called.
MODEL_NAME: Final = re.compile(r"[!-~]{1,256}")


DEFAULT_MAX_OUTPUT_TOKENS: Final = 8_192
"""For calls that set no maximum themselves: without one, a call's bound would be the model's."""
PART_TOKENS: Final = 16
"""What a chat template puts around a message or a tool, at most."""
SYSTEM_PROMPT_TOKENS: Final = 4_096
"""At most what Venice's own system prompt has."""
OVERHEAD_TOKENS: Final = 128
"""What Venice adds without it."""
UNKNOWN_WINDOW_TOKENS: Final = 1_000_000
"""For a model whose window is not stated."""
SEARCH_NANOS: Final = 10_000_000
"""USD 0.01 for each of web search, X search and a scraped page."""
MOST_SCRAPED_PAGES: Final = 10
# Parts of a message whose tokens its bytes do not bound.
MEDIA: Final = re.compile(rb'"(?:image_url|input_audio|video_url|file)"')
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class VeniceParameters(msgspec.Struct):
    """The parameters that add to the prompt or to the price."""

    include_venice_system_prompt: Any = None
    enable_web_search: Any = None
    enable_web_scraping: Any = None
    enable_x_search: Any = None
    character_slug: Any = None


class ChatRequest(msgspec.Struct):
    """The members of a request that are read here; all others pass unread."""

    model: str
    messages: list[msgspec.Raw]
    stream: bool | None = None
    user: str | msgspec.UnsetType | None = msgspec.UNSET
    n: Count | None = None
    max_completion_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: Count | None = None
    tools: list[msgspec.Raw] | None = None
    venice_parameters: VeniceParameters | None = None


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
        cap = request.max_completion_tokens
        present = {
            "user": request.user is not msgspec.UNSET,
            "max_completion_tokens": cap is not msgspec.UNSET,
        }
        extras = _extras(request)
        return Call(
            endpoint=self,
            request_id=request_id,
            model=request.model,
            is_stream=bool(request.stream),
            user=request.user or None if isinstance(request.user, str) else None,
            present=frozenset(name for name, is_present in present.items() if is_present),
            body=content,
            headers={name: headers[name] for name in PASSED_HEADERS if name in headers},
            parts=len(request.messages) + len(request.tools or ()),
            choices=request.n or 1,
            max_output_tokens=(cap if isinstance(cap, int) else None) or request.max_tokens,
            overhead_tokens=extras.overhead_tokens,
            surcharge_nanos=extras.surcharge_nanos,
        )

    def bound(self, call: Call, price: Price | None) -> Bound:
        """Every byte of text a token, at most the model's window; and all the output allowed."""
        window = (price and price.context_tokens) or UNKNOWN_WINDOW_TOKENS
        most_output = (price and price.max_output_tokens) or window
        input_tokens = window
        if call.overhead_tokens is not None and not MEDIA.search(call.body):
            text = body.text_bytes(call.body)
            input_tokens = min(window, text + PART_TOKENS * call.parts + call.overhead_tokens)
        output_cap = None
        if call.max_output_tokens is not None:
            output_tokens = min(call.max_output_tokens, most_output)
        elif call.is_end_to_end_encrypted:
            output_tokens = most_output
        else:
            output_tokens = output_cap = min(DEFAULT_MAX_OUTPUT_TOKENS, most_output)
        output_tokens *= call.choices
        nanos = price.bound_nanos(input_tokens, output_tokens) if price else None
        return Bound(
            nanos=None if nanos is None else nanos + call.surcharge_nanos,
            tokens=input_tokens + output_tokens,
            output_cap=output_cap,
        )

    def upstream_body(self, call: Call, caller: Caller, bound: Bound) -> bytes:
        """The caller's bytes with ``user`` replaced, and the cap on the output where they set none.

        Venice counts bad requests per key, model and ``user`` and locks the bucket for all; with a
        pseudonym for each key and end user, callers share no bucket and Venice learns no names.
        """
        if call.is_end_to_end_encrypted:
            return call.body
        members: dict[str, str | int] = {"user": caller.pseudonym(call.user or "")}
        if bound.output_cap is not None:
            members["max_completion_tokens"] = bound.output_cap
        return body.set_members(call.body, members, call.present)


class _Extras(NamedTuple):
    overhead_tokens: int | None
    surcharge_nanos: int


def _extras(request: ChatRequest) -> _Extras:
    """What Venice's own parameters add; they stand in the body or behind the model's name."""
    parameters = request.venice_parameters or VeniceParameters()
    suffix = request.model.partition(":")[2]

    def is_on(name: str) -> bool:
        return getattr(parameters, name) not in (None, False, "off", "") or name in suffix

    searches = is_on("enable_web_search") + is_on("enable_x_search")
    pages = MOST_SCRAPED_PAGES if is_on("enable_web_scraping") else 0
    if searches or pages or is_on("character_slug"):
        return _Extras(None, SEARCH_NANOS * (searches + pages))
    without_prompt = parameters.include_venice_system_prompt is False
    return _Extras(OVERHEAD_TOKENS if without_prompt else SYSTEM_PROMPT_TOKENS, 0)


CHAT: Final = ChatEndpoint()
