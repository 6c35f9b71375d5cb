"""Translates requests of Anthropic's Messages API into requests for chat completions."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.errors import ClientError
from service.formats import body

END_USER_LENGTH: Final = 128
"""A longer name of an end user is replaced by its digest. Claude Code sends longer ones."""
MAX_STOP_SEQUENCES: Final = 4
IMAGE_TOKENS: Final = 1_600
"""The tokens of a large picture at Anthropic."""
BYTES_PER_TOKEN: Final = 4
KEPT_REASONING: Final = ("reasoning_details", "thought_signature")
"""Members that a model needs back unchanged. The signature of a block of thinking carries them."""

Json = dict[str, Any]


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


class Image(Struct, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource
    cache_control: Any = None


class Document(Struct, tag="document"):
    """A document, such as a PDF."""

    source: Base64Source | UrlSource | TextSource
    title: str | None = None
    cache_control: Any = None


class ToolUse(Struct, tag="tool_use"):
    """A call of a tool by the model."""

    id: str
    name: str
    input: Raw


class ToolResult(Struct, tag="tool_result"):
    """The result of a tool."""

    tool_use_id: str
    content: str | list[Text | Image | Document] | None = None
    is_error: bool | None = None


class Thinking(Struct, tag="thinking"):
    """The model's thinking."""

    thinking: str
    signature: str = ""


class RedactedThinking(Struct, tag="redacted_thinking"):
    """Encrypted thinking, which no other model can read."""


Block = Text | Image | Document | ToolUse | ToolResult | Thinking | RedactedThinking


class Message(Struct):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks."""
        return [Text(self.content)] if isinstance(self.content, str) else self.content


class Tool(Struct):
    """A tool that the model may call."""

    name: str
    type: str | None = "custom"
    description: str | None = None
    input_schema: Raw | UnsetType = UNSET


class ToolChoice(Struct):
    """Which tools the model must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Struct):
    """Whether the model should think."""

    type: Literal["enabled", "disabled", "adaptive"]


class Metadata(Struct):
    """The end user."""

    user_id: str | None = None


class OutputFormat(Struct):
    """The JSON schema of the answer."""

    type: Literal["json_schema"]
    schema: Raw


class OutputConfig(Struct):
    """The effort and the format of the answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(Struct, kw_only=True):
    """The members of ``POST /v1/messages/count_tokens``. Others, such as beta features, are
    ignored."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None

    @property
    def wants_thinking(self) -> bool:
        """Whether the answer may contain blocks of thinking."""
        return self.thinking is not None and self.thinking.type != "disabled"


class MessagesRequest(CountRequest, kw_only=True):
    """The members of ``POST /v1/messages`` that are translated. Others are ignored."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


def decode(content: bytes) -> MessagesRequest:
    """:raises ClientError: naming the field and the rule."""
    return body.decode(content, MessagesRequest)


def chat_body(request: MessagesRequest, *, takes_effort: bool) -> bytes:
    """Return the body of the chat completion. ``takes_effort``: whether the model has efforts.

    :raises ClientError: for a message that has no equivalent in a chat completion.
    """
    chat: Json = {
        "model": request.model,
        "max_completion_tokens": request.max_tokens,
        **_conversation(request),
    }
    for name in ("stream", "temperature", "top_p", "top_k"):
        if (value := getattr(request, name)) is not None:
            chat[name] = value
    if request.stop_sequences:
        chat["stop"] = request.stop_sequences
    if request.metadata is not None and request.metadata.user_id:
        chat["user"] = _end_user(request.metadata.user_id)
    config = request.output_config or OutputConfig()
    if config.effort is not None and takes_effort:
        chat["reasoning_effort"] = config.effort
    wanted = config.format or request.output_format
    if wanted is not None:
        schema = {"name": "output", "schema": wanted.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return msgspec.json.encode(chat)


def estimate_tokens(content: bytes) -> int:
    """Estimate the tokens of a request's input. Only the model's maker can count them.

    :raises ClientError: naming the field and the rule.
    """
    request = body.decode(content, CountRequest)
    conversation = _conversation(request)
    tokens = 0
    for message in conversation["messages"]:
        if isinstance(message.get("content"), list):
            media = [part for part in message["content"] if part["type"] != "text"]
            message["content"] = [part for part in message["content"] if part["type"] == "text"]
            tokens += sum(map(_media_tokens, media))
    return tokens - (-len(msgspec.json.encode(conversation)) // BYTES_PER_TOKEN)


def _media_tokens(part: Json) -> int:
    if part["type"] == "image_url":
        return IMAGE_TOKENS
    # A good part of a document's base64 is not text.
    return IMAGE_TOKENS + len(part["file"]["file_data"]) // (4 * BYTES_PER_TOKEN)


def _conversation(request: CountRequest) -> Json:
    """The members that the model reads, and the Venice parameters that go with them."""
    messages: list[Json] = []
    if request.system:
        blocks = [Text(request.system)] if isinstance(request.system, str) else request.system
        messages.append({"role": "system", "content": _content(list(map(_part, blocks)))})
    for message in request.messages:
        messages += (
            _assistant_messages(message) if message.role == "assistant" else _user_messages(message)
        )
    chat: Json = {"messages": messages, **_tools(request)}
    parameters: Json = {}
    if not request.wants_thinking:
        parameters = {"disable_thinking": True, "strip_thinking_response": True}
    if any(map(_is_search, request.tools or ())):
        parameters["enable_web_search"] = "auto"
    if parameters:
        chat["venice_parameters"] = parameters
    return chat


def _user_messages(message: Message) -> Iterator[Json]:
    """Translate a message of the user: first the tool results in it, then the rest."""
    parts: list[Json] = []
    for block in message.blocks:
        if isinstance(block, ToolResult):
            text, media = _result(block)
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            parts += media
        elif isinstance(block, Text | Image | Document):
            parts.append(_part(block))
        else:
            kind = type(block).__struct_config__.tag
            raise ClientError(
                f"messages: a message of role {message.role} cannot have a block of type {kind}.",
                param="messages",
            )
    if parts:
        yield {"role": message.role, "content": _content(parts)}


def _result(block: ToolResult) -> tuple[str, list[Json]]:
    """A tool's result: its text, and its pictures and documents, for the next message."""
    content = block.content or ""
    blocks = [Text(content)] if isinstance(content, str) else content
    text = "\n".join(part.text for part in blocks if isinstance(part, Text))
    if block.is_error:
        text = f"Error: {text}"
    return text, [_part(part) for part in blocks if not isinstance(part, Text)]


def _assistant_messages(message: Message) -> Iterator[Json]:
    translated: Json = {"role": "assistant", "content": None}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for block in message.blocks:
        match block:
            case Text():
                texts.append(block.text)
            case Thinking():
                thoughts.append(block.thinking)
                translated |= _decode_signature(block.signature)
            case ToolUse():
                function = {
                    "name": block.name,
                    "arguments": bytes(block.input).decode(),
                }
                calls.append({"id": block.id, "type": "function", "function": function})
            case RedactedThinking():
                pass
            case _:
                kind = type(block).__struct_config__.tag
                raise ClientError(
                    f"messages: a message of role assistant cannot have a block of type {kind}.",
                    param="messages",
                )
    if texts or not calls:
        translated["content"] = "".join(texts)
    if thought := "".join(thoughts):
        translated["reasoning_content"] = thought
    if calls:
        translated["tool_calls"] = calls
    yield translated


def _part(block: Text | Image | Document) -> Json:
    """Translate a block. ``cache_control`` is kept for models that use it."""
    part: Json
    match block:
        case Text():
            part = {"type": "text", "text": block.text}
        case Image():
            part = {"type": "image_url", "image_url": {"url": block.source.url}}
        case Document(source=TextSource() as source):
            part = {"type": "text", "text": source.data}
        case Document(source=Base64Source() | UrlSource() as source):
            file = {"file_data": source.url}
            if block.title:
                file["filename"] = block.title
            part = {"type": "file", "file": file}
    if block.cache_control is not None:
        part["cache_control"] = {"type": "ephemeral"}
    return part


def _content(parts: list[Json]) -> str | list[Json]:
    """The parts as a text if there is only one text. Venice refuses empty texts beside others."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return [part for part in parts if part.get("text") != ""]


def _tools(request: CountRequest) -> Json:
    functions = []
    for index, tool in enumerate(request.tools or ()):
        if _is_search(tool):
            continue
        if tool.type not in (None, "custom"):
            raise ClientError(
                f"tools[{index}].type: {tool.type!r} runs at Anthropic, and is not available here.",
                param=f"tools[{index}].type",
            )
        function: Json = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.input_schema is not UNSET:
            function["parameters"] = tool.input_schema
        functions.append({"type": "function", "function": function})
    if not functions:
        return {}
    return {"tools": functions, **_tool_choice(request.tool_choice)}


def _tool_choice(choice: ToolChoice | None) -> Json:
    if choice is None:
        return {}
    chat: Json = {}
    if choice.disable_parallel_tool_use is not None:
        chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        if choice.name is None:
            raise ClientError("tool_choice.name: is missing.", param="tool_choice.name")
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        chat["tool_choice"] = "required" if choice.type == "any" else choice.type
    return chat


def _is_search(tool: Tool) -> bool:
    """Whether the tool is Anthropic's web search, which Venice's own replaces."""
    return (tool.type or "").startswith("web_search_")


def _end_user(name: str) -> str:
    if len(name) <= END_USER_LENGTH:
        return name
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def sign(parts: Json) -> str:
    """Encode what the model needs back as the signature of a block of thinking."""
    return base64.b64encode(msgspec.json.encode(parts)).decode() if parts else ""


def _decode_signature(signature: str) -> Json:
    """What :func:`sign` put into a signature; empty for a signature of somebody else."""
    try:
        parts = msgspec.json.decode(base64.b64decode(signature), type=dict[str, Raw])
    except (ValueError, msgspec.DecodeError):
        return {}
    return {name: parts[name] for name in KEPT_REASONING if name in parts}
