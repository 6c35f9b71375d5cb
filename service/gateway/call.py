"""A paid call as its caller requested it, and the differences between the kinds of call."""

import abc
import enum
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

import msgspec

from service.accounts import Caller, KeySettings
from service.catalog import Catalog
from service.catalog.prices import Usage
from service.errors import ClientError, ServiceError
from service.formats import body as json_body
from service.formats import multipart
from service.gateway.assembly import Assembly
from service.ledger import Admission, CostSource, Limit
from service.telemetry import logs
from service.upstream import Metered, Venice

if TYPE_CHECKING:
    from typing import Self

PASSED_HEADERS: Final = (
    "x-venice-tee-client-pub-key",
    "x-venice-tee-model-pub-key",
    "x-venice-tee-signing-algo",
)
"""The headers of a caller that Venice gets."""
TAGS_HEADER: Final = "x-rialto-tags"
MAX_TAGS: Final = 10
TAG: Final = re.compile(r"([A-Za-z0-9_.-]{1,64})=([A-Za-z0-9_.:/@+-]{1,128})")
# The ledger can keep such a name, and no model has a longer one.
MODEL_NAME: Final = re.compile(r"[!-~]{1,256}")
END_USER_LENGTH: Final = 128
JSON: Final = "application/json"
JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json", re.ASCII | re.IGNORECASE)
EVENTS: Final = "text/event-stream"
TIMEOUT_HEADERS: Final = ("x-stainless-timeout", "x-stainless-read-timeout")
"""Headers in which SDKs state their timeout in seconds."""
SECONDS: Final = re.compile(r"\d{1,6}(?:\.\d{1,9})?", re.ASCII)


def parse_tags(stated: str) -> dict[str, str] | None:
    """Parse the caller's tags of a call: ``team=a,feature=b``; None where there are none.

    :raises ClientError: naming the header and the rule.
    """
    if not stated.strip():
        return None
    tags: dict[str, str] = {}
    for number, part in enumerate(stated.split(","), start=1):
        match = TAG.fullmatch(part.strip())
        if match is None or logs.redact(match[0]) != match[0]:
            raise ClientError(
                f"{TAGS_HEADER}: tag {number} is not name=value: a name of 1 to 64 letters, digits,"
                " _ . - and a value of 1 to 128 of these and : / @ + that is no key.",
                param=TAGS_HEADER,
            )
        if match[1] in tags:
            raise ClientError(f"{TAGS_HEADER}: {match[1]!r} is there twice.", param=TAGS_HEADER)
        tags[match[1]] = match[2]
    if len(tags) > MAX_TAGS:
        raise ClientError(f"{TAGS_HEADER}: at most {MAX_TAGS} tags.", param=TAGS_HEADER)
    return tags


def check_model(name: str, field: str = "model") -> str:
    """:raises ClientError: when no model can have this name."""
    if not MODEL_NAME.fullmatch(name):
        raise ClientError(
            f"{field}: must be 1 to 256 printable ASCII characters without spaces.", param=field
        )
    return name


def check_end_user(name: str, field: str) -> str:
    """:raises ClientError: when the name is too long."""
    if len(name) > END_USER_LENGTH:
        raise ClientError(f"{field}: must have at most {END_USER_LENGTH} characters.", param=field)
    return name


class Translation(Protocol):
    """Translates one answer of Venice's for a caller who speaks another API."""

    def whole(self, content: bytes) -> bytes:
        """Translate a plain answer.

        :raises UpstreamError: when it cannot be read.
        """

    def feed(self, chunk: bytes) -> bytes:
        """Take the next events of a stream, and return those that follow from them.

        :raises UpstreamError: when they cannot be read.
        """

    def end(self) -> bytes:
        """Return the events that follow from the end of the stream.

        :raises UpstreamError: when its last bytes are no event, or there was no answer in it.
        """

    def failure(self, error: ServiceError, stated: Mapping[str, Any]) -> bytes:
        """Return the events that end the stream with the error; none if it has ended.

        ``stated`` is the body that a response with the error would have.
        """


class Relay(enum.Enum):
    """How an answer reaches the caller."""

    WHOLE = "whole"
    """JSON that is read for its usage and then sent."""
    EVENTS = "events"
    """Server-sent events, passed on as they arrive and metered on their way."""
    PASSED = "passed"
    """Bytes that do not state their usage, passed on as they arrive."""
    ASSEMBLED = "assembled"
    """JSON that takes so long that Venice is asked for events, which are assembled here."""


class Upload:
    """A body that is passed on as it arrives, unread, and so can be sent only once.

    Venice's client replaces the service's own errors that ``chunks`` raise; ``error`` keeps the
    original. ``length_bytes`` is the length of the whole body, where that is known.
    """

    def __init__(self, chunks: AsyncIterator[bytes], length_bytes: int | None) -> None:
        self._chunks = chunks
        self.length_bytes = length_bytes
        self.is_begun = False
        self.is_whole = False
        self.error: ServiceError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.is_begun = True
        try:
            async for chunk in self._chunks:
                yield chunk
        except ServiceError as error:
            self.error = error
            raise
        self.is_whole = True


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a caller, read to its end. ``path`` is Venice's own, below ``/api/v1``."""

    content: bytes
    request_id: str
    headers: Mapping[str, str]
    upload: Upload | None = None
    """The body, where it is not in ``content``."""
    path: str = ""
    method: str = "POST"
    opened_by: str = ""
    """The entry of the operator's list that allows a path that Rialto does not know. The ledger
    keeps the entry, since the path may have any text."""
    settings: KeySettings = KeySettings()
    """Those of the caller's key."""

    @property
    def content_type(self) -> str:
        """The stated type of the body; JSON where none is stated."""
        return self.headers.get("Content-Type", JSON)

    def read_type(self, *, takes_form: bool = True) -> str:
        """The type that Venice gets for a body that was read here: a form's own, or plain JSON.

        :raises ClientError: when another type is stated, so that Venice could read it differently.
        """
        if takes_form and multipart.is_multipart(self.content_type):
            return self.content_type
        if not JSON_TYPE.fullmatch(self.content_type.partition(";")[0].strip()):
            types = f"{JSON} or {multipart.FORM}" if takes_form else JSON
            raise ClientError(f"Content-Type: must be {types}.", param="Content-Type")
        return JSON

    def facts(self, json: json_body.JsonBody | None = None) -> dict[str, Any]:
        """The fields of every call; ``json`` is the body, if it was read as JSON."""
        headers = self.headers
        passed: dict[str, str] = {}
        timeout_s = None
        for name in PASSED_HEADERS:
            if name in headers:
                passed[name] = headers[name]
        for name in TIMEOUT_HEADERS:
            if timeout_s is None and name in headers and SECONDS.fullmatch(headers[name]):
                timeout_s = float(headers[name])
        return {
            "request_id": self.request_id,
            "headers": passed,
            "tags": parse_tags(headers[TAGS_HEADER]) if TAGS_HEADER in headers else None,
            "timeout_s": timeout_s,
            "body": self.content if json is None else json.document.content,
            "document": None if json is None else json.document,
            "upload": self.upload,
        }


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a call can use. ``nanos`` is None where there is no price.

    ``output_cap`` is a maximum that is put into the body: the caller set none, or more than their
    limits can afford.
    """

    nanos: int | None
    tokens: int = 0
    input_tokens: int = 0
    prompt_tokens: int | None = None
    """The prompt alone, without what Venice adds; None where bytes do not bound it."""
    has_venice_prompt: bool = False
    organization_id: UUID | None = None
    """Whose call it is: what is learned of a prompt holds for its own calls alone."""
    output_cap: int | None = None


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a call could cost, and whether it would be admitted."""

    call: "Call"
    """The call as it would be sent."""
    bound: Bound
    limits: Sequence[Limit]
    refusal: ServiceError | None


class Cost(NamedTuple):
    """What a call used and cost, and the source of these numbers."""

    usage: Usage | None
    nanos: int | None
    source: CostSource


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of one endpoint. ``headers`` are those that are passed on to Venice."""

    is_priced_by_venice: ClassVar[bool] = False
    """Whether only Venice knows the price, so ``priced`` asks for it."""

    endpoint: "Endpoint[Any]"
    request_id: str
    model: str
    body: bytes
    headers: Mapping[str, str]
    document: json_body.Document | None = None
    """The body, where it was read as JSON."""
    upload: Upload | None = None
    tags: dict[str, str] | None = None
    """The caller's tags of the call, for reports."""
    end_user: str | None = None
    """The end user as the caller names them."""
    timeout_s: float | None = None
    """After how many seconds the caller gives up, where that is stated."""
    relay: Relay = Relay.WHOLE
    translation: Callable[[], Translation] | None = None
    """Makes what translates Venice's answer, where the caller speaks another API."""
    output_field: str = ""
    """The member that caps the output, by the name that the caller knows it by."""
    is_stream: bool = False
    content_type: str = JSON
    method: str = "POST"
    path: str = ""
    """Venice's path, where it is not the endpoint's own."""
    has_model: bool = True
    """Whether ``model`` names a model; false for operations that use none."""
    model_members: tuple[str, ...] = ("model",)
    """The body's members that name the model, where it does."""
    is_default_model: bool = False
    """Whether Venice takes a model of its own choice where it does not know the name."""
    requested_model: str | None = None
    """The name by which the caller asked for the model, where it is not the model's own."""
    surcharge_nanos: int = 0
    """The most that is charged beside the model's price."""
    has_price: bool = True
    """Whether the model's price is the price of the call."""
    unpriced: str | None = None
    """The member of the body that makes the price unknown, if one does."""
    fallbacks: tuple[str, ...] = ()
    """Other models that the body allows to answer."""
    other_models: tuple[str, ...] = ()
    """Names of models in places of the body where none is expected."""

    def __repr__(self) -> str:
        return f"<Call {self.request_id} {self.endpoint.path} {self.model}>"

    @property
    def model_name(self) -> str:
        """The model without its suffix, for logs and the ledger: a suffix may have any text."""
        return self.model.partition(":")[0]

    def for_model(self, name: str) -> "Self":
        """The same call to the model of this name, in the body too."""
        if name == self.model:
            return self
        content, document = self.body, self.document
        names = dict.fromkeys(self.model_members, name)
        if names and document is not None:
            document = document.edited(names)
            content = document.content
        elif names:
            content = multipart.set_texts(content, self.content_type, names)
        return msgspec.structs.replace(
            self,
            model=name,
            body=content,
            document=document,
            requested_model=self.requested_model or self.model_name,
        )

    def for_models(self, names: Sequence[str]) -> "Sequence[Call]":
        """The same call to each of these models, in the form that the model takes. Models that
        cannot serve it are left out.

        :raises ClientError: when no model can.
        """
        if names == (self.model,):
            return (self,)
        return [self.for_model(name) for name in names]

    def with_fallbacks(self, names: Sequence[str]) -> "Self":
        """The same call with its other models by these names, in the body too."""
        return self

    @property
    def max_output(self) -> int | None:
        """The most output the caller allows for one choice; None where they set nothing."""
        return None

    async def priced(self, venice: Venice) -> "Self":
        """The call with the price that only Venice knows.

        :raises UpstreamError: when Venice does not state it.
        """
        return self


C = TypeVar("C", bound=Call)


class Endpoint(abc.ABC, Generic[C]):
    """The differences between the kinds of call; the methods are called in this order."""

    path: ClassVar[str]
    """Venice's own path below ``/api/v1``; also the ledger's name for the kind of call."""
    model_type: ClassVar[str | None] = None
    """Venice's name for the type of its models; None where they may have several types."""
    reads_body: ClassVar[bool] = True
    """Whether the body is read here; if not, a large body is passed on unread."""
    body_limits: ClassVar[json_body.Limits] = json_body.LIMITS
    """How much a JSON body may hold."""
    request_type: ClassVar[Any] = Any
    """The members of a JSON body that are read here."""
    file_names: ClassVar[tuple[str, ...]] = ()
    """The names of a form's files. An endpoint without names accepts no form."""
    takes_json: ClassVar[bool] = True
    answer_types: ClassVar[tuple[str, ...]] = ("*/*",)
    """The media types of Venice's answers."""
    answer_member: ClassVar[str | None] = None
    """The member without which a plain JSON answer counts as an error."""
    may_state_error: ClassVar[bool] = False
    """Whether an answer that states an error is a valid answer, as in JSON-RPC."""
    is_known: ClassVar[bool] = True
    """Whether Rialto knows the endpoint, so that Venice's refusals concern the key."""
    is_inference: ClassVar[bool] = False
    """Whether a call that Venice was too busy for can be retried: it is charged after it ran."""

    @abc.abstractmethod
    def parse(self, inbound: Inbound) -> C:
        """:raises ClientError: when Venice would surely refuse the body."""

    @abc.abstractmethod
    def bound(self, call: C, caller: Caller, catalog: Catalog) -> Bound:
        """The most that the call can use."""

    def least(self, call: C, bound: Bound, caller: Caller, catalog: Catalog) -> Bound | None:
        """The bound with the least output to which the call may be cut; None if it may not be."""
        return None

    def cut(self, call: C, bound: Bound, granted: Admission, catalog: Catalog) -> Bound:
        """The bound with as much output as was granted, which is less than it asks for."""
        return bound

    def max_output_within(
        self, call: C, bound: Bound, nanos: int | None, tokens: int, catalog: Catalog
    ) -> int:
        """The most output tokens, for each choice, with which the call stays within the money and
        the tokens; 0 where no output fits, or where nothing caps it."""
        return 0

    def largest_part(self, call: C, bound: Bound, unit: str, catalog: Catalog) -> str | None:
        """Name the largest part of what the call needs of a limit of this unit; None if the need is
        not divided into parts."""
        return None

    def assembly(self) -> Assembly:
        """The assembly of a stream of events into the plain answer that the caller asked for. Only
        endpoints whose calls may be :attr:`Relay.ASSEMBLED` have one."""
        raise NotImplementedError

    @abc.abstractmethod
    def cost(self, call: C, bound: Bound, metered: Metered, catalog: Catalog) -> Cost:
        """What the call cost, by the best source; an estimate is never above the bound."""

    def max_nanos(self, call: C, bound: Bound, catalog: Catalog) -> int | None:
        """The most that any call of this kind to the model can cost."""
        return bound.nanos
