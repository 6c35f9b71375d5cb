"""Queries of URLs, read by the msgspec types that describe them in ``GET /openapi.json``."""

import abc
import contextlib
import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, TypeVar, cast
from uuid import UUID

import msgspec
from msgspec import inspect

from service.api.requests import Request
from service.errors import ClientError
from service.formats.body import at_fault
from service.formats.parsing import parse_moment, parse_whole

Q = TypeVar("Q", bound=msgspec.Struct)

PAGE: Final = 100
MAX_A_PAGE: Final = 1000
Json = dict[str, Any]

PageLimit = Annotated[int, msgspec.Meta(ge=1, le=MAX_A_PAGE)]
Text = Annotated[
    str, msgspec.Meta(pattern=r"^[^\x00]*$", description="Must not have NUL characters.")
]
"""A text that the database is asked for, so it has no NUL."""


class QueryValue(abc.ABC):
    """A value with a grammar of its own. ``schema`` describes it, ``__init__`` parses it.

    :raises ValueError: with the rule that the text breaks.
    """

    schema: ClassVar[Json]

    @abc.abstractmethod
    def __init__(self, text: str) -> None:
        """Parse the text."""


class OptionalId(QueryValue):
    """A UUID. An empty one counts as absent."""

    schema: ClassVar[Json] = {
        "type": "string",
        "pattern": "^$|^[0-9A-Fa-f]{32}$|^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$",
    }

    def __init__(self, text: str) -> None:
        self.id: UUID | None = None
        if text:
            try:
                self.id = msgspec.convert(text, UUID)
            except msgspec.ValidationError:
                raise ValueError("must be a UUID") from None


class Moment(QueryValue):
    """The start of a day in UTC, or a time with its zone."""

    schema: ClassVar[Json] = {
        "type": "string",
        "examples": ["2026-11-01", "2026-11-01T08:00:00Z"],
    }

    def __init__(self, text: str) -> None:
        # A plus sign that was not encoded arrives as a space.
        self.at: datetime = parse_moment(text.replace(" ", "+"))


class Tag(QueryValue):
    """A tag's name and value. An empty one counts as absent."""

    schema: ClassVar[Json] = {
        "type": "string",
        "pattern": r"^$|^[^=\x00]+=[^\x00]+$",
        "examples": ["team=a"],
    }

    def __init__(self, text: str) -> None:
        self.pair: tuple[str, str] | None = None
        if text:
            name, _, value = text.partition("=")
            if not (name and value):
                raise ValueError("must be name=value")
            if "\0" in text:
                raise ValueError("must not have NUL characters")
            self.pair = name, value


class PageQuery(msgspec.Struct, kw_only=True):
    """The page size, and the id after which the page starts: ``next`` of the page before."""

    limit: PageLimit = PAGE
    after: OptionalId | msgspec.UnsetType = msgspec.UNSET

    @property
    def after_id(self) -> UUID | None:
        return id_of(self.after)


def id_of(stated: OptionalId | msgspec.UnsetType) -> UUID | None:
    """The id that was stated, or None."""
    return None if stated is msgspec.UNSET else stated.id


def text_of(stated: str | msgspec.UnsetType) -> str | None:
    """The text that was stated, or None."""
    return None if stated is msgspec.UNSET else stated


def read_query(request: Request, shape: type[Q]) -> Q:
    """Read the query as ``shape``. Parameters that ``shape`` does not have are ignored; of a
    parameter that is there twice the first counts.

    :raises ClientError: naming the parameter and its rule.
    """
    return read_fields(request.query, shape)


def read_fields(fields: Mapping[str, str], shape: type[Q]) -> Q:
    """Read texts by name, of a query or of a form, as ``shape``.

    :raises ClientError: naming the field and its rule.
    """
    kinds = _kinds(shape)
    stated: dict[str, Any] = {}
    for name, kind in kinds.items():
        text = fields.get(name)
        if text is not None:
            is_number = isinstance(kind, inspect.IntType)
            stated[name] = _number(name, text, kind) if is_number else text
    try:
        return msgspec.convert(stated, shape, strict=False, dec_hook=_parse)
    except msgspec.ValidationError as error:
        fault = at_fault(str(error))
        name = fault.param or ""
        rule = _rule(kinds[name]) if name in kinds else None
        raise (_refusal(name, rule) if rule else fault) from None


def schema_of(kind: type) -> Json:
    """The JSON schema of a :class:`QueryValue`, for msgspec's ``schema_hook``."""
    if issubclass(kind, QueryValue):
        return kind.schema
    # msgspec asks for this error where a hook does not know the type.
    raise NotImplementedError


def _parse(kind: type, text: Any) -> Any:
    """msgspec's ``dec_hook``. A ValueError becomes a ValidationError with the parameter's name."""
    if issubclass(kind, QueryValue):
        return kind(text)
    # See schema_of.
    raise NotImplementedError


@functools.cache
def _kinds(shape: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """The type of each parameter, without its annotations."""
    info = cast(inspect.StructType, inspect.type_info(shape))
    kinds = {field.encode_name: field.type for field in info.fields}
    return {
        name: kind.type if isinstance(kind, inspect.Metadata) else kind
        for name, kind in kinds.items()
    }


def _number(name: str, text: str, kind: inspect.Type) -> int:
    """A whole number in digits alone. msgspec also takes ``5.0`` and ``1e1``."""
    with contextlib.suppress(ValueError):
        return parse_whole(text)
    raise _refusal(name, _rule(kind) or "must be a whole number")


def _refusal(name: str, rule: str) -> ClientError:
    return ClientError(f"{name}: {rule}.", param=name)


def _rule(kind: inspect.Type) -> str | None:
    """The rule of a type in plain words; None where it has none but msgspec's."""
    match kind:
        case inspect.IntType(ge=low, le=high):
            return f"must be from {low} to {high}"
        case inspect.LiteralType(values=values):
            return f"must be one of {', '.join(map(str, values))}"
        case inspect.StrType(pattern=str()):
            return "must not have NUL characters"
        case _:
            return None
