"""What calls that are paid by the token have in common."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Generic, TypeVar

import msgspec

from service import body, money
from service.accounts import Caller
from service.catalog import Catalog
from service.errors import ClientError
from service.gateway.call import (
    JSON,
    Bound,
    Call,
    Cost,
    Endpoint,
    Inbound,
    Relay,
    check_end_user,
)
from service.gateway.tolerance import tolerate
from service.ledger import Admission, CostSource
from service.prices import TokenPrice, Usage
from service.upstream import Metered, UsageObject

if TYPE_CHECKING:
    from typing import Self

LONG_OUTPUT_TOKENS: Final = 8_192
"""A plain answer that may be longer than this is asked for as a stream: at 28 tokens a second it
takes the five minutes after which a silent connection is cut."""
PART_TOKENS: Final = 16
"""What a template puts around a message or a tool, at most."""
UNKNOWN_WINDOW_TOKENS: Final = 1_000_000
"""For a model whose window is not stated."""
SEARCH_NANOS: Final = 10_000_000
"""USD 0.01 for each of web search, X search and a scraped page."""
MOST_SCRAPED_PAGES: Final = 10
END_TO_END_ENCRYPTED: Final = "e2ee-"
"""How the names of models begin whose calls only they may read."""
NO_MEMBERS: Final[Mapping[str, Any]] = {}
END_USER_FIELDS: Final = ("safety_identifier", "user", "anon_user_id")
"""Where a caller may name its end user, the one that counts first."""
# Parts of a message whose tokens its bytes do not bound.
MEDIA: Final = re.compile(
    rb'"(?:image_url|input_image|input_audio|input_file|input_video|video_url|file)"'
)
# A letter that no encoder escapes: such a name could be any.
ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:5[fF]|6[1-9a-fA-F]|7[0-9aA])")
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Text = str | msgspec.UnsetType | None


class VeniceParameters(msgspec.Struct):
    """The parameters that add to the prompt or to the price."""

    include_venice_system_prompt: Any = None
    enable_web_search: Any = None
    enable_web_scraping: Any = None
    enable_x_search: Any = None
    character_slug: Any = None


NO_PARAMETERS: Final = VeniceParameters()
NO_USAGE: Final = UsageObject()


class Tool(msgspec.Struct, gc=False):
    """What the model may call; made to be counted."""


class TokenRequest(msgspec.Struct, kw_only=True):
    """The members that are read of every request that is paid by the token; all others pass
    unread."""

    model: str
    stream: bool | msgspec.UnsetType | None = msgspec.UNSET
    safety_identifier: Text = msgspec.UNSET
    user: Text = msgspec.UNSET
    anon_user_id: Text = msgspec.UNSET
    web_search: Any = None
    fallbacks: Any = None
    tools: list[Tool] | None = None
    venice_parameters: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class TokenCall(Call, frozen=True, kw_only=True):
    """A call that is paid by the token."""

    text_bytes: int = 0
    """The length of the body when each character stands for itself."""
    parts: int = 1
    """Messages and tools: each costs a few tokens beside its text."""
    choices: int = 1
    max_output_tokens: int | None = None
    """What the caller allows for one choice; None where they set nothing."""
    has_extras: bool = False
    """Whether Venice adds what only the model's window bounds: results, pages, a character."""
    has_venice_prompt: bool | None = None
    """Whether Venice's own system prompt is wanted; None where the caller does not say."""
    venice_parameters: Mapping[str, Any] = NO_MEMBERS

    @property
    def max_output(self) -> int | None:
        return self.max_output_tokens

    def for_model(self, name: str) -> "Self":
        """See :meth:`Call.for_model`."""
        if self.is_end_to_end_encrypted:
            return msgspec.structs.replace(self, model=name)
        if name.startswith(END_TO_END_ENCRYPTED):
            # Its calls are treated otherwise from their first byte on.
            raise ClientError(f"model: must be {name!r} itself, to be encrypted.", param="model")
        return super().for_model(name)

    @property
    def is_end_to_end_encrypted(self) -> bool:
        """Whether only the model may read the body; then no byte of it is touched."""
        return self.model.startswith(END_TO_END_ENCRYPTED)


T = TypeVar("T", bound=TokenCall)
R = TypeVar("R", bound=TokenRequest)


class TokenEndpoint(Endpoint[T], Generic[T]):
    """A kind of call that is paid by the token."""

    is_inference = True
    answer_types: ClassVar[tuple[str, ...]] = (JSON,)
    gives_output: ClassVar[bool] = True
    cap_member: ClassVar[str | None] = None
    """The member that caps the output, where there is one."""

    def bound(self, call: T, caller: Caller, catalog: Catalog) -> Bound:
        """Every byte of text a token, at most the model's window; and all the output allowed."""
        price = catalog.token_price(call.model)
        window = (price and price.context_tokens) or UNKNOWN_WINDOW_TOKENS
        has_venice_prompt = call.has_venice_prompt
        if has_venice_prompt is None:
            has_venice_prompt = call.is_end_to_end_encrypted or not caller.has_money_limit
        input_tokens, prompt_tokens = window, None
        has_media = MEDIA.search(call.body) or (
            b"\\" in call.body and ESCAPED_LETTER.search(call.body)
        )
        if not call.has_extras and not has_media:
            prompt_tokens = call.text_bytes + PART_TOKENS * call.parts
            overhead = catalog.overhead_tokens(call.model, with_prompt=has_venice_prompt)
            input_tokens = min(window, prompt_tokens + overhead)
        output_tokens, output_cap = self._output(call, caller, price, window)
        bound = Bound(
            nanos=_nanos(call, price, input_tokens, output_tokens),
            tokens=input_tokens + output_tokens * call.choices,
            input_tokens=input_tokens,
            prompt_tokens=prompt_tokens,
            has_venice_prompt=has_venice_prompt,
            output_cap=output_cap,
        )
        least = caller.settings.least_output_tokens if self.cap_member else None
        is_cut = least is not None and least < output_tokens
        if least is None or not is_cut or bound.nanos is None or call.is_end_to_end_encrypted:
            return bound
        return msgspec.structs.replace(
            bound,
            least_nanos=_nanos(call, price, input_tokens, least),
            least_tokens=input_tokens + least * call.choices,
        )

    def _output(
        self, call: T, caller: Caller, price: TokenPrice | None, window: int
    ) -> tuple[int, int | None]:
        """The most output of one choice, and the cap that makes it the most."""
        if not self.gives_output:
            return 0, None
        most = (price and price.max_output_tokens) or window
        if call.max_output_tokens is not None:
            return min(call.max_output_tokens, most), None
        if call.is_end_to_end_encrypted or self.cap_member is None:
            return most, None
        most = min(caller.settings.default_max_output_tokens, most)
        return most, most

    def cut(self, call: T, bound: Bound, granted: Admission, catalog: Catalog) -> Bound:
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

    def cost(self, call: T, bound: Bound, metered: Metered, catalog: Catalog) -> Cost:
        """What Venice states; else its counts at the catalogue's price. Counts that are needed and
        missing are estimated, input at its bound, and make the cost an estimate."""
        price = catalog.token_price(metered.model or "", call.model)
        usage, source = _usage(call, bound, metered, gives_output=self.gives_output)
        if source is CostSource.COMPUTED and bound.prompt_tokens is not None:
            excess = usage.input_tokens - bound.prompt_tokens
            catalog.learn_overhead(call.model, excess, with_prompt=bound.has_venice_prompt)
        if metered.cost_usd is not None:
            return Cost(usage, money.parse_usd(metered.cost_usd), CostSource.REPORTED)
        if price is None or not call.has_price:
            return Cost(usage, None, CostSource.UNKNOWN)
        if source is CostSource.ESTIMATED:
            # How much of the input was cached nobody knows: the dearest rate counts.
            nanos = price.bound_nanos(usage.input_tokens, usage.output_tokens)
        else:
            nanos = price.cost_nanos(usage)
        if nanos is None:
            return Cost(usage, None, CostSource.UNKNOWN)
        nanos += call.surcharge_nanos
        if source is CostSource.ESTIMATED and bound.nanos is not None:
            nanos = min(nanos, bound.nanos)
        return Cost(usage, nanos, source)


def _usage(
    call: TokenCall, bound: Bound, metered: Metered, *, gives_output: bool
) -> tuple[Usage, CostSource]:
    """What Venice counted; where a count that is needed is missing, an estimate within the bound
    that is not below what may have been charged."""
    stated = metered.usage or NO_USAGE
    input_tokens, output_tokens = stated.all_input_tokens, stated.all_output_tokens
    if not gives_output:
        output_tokens = output_tokens or 0
    is_output_missed = output_tokens == 0 and metered.has_output and gives_output
    if input_tokens and output_tokens is not None and not is_output_missed:
        cached, written = stated.cached_tokens, stated.cache_write_tokens
        if cached + written <= input_tokens:
            return Usage(
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cached_input_tokens=cached,
                cache_write_tokens=written,
            ), CostSource.COMPUTED
    most_output = bound.tokens - bound.input_tokens
    if bound.output_cap is not None:
        most_output = min(most_output, bound.output_cap * call.choices)
    if not output_tokens:
        counted = metered.counted_tokens
        output_tokens = most_output if counted is None else min(counted, most_output)
    usage = Usage(input_tokens=input_tokens or bound.input_tokens, output_tokens=output_tokens)
    return usage, CostSource.ESTIMATED


def _nanos(
    call: TokenCall, price: TokenPrice | None, input_tokens: int, output_tokens: int
) -> int | None:
    """The most that a call with so much output for each choice can cost."""
    if price is None or not call.has_price:
        return None
    nanos = price.bound_nanos(input_tokens, output_tokens * call.choices)
    return None if nanos is None else nanos + call.surcharge_nanos


def relay_of(request: TokenRequest, inbound: Inbound, most_output: int | None) -> Relay:
    """How the answer reaches the caller.

    :raises ClientError: for a plain call of a model that only its caller can read.
    """
    if request.stream is True:
        return Relay.EVENTS
    if request.model.startswith(END_TO_END_ENCRYPTED):
        raise ClientError("stream: must be true for end-to-end encryption.", param="stream")
    most_output = most_output or inbound.settings.default_max_output_tokens
    return Relay.ASSEMBLED if most_output > LONG_OUTPUT_TOKENS else Relay.WHOLE


def end_user(request: TokenRequest) -> str | None:
    """Whom the request names as its end user.

    :raises ClientError: when a name is too long.
    """
    first = ""
    for name in END_USER_FIELDS:
        value = getattr(request, name)
        if isinstance(value, str):
            check_end_user(value, name)
            first = first or value
    return first or None


def read(
    inbound: Inbound,
    endpoint: TokenEndpoint[Any],
    shape: type[R],
    *,
    has_parameters: bool = True,
) -> tuple[body.JsonBody, R]:
    """The body with what the caller's key says of it, and the request that it makes: members that
    Venice refuses are left out, parameters of Venice's that the call does not state are set where
    it ``has_parameters``.

    :raises ClientError: naming the field and the rule.
    """
    json, settings = body.read(inbound.content, endpoint.body_limits), inbound.settings
    request = json.convert(shape)
    if request.model.startswith(END_TO_END_ENCRYPTED):
        return json, request
    changes = tolerate(json.members) if settings.tolerant else {}
    if settings.venice_parameters and has_parameters:
        stated = request.venice_parameters or NO_MEMBERS
        changes["venice_parameters"] = {**settings.venice_parameters, **stated}
    if not changes:
        return json, request
    json = json.edited(changes)
    return json, json.convert(shape)


def venice_facts(request: TokenRequest) -> dict[str, Any]:
    """What Venice's own parameters say of a call; they stand in the body or behind the model."""
    stated = request.venice_parameters or NO_MEMBERS
    parameters = body.convert(stated, VeniceParameters) if stated else NO_PARAMETERS
    surcharge_nanos, has_extras = _extras(request, parameters)
    has_prompt = parameters.include_venice_system_prompt
    if "include_venice_system_prompt" in request.model:
        has_prompt = True
    return {
        "surcharge_nanos": surcharge_nanos,
        "has_extras": has_extras,
        "has_venice_prompt": has_prompt if isinstance(has_prompt, bool) else None,
        "venice_parameters": stated,
        # Another model may answer, at prices of its own.
        "has_price": not request.fallbacks,
    }


def _extras(request: TokenRequest, parameters: VeniceParameters) -> tuple[int, bool]:
    """What Venice's own parameters add at most in nano-dollars, and whether they add to the
    prompt."""
    suffix = request.model.partition(":")[2]
    if parameters is NO_PARAMETERS and not suffix and request.web_search is None:
        return 0, False

    def is_on(name: str) -> bool:
        return getattr(parameters, name) not in (None, False, "off", "") or name in suffix

    # Venice takes web_search beside its own parameter for the same.
    is_searched = is_on("enable_web_search") or request.web_search not in (None, False, "off", "")
    searches = is_searched + is_on("enable_x_search")
    pages = MOST_SCRAPED_PAGES if is_on("enable_web_scraping") else 0
    has_extras = bool(searches or pages or is_on("character_slug"))
    return SEARCH_NANOS * (searches + pages), has_extras


def spliced(call: TokenCall, caller: Caller, bound: Bound, maxima: Sequence[str]) -> bytes:
    """The caller's bytes with what names the end user replaced, the cap on the output in the first
    of the ``maxima`` and all others that are there, and Venice's prompt off where that is default.

    Venice counts bad requests per key, model and ``user`` and locks the bucket for all; with a
    pseudonym for each key and end user, callers share no bucket and Venice learns no names.
    """
    document = call.document
    if call.is_end_to_end_encrypted or document is None:
        return call.body
    pseudonym = caller.pseudonym(call.end_user or "")
    changes: dict[str, Any] = {"user": pseudonym}
    if "anon_user_id" in document.names:
        changes["anon_user_id"] = pseudonym
    # OpenAI's name for it, which Venice does not know.
    changes["safety_identifier"] = msgspec.UNSET
    if bound.output_cap is not None:
        there = document.names.intersection(maxima)
        changes |= dict.fromkeys({maxima[0], *there}, bound.output_cap)
    changes |= without_venice_prompt(call, bound)
    if call.relay is Relay.ASSEMBLED:
        changes["stream"] = True
    return document.edited(changes).content


def without_venice_prompt(call: TokenCall, bound: Bound) -> dict[str, Any]:
    """The member that leaves Venice's own prompt out, where that is the default."""
    if call.has_venice_prompt is not None or bound.has_venice_prompt:
        return {}
    parameters = {**call.venice_parameters, "include_venice_system_prompt": False}
    return {"venice_parameters": parameters}
