"""The Responses API.

A request may go to Venice in three forms: as it is, changed, or as a chat completion. Which one
depends on the model, too, so each model that may answer gets its own.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from service import responses
from service.errors import ClientError
from service.formats import body
from service.gateway.assembly import Assembly, Response
from service.gateway.call import EVENTS, JSON, Inbound
from service.gateway.endpoints.chat import CHAT
from service.gateway.endpoints.members import Count
from service.gateway.endpoints.tokens import (
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    must_be_readable,
    read,
    relay_of,
)
from service.gateway.reading import LARGE_BYTES

if TYPE_CHECKING:
    from typing import Self


class ResponsesRequest(TokenRequest, kw_only=True):
    """The members that are read here. All others are passed on."""

    input: str | list[dict[str, Any]]
    instructions: str | list[dict[str, Any]] | msgspec.UnsetType | None = msgspec.UNSET
    tool_choice: str | dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    max_output_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    text: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    include: list[str] | msgspec.UnsetType | None = msgspec.UNSET


class ResponsesForms:
    """The forms in which a request can go to Venice. Each is made once, and models of both kinds
    share the chat completion."""

    def __init__(self, inbound: Inbound, json: body.JsonBody, call: TokenCall) -> None:
        self._inbound = inbound
        self._json = json
        self._call = call
        self._mode = _mode(inbound)
        self._made: dict[bool, TokenCall | ClientError] = {}

    def of(self, *, is_native: bool) -> TokenCall:
        """The call for a model that Venice serves natively, or for one that it does not.

        :raises ClientError: naming the member that such a model cannot be asked for.
        """
        if is_native not in self._made:
            try:
                self._made[is_native] = self._make(is_native=is_native)
            except ClientError as error:
                self._made[is_native] = error
        made = self._made[is_native]
        if isinstance(made, ClientError):
            raise made
        return made

    def prepare(self) -> None:
        """Make the forms of a large body now and not in the event loop, which it would hold up.
        A refusal waits for the model that answers, since the name may stand for others."""
        for is_native in (True, False):
            with contextlib.suppress(ClientError):
                form = self.of(is_native=is_native)
                if form.document is not None:
                    form.document.locate()

    def _make(self, *, is_native: bool) -> TokenCall:
        members = self._json.members
        plan = responses.plan(members, self._findings, is_native_model=is_native, mode=self._mode)
        is_changed = bool(plan.changes) or plan.served is responses.Served.CHAT
        if is_changed and self._call.is_end_to_end_encrypted:
            raise ClientError(
                f"{plan.field}: this endpoint cannot pass it to a model with end-to-end encryption,"
                " whose body is never changed. Use chat completions.",
                param=plan.field,
            )
        if plan.served is responses.Served.CHAT:
            return self._chat
        translation = functools.partial(responses.PassedAnswer, responses.repeated(members))
        call = msgspec.structs.replace(self._call, translation=translation)
        if plan.mode is not None:
            headers = {**call.headers, responses.MODE_HEADER: plan.mode}
            call = msgspec.structs.replace(call, headers=headers)
        if not plan.changes:
            return call
        content = self._json.document.edited(plan.changes).content
        changed = msgspec.structs.replace(self._inbound, content=content)
        _, _, facts = read(changed, RESPONSES, ResponsesRequest)
        return msgspec.structs.replace(call, **facts | {"headers": call.headers})

    @functools.cached_property
    def _findings(self) -> Sequence[responses.RuledMember]:
        return list(responses.findings(self._json.members))

    @functools.cached_property
    def _chat(self) -> TokenCall:
        chat, context = responses.chat_body(self._json.members)
        content = msgspec.json.encode(chat)
        call = CHAT.parse(msgspec.structs.replace(self._inbound, content=content))
        return msgspec.structs.replace(
            call,
            relay=self._call.relay,
            output_field=self._call.output_field,
            translation=functools.partial(responses.ChatAnswer, context),
        )


class ResponsesCall(TokenCall, frozen=True, kw_only=True):
    """A request for a response that has no form yet."""

    forms: ResponsesForms

    def for_models(self, names: Sequence[str]) -> Sequence[TokenCall]:
        """See :meth:`Call.for_models`."""
        calls: list[TokenCall] = []
        refusal: ClientError | None = None
        for name in names:
            if not self.is_end_to_end_encrypted:
                must_be_readable(name, "model")
            try:
                call = self.forms.of(is_native=responses.is_native(name))
            except ClientError as error:
                refusal = refusal or error
            else:
                calls.append(call.with_fallbacks(self.fallbacks).for_model(name))
        if refusal is not None and not calls:
            raise refusal
        return calls

    def with_fallbacks(self, names: Sequence[str]) -> "Self":
        """See :meth:`Call.with_fallbacks`. The body has them once it has a form."""
        return msgspec.structs.replace(self, fallbacks=tuple(names))


class ResponsesEndpoint(TokenEndpoint[TokenCall]):
    """``POST /responses``: a response, streamed or not. Venice stores nothing."""

    path = "/responses"
    answer_member = "output"
    model_type = "text"
    request_type = ResponsesRequest
    answer_types = (JSON, EVENTS)
    cap_member = "max_output_tokens"
    needs_cap_member = True

    def parse(self, inbound: Inbound) -> ResponsesCall:
        """:raises ClientError: when Venice would certainly refuse a member."""
        json, request, facts = read(inbound, self, ResponsesRequest)
        is_stream = request.stream is True
        relay = relay_of(request, inbound, facts["max_output_tokens"])
        call = TokenCall(**facts, is_stream=is_stream, relay=relay)
        forms = ResponsesForms(inbound, json, call)
        if len(inbound.content) > LARGE_BYTES:
            forms.prepare()
        return ResponsesCall(**facts, is_stream=is_stream, relay=relay, forms=forms)

    def assembly(self) -> Assembly:
        """See :meth:`Endpoint.assembly`."""
        return Response()


def _mode(inbound: Inbound) -> str | None:
    """:raises ClientError: when the header states no mode."""
    mode = inbound.headers.get(responses.MODE_HEADER)
    if mode is not None and mode not in responses.MODES:
        raise ClientError(
            f"{responses.MODE_HEADER}: must be one of {', '.join(responses.MODES)}.",
            param=responses.MODE_HEADER,
        )
    return mode


RESPONSES: Final = ResponsesEndpoint()
