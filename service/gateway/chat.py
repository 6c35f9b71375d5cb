"""Chat completions."""

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from service import body
from service.accounts import Caller
from service.catalog import Catalog
from service.errors import ClientError
from service.gateway.call import Bound, Call, parse_tags
from service.ledger import Admission
from service.prices import TokenPrice, Usage

PASSED_HEADERS: Final = (
    "x-venice-tee-client-pub-key",
    "x-venice-tee-model-pub-key",
    "x-venice-tee-signing-algo",
)


# What the books can take, and more than any model is called.
MODEL_NAME: Final = re.compile(r"[!-~]{1,256}")


PART_TOKENS: Final = 16
"""What a chat template puts around a message or a tool, at most."""
UNKNOWN_WINDOW_TOKENS: Final = 1_000_000
"""For a model whose window is not stated."""
SEARCH_NANOS: Final = 10_000_000
"""USD 0.01 for each of web search, X search and a scraped page."""
MOST_SCRAPED_PAGES: Final = 10
NULL: Final = msgspec.Raw(b"null")
MAXIMA: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""What a caller may call the most output of one choice."""
END_USER_LENGTH: Final = 128
END_USER_FIELDS: Final = ("safety_identifier", "user", "anon_user_id")
"""Where a caller may name its end user, the one that counts first."""
# Parts of a message whose tokens its bytes do not bound.
MEDIA: Final = re.compile(rb'"(?:image_url|input_audio|video_url|file)"')
# A letter that no encoder escapes: such a name could be any.
ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:5[fF]|6[1-9a-fA-F]|7[0-9aA])")
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]


class VeniceParameters(msgspec.Struct):
    """The parameters that add to the prompt or to the price."""

    include_venice_system_prompt: Any = None
    enable_web_search: Any = None
    enable_web_scraping: Any = None
    enable_x_search: Any = None
    character_slug: Any = None


class Message(msgspec.Struct, gc=False):
    """One of the conversation; made to be counted."""

    role: str


class Tool(msgspec.Struct, gc=False):
    """What the model may call; made to be counted."""


class ChatRequest(msgspec.Struct):
    """The members of a request that are read here; all others pass unread."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    safety_identifier: str | msgspec.UnsetType | None = msgspec.UNSET
    user: str | msgspec.UnsetType | None = msgspec.UNSET
    anon_user_id: str | msgspec.UnsetType | None = msgspec.UNSET
    n: Choices | None = None
    max_completion_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    max_output_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    web_search: Any = None
    fallbacks: Any = None
    tools: list[Tool] | None = None
    venice_parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


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
        parameters = _parameters(request)
        surcharge_nanos, has_extras = _extras(request, parameters)
        has_prompt = parameters.include_venice_system_prompt
        if "include_venice_system_prompt" in request.model:
            has_prompt = True
        return Call(
            endpoint=self,
            request_id=request_id,
            model=request.model,
            is_stream=bool(request.stream),
            end_user=_end_user(request),
            present=frozenset(
                name for name in SPLICED if getattr(request, name) is not msgspec.UNSET
            ),
            body=content,
            headers={name: headers[name] for name in PASSED_HEADERS if name in headers},
            tags=parse_tags(headers),
            parts=len(request.messages) + len(request.tools or ()),
            choices=request.n or 1,
            # Whichever of them Venice heeds.
            max_output_tokens=max(getattr(request, name) or 0 for name in MAXIMA) or None,
            has_extras=has_extras,
            has_venice_prompt=has_prompt if isinstance(has_prompt, bool) else None,
            venice_parameters=_stated(request.venice_parameters),
            surcharge_nanos=surcharge_nanos,
            # Another model may answer, at prices of its own.
            has_price=not request.fallbacks,
        )

    def bound(self, call: Call, caller: Caller, catalog: Catalog) -> Bound:
        """Every byte of text a token, at most the model's window; and all the output allowed."""
        price = catalog.token_price(call.model)
        window = (price and price.context_tokens) or UNKNOWN_WINDOW_TOKENS
        has_venice_prompt = call.has_venice_prompt
        if has_venice_prompt is None:
            has_venice_prompt = call.is_end_to_end_encrypted or not caller.has_money_limit
        input_tokens, prompt_tokens = window, None
        has_media = MEDIA.search(call.body) or ESCAPED_LETTER.search(call.body)
        if not call.has_extras and not has_media:
            prompt_tokens = body.text_bytes(call.body) + PART_TOKENS * call.parts
            overhead = catalog.overhead_tokens(call.model, with_prompt=has_venice_prompt)
            input_tokens = min(window, prompt_tokens + overhead)
        most_output = (price and price.max_output_tokens) or window
        output_cap = None
        if call.max_output_tokens is not None:
            output_tokens = min(call.max_output_tokens, most_output)
        elif call.is_end_to_end_encrypted:
            output_tokens = most_output
        else:
            output_tokens = min(caller.settings.default_max_output_tokens, most_output)
            output_cap = output_tokens
        bound = Bound(
            nanos=_nanos(call, price, input_tokens, output_tokens),
            tokens=input_tokens + output_tokens * call.choices,
            input_tokens=input_tokens,
            prompt_tokens=prompt_tokens,
            has_venice_prompt=has_venice_prompt,
            output_cap=output_cap,
        )
        least = caller.settings.least_output_tokens
        is_cut = least is not None and least < output_tokens
        if least is None or not is_cut or bound.nanos is None or call.is_end_to_end_encrypted:
            return bound
        return msgspec.structs.replace(
            bound,
            least_nanos=_nanos(call, price, input_tokens, least),
            least_tokens=input_tokens + least * call.choices,
        )

    def cut(self, call: Call, bound: Bound, granted: Admission, catalog: Catalog) -> Bound:
        """The bound with the most output for each choice that stays within what was granted."""
        if (granted.bound_nanos, granted.bound_tokens) == (bound.nanos, bound.tokens):
            return bound
        price = catalog.token_price(call.model)
        most = (granted.bound_tokens - bound.input_tokens) // call.choices
        if granted.bound_nanos is not None:
            # The cost never falls with more output: the last that is within the money is the most.
            outputs = range(1, most + 1)
            affordable = bisect_right(
                outputs,
                granted.bound_nanos,
                key=lambda output: _nanos(call, price, bound.input_tokens, output) or 0,
            )
            most = min(most, affordable)
        # Venice takes a maximum of nothing for none at all.
        return msgspec.structs.replace(bound, output_cap=max(1, most))

    def learn(self, call: Call, bound: Bound, usage: Usage, catalog: Catalog) -> None:
        """What Venice added to the prompt, where it is more than was thought."""
        if bound.prompt_tokens is not None:
            excess = usage.input_tokens - bound.prompt_tokens
            catalog.learn_overhead(call.model, excess, with_prompt=bound.has_venice_prompt)

    def upstream_body(self, call: Call, caller: Caller, bound: Bound) -> bytes:
        """The caller's bytes with what names the end user replaced, the cap on the output where
        they set none or more than they can afford, and Venice's prompt off where that is default.

        Venice counts bad requests per key, model and ``user`` and locks the bucket for all; with a
        pseudonym for each key and end user, callers share no bucket and Venice learns no names.
        """
        if call.is_end_to_end_encrypted:
            return call.body
        pseudonym = caller.pseudonym(call.end_user or "")
        members: dict[str, str | int | dict[str, Any]] = {"user": pseudonym}
        if "anon_user_id" in call.present:
            members["anon_user_id"] = pseudonym
        if bound.output_cap is not None:
            members["max_completion_tokens"] = bound.output_cap
            members |= {name: bound.output_cap for name in MAXIMA if name in call.present}
        if call.has_venice_prompt is None and not bound.has_venice_prompt:
            stated = msgspec.json.decode(call.venice_parameters, type=dict[str, msgspec.Raw])
            members["venice_parameters"] = {**stated, "include_venice_system_prompt": False}
        if "safety_identifier" in call.present:
            # OpenAI's name for it, which Venice does not know.
            content = body.without_members(call.body, {"safety_identifier"})
        else:
            content = call.body
        return body.set_members(content, members, call.present)


SPLICED: Final = (*END_USER_FIELDS, *MAXIMA, "venice_parameters")


def _nanos(
    call: Call, price: TokenPrice | None, input_tokens: int, output_tokens: int
) -> int | None:
    """The most that a call with so much output for each choice can cost."""
    if price is None or not call.has_price:
        return None
    nanos = price.bound_nanos(input_tokens, output_tokens * call.choices)
    return None if nanos is None else nanos + call.surcharge_nanos


def _end_user(request: ChatRequest) -> str | None:
    named = [(name, getattr(request, name)) for name in END_USER_FIELDS]
    for name, value in named:
        if isinstance(value, str) and len(value) > END_USER_LENGTH:
            rule = f"{name}: must have at most {END_USER_LENGTH} characters."
            raise ClientError(rule, param=name)
    return next((value for _, value in named if value), None)


def _stated(parameters: msgspec.Raw | msgspec.UnsetType) -> bytes:
    """The object of Venice's own parameters; an empty one where there is none."""
    if isinstance(parameters, msgspec.UnsetType) or parameters == NULL:
        return b"{}"
    return bytes(parameters)


def _parameters(request: ChatRequest) -> VeniceParameters:
    try:
        return body.decode(_stated(request.venice_parameters), VeniceParameters)
    except ClientError as error:
        raise ClientError(f"venice_parameters: {error}", param="venice_parameters") from None


def _extras(request: ChatRequest, parameters: VeniceParameters) -> tuple[int, bool]:
    """What Venice's own parameters add at most in nano-dollars, and whether they add to the prompt;
    they stand in the body or behind the model's name."""
    suffix = request.model.partition(":")[2]

    def is_on(name: str) -> bool:
        return getattr(parameters, name) not in (None, False, "off", "") or name in suffix

    # Venice takes web_search beside its own parameter for the same.
    is_searched = is_on("enable_web_search") or request.web_search not in (None, False, "off", "")
    searches = is_searched + is_on("enable_x_search")
    pages = MOST_SCRAPED_PAGES if is_on("enable_web_scraping") else 0
    has_extras = bool(searches or pages or is_on("character_slug"))
    return SEARCH_NANOS * (searches + pages), has_extras


CHAT: Final = ChatEndpoint()
