"""Translates requests of Anthropic's Messages API into requests for chat completions."""

import hashlib
import re
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from service.anthropic.blocks import Text
from service.anthropic.history import Message, chat_messages
from service.anthropic.tools import Tool, ToolChoice, search_parameters, tool_members
from service.formats import body

END_USER_LENGTH: Final = 128
"""A longer name of an end user is replaced by its digest."""
CLAUDE_CODE_USER: Final = re.compile(
    r"user_(?P<device>[0-9a-f]+)_account_(?P<account>[0-9a-f-]*)_session_(?P<session>[0-9a-f-]+)"
)
"""How older versions of Claude Code name their user."""
MAX_STOP_SEQUENCES: Final = 4
IMAGE_TOKENS: Final = 1_600
"""The tokens of a large picture at Anthropic."""
BYTES_PER_TOKEN: Final = 4

Json = dict[str, Any]


class ThinkingConfig(Struct):
    """Whether the model should think."""

    type: str


class Metadata(Struct):
    """The end user."""

    user_id: str | None = None


class OutputFormat(Struct):
    """The JSON schema of the answer."""

    type: Annotated[str, Meta(pattern="^json_schema$")]
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

    max_tokens: Annotated[int, Meta(ge=0, le=2**31)]
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class ChatRequest(NamedTuple):
    """A chat completion to ask for."""

    body: bytes
    input_estimate: int
    """About how many tokens the input has."""


def decode(content: bytes) -> MessagesRequest:
    """:raises ClientError: naming the field and the rule."""
    return body.decode(content, MessagesRequest)


def chat_request(request: MessagesRequest, *, takes_effort: bool) -> ChatRequest:
    """Return the chat completion to ask for. ``takes_effort``: whether the model has efforts.

    :raises ClientError: for a message that has no equivalent in a chat completion.
    """
    conversation = _conversation(request)
    chat: Json = {
        "model": request.model,
        # Venice reads a maximum of 0 as no maximum.
        "max_completion_tokens": max(1, request.max_tokens),
        **conversation,
        **_parameters(request),
    }
    for name in ("stream", "temperature", "top_p", "top_k"):
        if (value := getattr(request, name)) is not None:
            chat[name] = value
    if request.stop_sequences:
        chat["stop"] = request.stop_sequences
    if request.metadata is not None and request.metadata.user_id:
        chat |= _user_members(request.metadata.user_id)
    config = request.output_config or OutputConfig()
    if config.effort is not None and takes_effort:
        chat["reasoning_effort"] = config.effort
    wanted = config.format or request.output_format
    if wanted is not None:
        schema = {"name": "output", "schema": wanted.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    content = msgspec.json.encode(chat)
    return ChatRequest(content, _estimate(len(content), conversation))


def estimate_tokens(content: bytes) -> int:
    """Estimate the tokens of a request's input. Only the model's maker can count them.

    :raises ClientError: naming the field and the rule.
    """
    conversation = _conversation(body.decode(content, CountRequest))
    return _estimate(len(msgspec.json.encode(conversation)), conversation)


def _conversation(request: CountRequest) -> Json:
    """The members that the model reads."""
    messages = chat_messages(request.system, request.messages)
    return {"messages": messages, **tool_members(request.tools or (), request.tool_choice)}


def _parameters(request: CountRequest) -> Json:
    """Venice's own parameters."""
    parameters: Json = {}
    if not request.wants_thinking:
        parameters = {"disable_thinking": True, "strip_thinking_response": True}
    parameters |= search_parameters(request.tools or (), request.tool_choice)
    return {"venice_parameters": parameters} if parameters else {}


def _estimate(length_bytes: int, conversation: Json) -> int:
    """Estimate the tokens of a conversation that takes so many bytes as JSON."""
    tokens = 0
    for message in conversation["messages"]:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part["type"] == "image_url":
                length_bytes -= len(part["image_url"]["url"])
                tokens += IMAGE_TOKENS
            elif part["type"] == "file":
                # A good part of a document's base64 is not text.
                length_bytes -= 3 * len(part["file"]["file_data"]) // 4
                tokens += IMAGE_TOKENS
    return tokens + -(-length_bytes // BYTES_PER_TOKEN)


def _user_members(name: str) -> Json:
    """The end user, and the key by which the session finds its prompts in the cache. Claude Code
    states both in one name, which is another one for each session."""
    user, session = _split_user(name)
    if len(user) > END_USER_LENGTH:
        user = hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()
    return {"user": user, "prompt_cache_key": session} if session else {"user": user}


def _split_user(name: str) -> tuple[str, str]:
    """Return the account, or else the device, and the session; the name itself and nothing if it
    does not state them."""
    if (match := CLAUDE_CODE_USER.fullmatch(name)) is not None:
        return match["account"] or match["device"], match["session"]
    try:
        stated = msgspec.json.decode(name, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return name, ""
    account, device, session = (
        value if isinstance(value := stated.get(key), str) else ""
        for key in ("account_uuid", "device_id", "session_id")
    )
    user = account or device
    return (user, session[:END_USER_LENGTH]) if user else (name, "")
