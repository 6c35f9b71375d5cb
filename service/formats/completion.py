"""Reads Venice's chat completions, whole and in chunks, for every translation of them.

Models and providers differ: a member is null or missing, a number is a text, a text is an object or
a list of parts. Such a member is converted or ignored, and the rest is kept. Only the members that
make up the answer must be readable: choices, their texts and their tool calls.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from service.errors import UpstreamError
from service.formats import surrogates
from service.formats.lenient import NEEDED, Lenient, MemberError, read_by
from service.formats.sse import BYTE_ORDER_MARK

Json = dict[str, Any]
Count = Annotated[int, Meta(ge=0, le=2**53)]
MARK: Final = re.compile(r"\^(\d{1,3}(?:\s*,\s*\d{1,3})*)\^")
"""How a model cites search results: ``^1^`` or ``^1,3^``, counted from 1."""


def _read_content(value: Any) -> str:
    """Return a text, or the joined texts of a list of parts.

    :raises TypeError: when it is neither.
    """
    if isinstance(value, list):
        return "".join(_read_content(part) for part in value if not _is_other_part(part))
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TypeError("is not a text")
    return text


def _is_other_part(part: Any) -> bool:
    """Whether a part of a content is not a text, such as a picture."""
    return part is None or (isinstance(part, dict) and "text" not in part)


def _read_arguments(value: Any) -> str:
    """Return the arguments of a tool call as JSON, which some models give as an object.

    :raises TypeError: when they are neither a text nor an object.
    """
    if isinstance(value, dict):
        return surrogates.encode(value).decode()
    if not isinstance(value, str):
        raise TypeError("is neither a text nor an object")
    return value


def _read_objects(value: Any) -> list[Json]:
    """Return the objects of a list, and leave everything else out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


Text = str | None
Objects = Annotated[list[Json] | None, read_by(_read_objects)]


class Function(Struct):
    """The function that a model calls, or a piece of it."""

    name: Text = None
    arguments: Annotated[Text, read_by(_read_arguments)] = None
    """JSON, or a piece of it."""


class ToolCall(Struct):
    """A tool call, or a piece of one. See :class:`ToolCallNumbers` for what a piece belongs to."""

    index: Annotated[int | None, NEEDED] = None
    id: Text = None
    function: Function | None = None

    @property
    def name(self) -> str:
        """The function's name; empty if this piece does not have it."""
        return (self.function and self.function.name) or ""

    @property
    def arguments(self) -> str:
        """The arguments, or a piece of them."""
        return (self.function and self.function.arguments) or ""


class AssistantMessage(Struct):
    """A message of the model, or a piece of one."""

    content: Annotated[Text, read_by(_read_content)] = None
    refusal: Text = None
    reasoning_content: Text = None
    reasoning: Text = None
    """What some models call ``reasoning_content``."""
    reasoning_details: Objects = None
    reasoning_encrypted: Any = None
    thought_signature: Text = None
    annotations: Objects = None
    tool_calls: Annotated[list[ToolCall] | None, NEEDED] = None

    @property
    def thought(self) -> str:
        """The text of the model's reasoning."""
        return self.reasoning_content or self.reasoning or ""


class Choice(Struct):
    """A choice of a completion: with a message if it is whole, with a delta if it is a chunk."""

    index: Annotated[int, NEEDED] = 0
    message: Annotated[AssistantMessage | None, NEEDED] = None
    delta: Annotated[AssistantMessage | None, NEEDED] = None
    finish_reason: Text = None
    logprobs: Json | None = None


class PromptDetails(Struct):
    """How many tokens of the prompt were read from the cache and written to it."""

    cached_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class CompletionDetails(Struct):
    """How many tokens of the output were reasoning."""

    reasoning_tokens: Count | None = None


class Usage(Struct):
    """The tokens that Venice counted. Cached tokens are part of the prompt's."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were read from the cache."""
        details = self.prompt_tokens_details or PromptDetails()
        return details.cached_tokens or self.cache_read_input_tokens or 0

    @property
    def cache_write_tokens(self) -> int:
        """Tokens of the prompt that were written to the cache."""
        details = self.prompt_tokens_details or PromptDetails()
        return details.cache_creation_input_tokens or self.cache_creation_input_tokens or 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the output that were reasoning."""
        details = self.completion_tokens_details or CompletionDetails()
        return details.reasoning_tokens or 0


class VeniceAnswer(Struct):
    """Venice's own members of an answer."""

    web_search_citations: Objects = None


class Completion(Struct):
    """A chat completion, or a chunk of one."""

    id: Text = None
    created: Count | None = None
    model: Text = None
    choices: Annotated[list[Choice], NEEDED] = []
    usage: Usage | None = None
    venice_parameters: VeniceAnswer | None = None
    error: Any = None

    @property
    def citations(self) -> list[Json]:
        """The search results that Venice states."""
        return (self.venice_parameters and self.venice_parameters.web_search_citations) or []


# Built once, since every chunk needs them.
_DECODER: Final = msgspec.json.Decoder(Completion)
_COMPLETION: Final = Lenient(Completion)
_CHOICE: Final = Lenient(Choice)


def decode(content: bytes) -> Completion:
    """Decode a completion or a chunk. JSON that is not an object holds nothing of an answer. Halves
    of surrogate pairs stay in the texts; see :mod:`service.formats.surrogates`.

    :raises UpstreamError: when it is not JSON, or a needed member is malformed.
    """
    try:
        return _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    value = decode_json(content)
    try:
        return _COMPLETION.convert(value) if isinstance(value, dict) else Completion()
    except MemberError as error:
        raise UpstreamError(f"Venice's answer cannot be read: {error}.") from None


def decode_json(content: bytes) -> Any:
    """Decode JSON of any shape. Halves of surrogate pairs stay in the texts.

    :raises UpstreamError: when it is not JSON, or is nested too deeply.
    """
    try:
        return surrogates.decode(content.removeprefix(BYTE_ORDER_MARK), Any)
    except msgspec.DecodeError as error:
        raise UpstreamError("Venice's answer is not readable JSON.") from error


def read_choices(values: Any) -> Iterator[tuple[Json, Choice]]:
    """Read decoded ``choices``. Yields each as it came, and as it was read.

    :raises UpstreamError: when they are not a list of objects, or a needed member is malformed.
    """
    if not isinstance(values, list):
        raise UpstreamError("Venice's answer cannot be read: choices has the wrong type.")
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            choice = _CHOICE.convert(value)
        except msgspec.ValidationError as error:
            where = f"choices[{index}]"
            text = error.within(where) if isinstance(error, MemberError) else f"{where} {error}"
            raise UpstreamError(f"Venice's answer cannot be read: {text}.") from None
        yield value, choice


def cited(text: str, results: Sequence[Json]) -> Iterator[tuple[re.Match[str], int]]:
    """Yield each mark in a text that names a search result, with the index of the result."""
    for mark in MARK.finditer(text) if results else ():
        for number in map(int, mark[1].split(",")):
            if 1 <= number <= len(results):
                yield mark, number - 1


class ToolCallNumbers:
    """Finds the call that a piece of a streamed tool call belongs to.

    Calls are numbered from 0 in the order in which they begin. A new id begins a new call, even if
    its index is taken, because some providers send every call with index 0. A piece without an id
    belongs to the latest call of its index. A piece with neither belongs to the latest call, unless
    it has a name and that call has one too.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}
        self._has_id: list[bool] = []
        self._has_name: list[bool] = []

    def number_of(self, piece: ToolCall) -> int:
        """Return the number of the piece's call, which may be new."""
        number = self._find(piece)
        if number is None:
            number = len(self._has_id)
            self._has_id.append(False)
            self._has_name.append(False)
        if piece.id:
            self._has_id[number] = True
            self._by_id[piece.id] = number
        if piece.index is not None:
            self._by_index[piece.index] = number
        self._has_name[number] |= bool(piece.name)
        return number

    def _find(self, piece: ToolCall) -> int | None:
        if piece.id and piece.id in self._by_id:
            return self._by_id[piece.id]
        if piece.index is not None:
            latest = self._by_index.get(piece.index)
        else:
            latest = len(self._has_id) - 1 if self._has_id else None
        if latest is None:
            return None
        has_name_already = bool(piece.name) and self._has_name[latest]
        if piece.id:
            # An id may come later than the name, but a call has only one.
            is_next = self._has_id[latest] or has_name_already
        else:
            is_next = piece.index is None and has_name_already
        return None if is_next else latest
