"""The content blocks of a request. Each is decoded by its type; see :func:`read_block`."""

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from service.errors import ClientError
from service.formats import body

Json = dict[str, Any]

MAX_DEPTH: Final = 16
"""Blocks within blocks are read for their text to this depth."""


class Text(Struct, tag="text"):
    """Plain text."""

    text: str
    cache_control: Any = None


class Base64Source(Struct, tag="base64"):
    """A file's content."""

    media_type: str
    data: str

    @property
    def url(self) -> str:
        """The content as a data URL."""
        return f"data:{self.media_type};base64,{self.data}"


class UrlSource(Struct, tag="url"):
    """The address of a file."""

    url: str


class TextSource(Struct, tag="text"):
    """A document of plain text."""

    data: str


class StoredSource(Struct, tag="file"):
    """A file that is stored at Anthropic."""

    file_id: str


class Image(Struct, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource | StoredSource
    cache_control: Any = None


class PartsSource(Struct, tag="content"):
    """A document of texts and pictures."""

    content: str | list[Text | Image]


class Document(Struct, tag="document"):
    """A document, such as a PDF."""

    source: Base64Source | UrlSource | TextSource | PartsSource | StoredSource
    title: str | None = None
    context: str | None = None
    cache_control: Any = None


class ToolUse(Struct, tag="tool_use"):
    """A call of a tool by the model."""

    id: str
    name: str
    input: Raw


class ToolResult(Struct, tag="tool_result"):
    """The result of a tool."""

    tool_use_id: str
    content: str | list[Raw] | None = None
    is_error: bool | None = None
    cache_control: Any = None


class Thinking(Struct, tag="thinking"):
    """The model's thinking."""

    thinking: str
    signature: str = ""


class RedactedThinking(Struct, tag="redacted_thinking"):
    """Encrypted thinking, which no other model can read."""


class Other(Struct):
    """A block of another type, with its text as far as it has one."""

    type: str
    text: str


Block = Text | Image | Document | ToolUse | ToolResult | Thinking | RedactedThinking | Other
KINDS: Final[tuple[Any, ...]] = (
    Text,
    Image,
    Document,
    ToolUse,
    ToolResult,
    Thinking,
    RedactedThinking,
)


class _Head(Struct):
    type: str


_HEAD: Final = msgspec.json.Decoder(_Head)
_DECODERS: Final = {kind.__struct_config__.tag: msgspec.json.Decoder(kind) for kind in KINDS}


def read_block(content: Raw, field: str) -> Block:
    """Decode a block, which is at ``field`` in the request.

    :raises ClientError: naming the field and the rule.
    """
    try:
        kind = _HEAD.decode(content).type
        decoder = _DECODERS.get(kind)
        if decoder is None:
            return Other(kind, text_of(msgspec.json.decode(content)))
        block: Block = decoder.decode(content)
    except msgspec.ValidationError as error:
        found = body.at_fault(str(error))
        separator = "" if (found.param or "[").startswith("[") else "."
        path = f"{field}{separator}{found.param or ''}"
        rule = found.message.removeprefix(f"{found.param}: ")
        raise ClientError(f"{path}: {rule}", param=path) from None
    return block


def text_of(block: Json, depth: int = 0) -> str:
    """The text of a block of any type, such as the titles and addresses of search results; empty if
    it has none. ``depth`` is how deep the block is within another."""
    if depth > MAX_DEPTH:
        return ""
    if isinstance(text := block.get("text"), str):
        return text
    lines = [block[name] for name in ("title", "source", "url") if isinstance(block.get(name), str)]
    content = block.get("content")
    if isinstance(content, str):
        lines.append(content)
    elif isinstance(content, dict):
        lines.append(text_of(content, depth + 1))
    elif isinstance(content, list):
        lines += [text_of(part, depth + 1) for part in content if isinstance(part, dict)]
    if block.get("type") == "tool_reference" and isinstance(name := block.get("tool_name"), str):
        lines.append(f"The tool {name} is available.")
    return "\n".join(filter(None, lines))
