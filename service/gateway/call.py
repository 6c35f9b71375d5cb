"""A paid call, as it was asked for, and what the kinds of call differ in."""

import enum
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, TypeVar
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
"""What of a caller's headers Venice gets."""
TAGS_HEADER: Final = "x-rialto-tags"
MOST_TAGS: Final = 10
TAG: Final = re.compile(r"([A-Za-z0-9_.-]{1,64})=([A-Za-z0-9_.:/@+-]{1,128})")
# What the books can take, and more than any model is called.
MODEL_NAME: Final = re.compile(r"[!-~]{1,256}")
END_USER_LENGTH: Final = 128
JSON: Final = "application/json"
JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json", re.ASCII | re.IGNORECASE)
EVENTS: Final = "text/event-stream"
TIMEOUT_HEADERS: Final = ("x-stainless-timeout", "x-stainless-read-timeout")
"""In which SDKs say for how many seconds they wait."""
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
            raise ClientError(f"{TAGS_HEADER}: {match[1]} is there twice.", param=TAGS_HEADER)
        tags[match[1]] = match[2]
    if len(tags) > MOST_TAGS:
        raise ClientError(f"{TAGS_HEADER}: at most {MOST_TAGS} tags.", param=TAGS_HEADER)
    return tags


def parse_timeout_s(headers: Mapping[str, str]) -> float | None:
    """After how many seconds the caller gives up, where their SDK says so in numbers."""
    for name in TIMEOUT_HEADERS:
        if SECONDS.fullmatch(stated := headers.get(name, "")):
            return float(stated)
    return None


def check_model(name: str, field: str = "model") -> str:
    """:raises ClientError: when no model can be called so."""
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


class Relay(enum.Enum):
    """How an answer reaches the caller."""

    WHOLE = "whole"
    """JSON that is read for its usage and then sent."""
    EVENTS = "events"
    """Server-sent events, passed on as they come and read on their way."""
    PASSED = "passed"
    """Bytes that say nothing of usage, passed on as they come."""
    ASSEMBLED = "assembled"
    """JSON that takes so long that Venice is asked for events, which are put together."""


class Upload:
    """A body that nothing here reads: it is passed on as it arrives, and so can be sent once.

    ``chunks`` raise the service's own errors, of which Venice's client would make another one:
    ``error`` keeps it. ``length_bytes`` is how many bytes they have together, where that is known.
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
    """The operator's entry that opens the path, where it is none that Rialto knows. The books keep
    the entry, since the path may have any text."""
    settings: KeySettings = KeySettings()
    """Those of the caller's key."""

    @property
    def content_type(self) -> str:
        """What the body is said to be; JSON where nothing is said."""
        return self.headers.get("Content-Type", JSON)

    def read_type(self, *, takes_form: bool = True) -> str:
        """What Venice is told of a body that was read here: a form's own type, or plain JSON.

        :raises ClientError: when it is said to be neither, and so could be read otherwise there.
        """
        if takes_form and multipart.is_multipart(self.content_type):
            return self.content_type
        if not JSON_TYPE.fullmatch(self.content_type.partition(";")[0].strip()):
            types = f"{JSON} or {multipart.FORM}" if takes_form else JSON
            raise ClientError(f"Content-Type: must be {types}.", param="Content-Type")
        return JSON

    def facts(self, json: json_body.JsonBody | None = None) -> dict[str, Any]:
        """What every call takes over; ``json`` is the body, if it was read as that."""
        return {
            "request_id": self.request_id,
            "headers": {
                name: self.headers[name] for name in PASSED_HEADERS if name in self.headers
            },
            "tags": parse_tags(self.headers[TAGS_HEADER]) if TAGS_HEADER in self.headers else None,
            "timeout_s": parse_timeout_s(self.headers),
            "body": self.content if json is None else json.content,
            "document": None if json is None else json.document,
            "upload": self.upload,
        }


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a call can use. ``nanos`` is None where there is no price.

    ``output_cap`` is a maximum that is put into the body: the caller set none, or more than their
    limits afford. Where a call may be cut down to what they do, ``least_nanos`` and
    ``least_tokens`` are the least that is worth a call.
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
    least_nanos: int | None = None
    least_tokens: int | None = None


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a call could cost, and what admission would say to it."""

    call: "Call"
    """As it would be made."""
    bound: Bound
    limits: Sequence[Limit]
    refusal: ServiceError | None


class Cost(NamedTuple):
    """What a call used, and where that is known from."""

    usage: Usage | None
    nanos: int | None
    source: CostSource


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of one endpoint. ``headers`` are those that are passed on to Venice."""

    endpoint: "Endpoint[Any]"
    request_id: str
    model: str
    body: bytes
    headers: Mapping[str, str]
    document: json_body.Document | None = None
    """The body, where it was read as JSON."""
    upload: Upload | None = None
    tags: dict[str, str] | None = None
    """The caller's own words for the call, for reports."""
    end_user: str | None = None
    """The end user as the caller names them."""
    timeout_s: float | None = None
    """After how many seconds the caller gives up, where they say so."""
    relay: Relay = Relay.WHOLE
    output_field: str = ""
    """The member that caps the output, by the name that the caller knows it by."""
    is_stream: bool = False
    content_type: str = JSON
    method: str = "POST"
    path: str = ""
    """Where it is not the endpoint's own."""
    has_model: bool = True
    """Whether ``model`` is the name of one, and not of what is done without any."""
    model_members: tuple[str, ...] = ("model",)
    """The body's members that name the model, where it does."""
    is_default_model: bool = False
    """Whether Venice takes a model of its own choice where it does not know the name."""
    requested_model: str | None = None
    """By which name the caller asked for the model, where that is not its own."""
    surcharge_nanos: int = 0
    """What is charged beside the model's price, at most."""
    has_price: bool = True
    """Whether the model's price is that of the call."""
    unpriced: str | None = None
    """The member of the body for which it is not, where it is one."""
    fallbacks: tuple[str, ...] = ()
    """Other models that the body allows to answer."""
    other_models: tuple[str, ...] = ()
    """Names of models that the body has in places where none is expected."""

    def __repr__(self) -> str:
        return f"<Call {self.request_id} {self.endpoint.path} {self.model}>"

    @property
    def model_name(self) -> str:
        """The model without a suffix, which may have any text: this is what is logged and kept."""
        return self.model.partition(":")[0]

    @property
    def upstream_path(self) -> str:
        """Where Venice takes the call, below ``/api/v1``."""
        return self.path or self.endpoint.path

    def for_model(self, name: str) -> "Self":
        """The same call to the model of this name, which the body then says too."""
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

    def with_fallbacks(self, names: Sequence[str]) -> "Self":
        """The same call with its other models by these names, in the body too."""
        return self

    @property
    def max_output(self) -> int | None:
        """The most output the caller allows for one choice; None where they set nothing."""
        return None

    async def priced(self, venice: Venice) -> "Self":
        """The call with what only Venice knows of its price.

        :raises UpstreamError: when Venice does not say.
        """
        return self


C = TypeVar("C", bound=Call)


class Endpoint(Generic[C]):
    """What the kinds of call differ in; the methods are called in the order they stand."""

    path: ClassVar[str]
    """Venice's own path below ``/api/v1``; also the ledger's name for the kind of call."""
    model_type: ClassVar[str | None] = None
    """Of which type its models are, by Venice's name for it; None where they may be of several."""
    reads_body: ClassVar[bool] = True
    """Whether anything here depends on the body; where not, a large one is passed on unread."""
    body_limits: ClassVar[json_body.Limits] = json_body.LIMITS
    """How much a JSON body may hold."""
    request_type: ClassVar[Any] = Any
    """What of a JSON body is read here."""
    file_names: ClassVar[tuple[str, ...]] = ()
    """What the files of a form are called; a form is taken where there are any."""
    takes_json: ClassVar[bool] = True
    answer_types: ClassVar[tuple[str, ...]] = ("*/*",)
    """The media types of Venice's answers."""
    answer_member: ClassVar[str | None] = None
    """What a plain JSON answer has to have to be one."""
    may_state_error: ClassVar[bool] = False
    """Whether an answer that states an error is one, as in JSON-RPC."""
    is_known: ClassVar[bool] = True
    """Whether it is known what Venice does there, and so what its refusals say of a key."""
    is_inference: ClassVar[bool] = False
    """Whether a call that Venice was too busy for can be repeated: it is charged after it ran."""

    def parse(self, inbound: Inbound) -> C:
        """:raises ClientError: when Venice would surely refuse the body."""
        raise NotImplementedError

    def bound(self, call: C, caller: Caller, catalog: Catalog) -> Bound:
        """The most that the call can use."""
        raise NotImplementedError

    def cut(self, call: C, bound: Bound, granted: Admission, catalog: Catalog) -> Bound:
        """The bound with as much output as was granted."""
        return bound

    def max_output_within(
        self, call: C, bound: Bound, nanos: int | None, tokens: int, catalog: Catalog
    ) -> int:
        """The most tokens of output, for each choice, with which the call stays within so much
        money and so many tokens; 0 where there are none, or where nothing caps the output."""
        return 0

    def assembly(self) -> Assembly:
        """What puts a stream of events together, where a plain answer is asked for that way."""
        raise NotImplementedError

    def cost(self, call: C, bound: Bound, metered: Metered, catalog: Catalog) -> Cost:
        """What the call cost, from the best source there is; an estimate is never above the
        bound."""
        raise NotImplementedError

    def most_nanos(self, call: C, bound: Bound, catalog: Catalog) -> int | None:
        """The most that any call of the model, or of what is asked for, can cost."""
        return bound.nanos
