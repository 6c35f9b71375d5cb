"""The base of endpoints that charge by the token."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import msgspec
import structlog

from service import money
from service.accounts import Caller, KeySettings
from service.catalog import Catalog
from service.catalog.prices import TokenTerms, Usage
from service.errors import ClientError
from service.formats import body
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
from service.gateway.endpoints.content import UNBOUNDED, Content
from service.gateway.endpoints.members import (
    DECISIONS,
    PLAIN_NAME,
    TEXT,
    Asked,
    Table,
    is_idle_search,
    joined_model,
    split_model,
)
from service.gateway.endpoints.pictures import NO_PICTURES, PictureTokens
from service.gateway.endpoints.tolerance import tolerate
from service.ledger import Admission, CostSource
from service.telemetry import metrics
from service.upstream import Metered, TokenCounts

if TYPE_CHECKING:
    from typing import Self

log = structlog.get_logger()

LONG_OUTPUT_TOKENS: Final = 8_192
"""A longer plain answer is requested as a stream. At 28 tokens a second it takes five minutes,
after which proxies cut a silent connection."""
MIN_CUT_OUTPUT_TOKENS: Final = 1_024
"""A call is not cut down to less output than this, unless its key has a minimum of its own. An
answer of fewer tokens rarely is one: a model that reasons may spend them all before it begins."""
PART_TOKENS: Final = 16
"""The most tokens that a model's template adds to a message or a tool."""
END_TO_END_ENCRYPTED: Final = "e2ee-"
"""The prefix of models with end-to-end encryption, whose bodies only the model can read."""
NO_MEMBERS: Final[Mapping[str, Any]] = {}
NO_COUNTS: Final = TokenCounts()
END_USER_FIELDS: Final = ("safety_identifier", "user", "anon_user_id")
"""The members that may name the end user, by precedence."""
CONVERSATIONS: Final = ("messages", "input", "instructions")
WITH_PARTS: Final = (*CONVERSATIONS, "tools", "questions")
"""Members whose items each cost a few tokens beside their text."""
OF_TOOLS: Final = ("tool_choice", "parallel_tool_calls")
"""Members that have no meaning without tools."""
Text = str | msgspec.UnsetType | None


class TokenRequest(msgspec.Struct, kw_only=True):
    """The members that every endpoint which charges by the token reads."""

    model: str
    stream: bool | msgspec.UnsetType | None = msgspec.UNSET
    safety_identifier: Text = msgspec.UNSET
    user: Text = msgspec.UNSET
    anon_user_id: Text = msgspec.UNSET
    tools: list[dict[str, Any]] | None = None
    venice_parameters: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class TokenCall(Call, frozen=True, kw_only=True):
    """A call that is charged by the token."""

    text_bytes: int = 0
    """The length of all its text, without escapes and pictures."""
    pictures: PictureTokens = NO_PICTURES
    """The most tokens of all its pictures."""
    parts: int = 1
    """Messages and tools. Each costs a few tokens beside its text."""
    choices: int = 1
    max_output_tokens: int | None = None
    """The most output of one choice that the caller allows; None if they set no maximum."""
    stated_maxima: Mapping[str, int] = NO_MEMBERS
    """What the caller states for each member that sets that maximum. Some may have no effect."""
    thinking_tokens: int = 0
    """The tokens of thinking that the caller allows beside that."""
    window_filler: str | None = None
    """What may fill the model's window, which alone bounds the input then: search results, pages or
    a character that Venice adds, or sound, video or files."""
    has_venice_prompt: bool | None = None
    """Whether the caller wants Venice's own system prompt; None if they do not state it."""
    venice_parameters: Mapping[str, Any] = NO_MEMBERS

    @property
    def max_output(self) -> int | None:
        return self.max_output_tokens

    @property
    def models(self) -> tuple[str, ...]:
        """The models that may answer."""
        return (self.model, *self.fallbacks)

    def for_model(self, name: str) -> "Self":
        """See :meth:`Call.for_model`."""
        if self.is_end_to_end_encrypted:
            return msgspec.structs.replace(self, model=name)
        must_be_readable(name, "model")
        return super().for_model(name)

    def with_fallbacks(self, names: Sequence[str]) -> "Self":
        """See :meth:`Call.with_fallbacks`."""
        if tuple(names) == self.fallbacks:
            return self
        if self.is_end_to_end_encrypted or self.document is None:
            raise ClientError(
                "fallbacks: must be spelled as Venice lists the models, since the body is not"
                " changed.",
                param="fallbacks",
            )
        for name in names:
            must_be_readable(name, "fallbacks")
        document = self.document.edited({"fallbacks": [{"model": name} for name in names]})
        return msgspec.structs.replace(
            self, fallbacks=tuple(names), document=document, body=document.content
        )

    @property
    def is_end_to_end_encrypted(self) -> bool:
        """Whether only the model can read the body, which is then never changed."""
        return self.model.startswith(END_TO_END_ENCRYPTED)


def must_be_readable(name: str, field: str) -> None:
    """:raises ClientError: for a model with end-to-end encryption, which needs another body."""
    if name.startswith(END_TO_END_ENCRYPTED):
        raise ClientError(f"{field}: must be {name!r} itself, to be encrypted.", param=field)


T = TypeVar("T", bound=TokenCall)
R = TypeVar("R", bound=TokenRequest)


class TokenEndpoint(Endpoint[T], Generic[T]):
    """An endpoint that charges by the token."""

    is_inference = True
    answer_types: ClassVar[tuple[str, ...]] = (JSON,)
    gives_output: ClassVar[bool] = True
    cap_member: ClassVar[str | None] = None
    """The member that caps the output, if the endpoint has one."""
    needs_cap_member: ClassVar[bool] = False
    """Whether other names for that member have no effect."""
    table: ClassVar[Table] = TEXT
    """The effects of the body's members."""

    def bound(self, call: T, caller: Caller, catalog: Catalog) -> Bound:
        """See :meth:`Endpoint.bound`. Each byte of text counts as a token and each picture as the
        most that it can be, up to the model's window. All allowed output is added. Of several
        models the most expensive counts."""
        terms = catalog.token_terms(call.model, *call.fallbacks)
        is_encrypted = call.model.startswith(END_TO_END_ENCRYPTED)
        has_venice_prompt = call.has_venice_prompt
        if has_venice_prompt is None:
            has_venice_prompt = is_encrypted or not caller.has_money_limit
        input_tokens, prompt_tokens = terms.max_input_tokens, None
        if call.window_filler is None:
            prompt_tokens = call.text_bytes + PART_TOKENS * call.parts
            if call.pictures is not NO_PICTURES:
                prompt_tokens += _picture_tokens(call)
            overhead = 0
            for name in (call.model, *call.fallbacks):
                expected = catalog.overhead_tokens(
                    name, caller.organization_id, with_prompt=has_venice_prompt
                )
                overhead = max(overhead, expected)
            input_tokens = min(input_tokens, prompt_tokens + overhead)
        can_cap = self.cap_member is not None and not is_encrypted
        output_tokens, output_cap = self._output(
            call, caller, terms.max_output_tokens, can_cap=can_cap
        )
        return Bound(
            nanos=_nanos(call, terms, input_tokens, output_tokens),
            tokens=input_tokens + output_tokens * call.choices,
            input_tokens=input_tokens,
            prompt_tokens=prompt_tokens,
            has_venice_prompt=has_venice_prompt,
            organization_id=caller.organization_id,
            output_cap=output_cap,
        )

    def least(self, call: T, bound: Bound, caller: Caller, catalog: Catalog) -> Bound | None:
        """See :meth:`Endpoint.least`."""
        settings = caller.settings
        if settings.on_small_budget != "cut" or self.cap_member is None or bound.nanos is None:
            return None
        output_tokens = settings.least_output_tokens or MIN_CUT_OUTPUT_TOKENS
        output_tokens += call.thinking_tokens
        tokens = bound.input_tokens + output_tokens * call.choices
        if tokens >= bound.tokens or call.is_end_to_end_encrypted:
            return None
        terms = catalog.token_terms(*call.models)
        nanos = _nanos(call, terms, bound.input_tokens, output_tokens)
        return msgspec.structs.replace(bound, nanos=nanos, tokens=tokens)

    def _output(
        self, call: T, caller: Caller, most: int, *, can_cap: bool
    ) -> tuple[int, int | None]:
        """Return the most output of one choice, and the cap to set for it, if any. ``most`` is what
        its models give at most."""
        if not self.gives_output:
            return 0, None
        if call.max_output_tokens is not None:
            return min(call.max_output_tokens + call.thinking_tokens, most), None
        if not can_cap:
            return most, None
        cap = min(caller.settings.default_max_output_tokens, most)
        return min(cap + call.thinking_tokens, most), cap

    def cut(self, call: T, bound: Bound, granted: Admission, catalog: Catalog) -> Bound:
        """See :meth:`Endpoint.cut`."""
        most = self.max_output_within(
            call, bound, granted.bound_nanos, granted.bound_tokens, catalog
        )
        # Venice reads a maximum of 0 as no maximum.
        return msgspec.structs.replace(bound, output_cap=max(1, most))

    def max_output_within(
        self, call: T, bound: Bound, nanos: int | None, tokens: int, catalog: Catalog
    ) -> int:
        """See :meth:`Endpoint.max_output_within`."""
        if self.cap_member is None:
            return 0
        terms = catalog.token_terms(*call.models)
        most = max(0, (tokens - bound.input_tokens) // call.choices)
        if nanos is not None:
            # The cost never falls with more output, so a binary search finds the most.
            most = bisect_right(
                range(1, most + 1),
                nanos,
                key=lambda output: _nanos(call, terms, bound.input_tokens, output) or 0,
            )
        return max(0, most - call.thinking_tokens)

    def largest_part(self, call: T, bound: Bound, unit: str, catalog: Catalog) -> str | None:
        """See :meth:`Endpoint.largest_part`."""
        output_tokens = bound.tokens - bound.input_tokens
        parts = {**_input_parts(call, bound), "output": output_tokens}
        if unit != "usd":
            name = max(parts, key=parts.__getitem__)
            return f"{name}: up to {parts[name]} tokens"
        terms = catalog.token_terms(*call.models)
        input_tokens = max(1, bound.input_tokens)
        input_nanos = terms.bound_nanos(input_tokens, 0) or 0
        costs = {name: input_nanos * tokens // input_tokens for name, tokens in parts.items()}
        costs["output"] = (terms.bound_nanos(input_tokens, output_tokens) or 0) - input_nanos
        costs["fees for searches"] = call.surcharge_nanos
        name = max(costs, key=costs.__getitem__)
        tokens = f"{parts[name]} tokens, " if name in parts else ""
        return f"{name}: up to {tokens}{money.format_usd(costs[name])} USD"

    def cost(self, call: T, bound: Bound, metered: Metered, catalog: Catalog) -> Cost:
        """The cost that Venice states, else Venice's counts at the catalogue's price. A missing
        count is estimated, the input at its bound, which makes the cost an estimate."""
        terms = catalog.token_terms(call.model, *call.fallbacks)
        price = terms.prices[0]
        if metered.model is not None and metered.model != call.model:
            price = catalog.token_terms(metered.model).prices[0] or price
            terms = TokenTerms.of((*terms.prices, price))
        stated = NO_COUNTS
        if metered.usage is not None:
            stated = _plausible(call, terms, metered.usage.counts())
        usage, source = _usage(call, bound, metered, stated, gives_output=self.gives_output)
        is_above = usage.input_tokens > bound.input_tokens
        if is_above and source is CostSource.COMPUTED and not call.fallbacks:
            _learn(call, bound, usage, catalog)
        if metered.cost_usd is not None:
            return Cost(usage, money.parse_usd(metered.cost_usd), CostSource.REPORTED)
        if price is None or not call.has_price:
            return Cost(usage, None, CostSource.UNKNOWN)
        if source is CostSource.ESTIMATED:
            # The model that answered and the cached part of the input are unknown.
            nanos = terms.bound_nanos(usage.input_tokens, usage.output_tokens)
        else:
            nanos = price.cost_nanos(usage)
        if nanos is None:
            return Cost(usage, None, CostSource.UNKNOWN)
        nanos += call.surcharge_nanos
        if source is CostSource.ESTIMATED and bound.nanos is not None:
            nanos = min(nanos, bound.nanos)
        return Cost(usage, nanos, source)

    def max_nanos(self, call: T, bound: Bound, catalog: Catalog) -> int | None:
        """The cost of a full window and the longest output."""
        terms = catalog.token_terms(*call.models)
        nanos = terms.bound_nanos(terms.max_input_tokens, terms.max_output_tokens * call.choices)
        return None if nanos is None else nanos + call.surcharge_nanos


def _plausible(call: TokenCall, terms: TokenTerms, stated: TokenCounts) -> TokenCounts:
    """The counts, or ``NO_COUNTS`` if one is above what the models take or give."""
    input_tokens, output_tokens = stated.input_tokens or 0, stated.output_tokens or 0
    most_output = terms.max_output_tokens * call.choices
    if input_tokens <= terms.max_input_tokens and output_tokens <= most_output:
        return stated
    metrics.note(metrics.IMPLAUSIBLE, 1, "usage")
    log.warning(
        "usage above the model's most",
        model=call.model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    return NO_COUNTS


def _picture_tokens(call: TokenCall) -> int:
    """The most tokens of the pictures for any of the models."""
    return max(map(call.pictures.for_model, call.models))


def _input_parts(call: TokenCall, bound: Bound) -> dict[str, int]:
    """Divide the bound of the input into its parts, by name."""
    if call.window_filler is not None:
        return {call.window_filler: bound.input_tokens}
    pictures = min(bound.input_tokens, _picture_tokens(call))
    text = min(bound.input_tokens, call.text_bytes + PART_TOKENS * call.parts)
    return {
        "input text": text,
        "pictures": pictures,
        "a prompt that Venice adds": max(0, bound.input_tokens - text - pictures),
    }


def _usage(
    call: TokenCall, bound: Bound, metered: Metered, stated: TokenCounts, *, gives_output: bool
) -> tuple[Usage, CostSource]:
    """Return Venice's counts. A missing count is estimated: within the bound, and not below what
    may have been charged."""
    input_tokens, output_tokens = stated.input_tokens, stated.output_tokens
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
        capped = (bound.output_cap + call.thinking_tokens) * call.choices
        most_output = min(most_output, capped)
    if not output_tokens:
        counted = metered.counted_tokens
        output_tokens = most_output if counted is None else min(counted, most_output)
    usage = Usage(input_tokens=input_tokens or bound.input_tokens, output_tokens=output_tokens)
    return usage, CostSource.ESTIMATED


def _learn(call: TokenCall, bound: Bound, usage: Usage, catalog: Catalog) -> None:
    """Teach the catalogue how much Venice adds to this organization's prompts."""
    if bound.prompt_tokens is not None and bound.organization_id is not None:
        catalog.learn_overhead(
            call.model,
            bound.organization_id,
            usage.input_tokens - bound.prompt_tokens,
            with_prompt=bound.has_venice_prompt,
        )


def _nanos(call: TokenCall, terms: TokenTerms, input_tokens: int, output_tokens: int) -> int | None:
    """The most that a call with this output for each choice can cost; None if unknown."""
    if not call.has_price:
        return None
    nanos = terms.bound_nanos(input_tokens, output_tokens * call.choices)
    return None if nanos is None else nanos + call.surcharge_nanos


def relay_of(request: TokenRequest, inbound: Inbound, most_output: int | None) -> Relay:
    """Choose how the answer reaches the caller.

    :raises ClientError: for a plain call with end-to-end encryption, which has to be a stream.
    """
    if request.stream is True:
        return Relay.EVENTS
    if request.model.startswith(END_TO_END_ENCRYPTED):
        raise ClientError("stream: must be true for end-to-end encryption.", param="stream")
    most_output = most_output or inbound.settings.default_max_output_tokens
    return Relay.ASSEMBLED if most_output > LONG_OUTPUT_TOKENS else Relay.WHOLE


def end_user(request: TokenRequest) -> str | None:
    """Return the end user that the request names.

    :raises ClientError: when a name is too long.
    """
    first = ""
    for name in END_USER_FIELDS:
        value = getattr(request, name)
        if isinstance(value, str):
            check_end_user(value, name)
            first = first or value
    return first or None


class Reading(NamedTuple, Generic[R]):
    """A body that was read: ``json`` with the defaults of the caller's key."""

    json: body.JsonBody
    request: R
    facts: dict[str, Any]
    """The fields of :class:`TokenCall`."""


def read(inbound: Inbound, endpoint: TokenEndpoint[Any], shape: type[R]) -> Reading[R]:
    """Read a body by the endpoint's table. Members that Venice refuses are left out, and the
    key's ``venice_parameters`` are set where the call does not state them.

    :raises ClientError: naming the field and the rule.
    """
    json = body.read(inbound.content, endpoint.body_limits)
    # The value is an object, since the shape is one.
    request, members = body.convert(json.value, shape), json.value
    model, parameters = request.model, NO_MEMBERS
    if not PLAIN_NAME.fullmatch(model):
        plain, parameters = split_model(model)
        model = joined_model(plain, parameters)
    if not model.startswith(END_TO_END_ENCRYPTED):
        changes = _changes(members, inbound.settings, endpoint.table, model)
        if changes:
            json = json.edited(changes)
            request, members = body.convert(json.value, shape), json.value
    elif model != request.model:
        raise ClientError(f"model: must be spelled {model!r}.", param="model")
    asked, content = Asked(), Content()
    asked.read(members, endpoint.table)
    if parameters:
        asked.read_parameters_in_name(parameters)
    if endpoint.table is TEXT:
        for name in CONVERSATIONS:
            if conversation := members.get(name):
                content.read(conversation)
        for tool in content.tools:
            asked.read_tool("tools", tool)
    return Reading(json, request, _facts(endpoint, inbound, json, request, asked, content))


def _facts(
    endpoint: TokenEndpoint[Any],
    inbound: Inbound,
    json: body.JsonBody,
    request: TokenRequest,
    asked: Asked,
    content: Content,
) -> dict[str, Any]:
    maxima, parts, named = asked.maxima, 1, None
    if endpoint.needs_cap_member and endpoint.cap_member not in maxima:
        maxima = {}
    for name in WITH_PARTS:
        value = json.value.get(name)
        if isinstance(value, (list, dict)):
            parts += len(value)
    if request.safety_identifier or request.user or request.anon_user_id:
        named = end_user(request)
    highest = max(maxima, key=maxima.__getitem__, default=None)
    facts = {
        **inbound.facts(json),
        **asked.facts(),
        "endpoint": endpoint,
        "model": request.model,
        "end_user": named,
        "text_bytes": json.text_bytes - content.picture_bytes,
        "parts": parts,
        "pictures": content.pictures,
        "max_output_tokens": None if highest is None else maxima[highest],
        "output_field": highest or endpoint.cap_member or "",
        "venice_parameters": request.venice_parameters or NO_MEMBERS,
    }
    if content.is_unbounded and facts["window_filler"] is None:
        facts["window_filler"] = UNBOUNDED
    return facts


def _changes(
    members: Mapping[str, Any], settings: KeySettings, table: Table, model: str
) -> dict[str, Any]:
    """Return the changes to make before the body is bounded and priced."""
    changes = tolerate(members) if settings.tolerant and table is not DECISIONS else {}
    if model != members["model"]:
        changes["model"] = model
    if table is not TEXT:
        return changes
    if settings.venice_parameters:
        stated = members.get("venice_parameters") or NO_MEMBERS
        changes["venice_parameters"] = {**settings.venice_parameters, **stated}
    tools = members.get("tools") or ()
    if any(map(is_idle_search, tools)):
        live = [tool for tool in tools if not is_idle_search(tool)]
        changes["tools"] = live or msgspec.UNSET
        if not live:
            changes |= dict.fromkeys(OF_TOOLS, msgspec.UNSET)
    return changes
