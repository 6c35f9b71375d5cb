"""Translates the messages of a conversation into those of a chat completion.

What a model answered long ago must not end the conversation: blocks of an unknown type become their
text or are left out. Only a block that changes the question, which is all that the user sent since
the last answer, is refused.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from msgspec import Raw, Struct

from service.anthropic.blocks import (
    Block,
    Document,
    Image,
    Other,
    PartsSource,
    RedactedThinking,
    StoredSource,
    Text,
    TextSource,
    Thinking,
    ToolResult,
    ToolUse,
    read_block,
)
from service.errors import ClientError
from service.formats.reasoning import KeptReasoning, decode_reasoning

Json = dict[str, Any]

ATTRIBUTION: Final = re.compile(r"\Ax-anthropic-billing-header:[^\n]*(?:\n+|\Z)")
"""What Claude Code writes before its system prompt. It changes with every request, so no cache
would know the prompt again."""
CACHE_MARK: Final = {"type": "ephemeral"}
REMINDER: Final = "<system-reminder>\n{}\n</system-reminder>"
"""How Claude Code marks a text of the system within the user's turn."""


class Message(Struct):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Raw]

    def blocks(self, field: str) -> Iterator[tuple[str, Block]]:
        """The blocks, each with its field in the request. ``field`` is the message's own.

        :raises ClientError: naming the field and the rule.
        """
        if isinstance(self.content, str):
            yield f"{field}.content", Text(self.content)
            return
        for index, content in enumerate(self.content):
            where = f"{field}.content[{index}]"
            yield where, read_block(content, where)


def chat_messages(system: str | list[Text] | None, messages: Sequence[Message]) -> list[Json]:
    """Translate the system prompt and the messages.

    :raises ClientError: for a block that the question needs and chat completions do not have.
    """
    conversation = _Conversation()
    conversation.begin([Text(system)] if isinstance(system, str) else system or [])
    last_answer = max(
        (index for index, message in enumerate(messages) if message.role == "assistant"), default=-1
    )
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if message.role == "assistant":
            conversation.add_answer(message, field)
        elif message.role == "system":
            conversation.fold(message, field)
        else:
            conversation.add_turn(message, field, is_question=index > last_answer)
    return conversation.whole()


class _Conversation:
    """Builds the messages of a chat completion."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        """The messages so far. The content of the system's and the user's is a list of parts."""
        self._is_folded = False
        """Whether the last message ends with a folded message of the system."""

    def begin(self, system: Sequence[Text]) -> None:
        """Add the system prompt."""
        parts = _without_attribution(list(map(_text_part, system)))
        if parts:
            self._messages.append({"role": "system", "content": parts})

    def whole(self) -> list[Json]:
        """Return the messages when all are added."""
        for message in self._messages:
            if message["role"] in ("system", "user"):
                message["content"] = _content(message["content"])
        return self._messages

    def add_turn(self, message: Message, field: str, *, is_question: bool) -> None:
        """Add a message of the user: first the tool results in it, then the rest."""
        parts: list[Json] = []
        results: list[Json] = []
        is_marked = False
        for where, block in message.blocks(field):
            if isinstance(block, ToolResult):
                text, media = _result(block, where, is_question=is_question)
                results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
                parts += media
                is_marked = is_marked or block.cache_control is not None
            elif isinstance(block, Text | Image | Document | Other):
                parts += _parts(block, where, is_question=is_question)
            else:
                raise _misplaced(message.role, block)
        if is_marked:
            # Chat completions have no mark for a tool's result.
            self._mark(parts)
        if results:
            self._add(*results)
        self._add_user(parts, is_joined=self._is_folded)
        self._is_folded = False

    def fold(self, message: Message, field: str) -> None:
        """Add a message of the system within the conversation to the user's turn before it. Many
        models take a system message only at the start."""
        parts = [
            part for where, block in message.blocks(field) for part in _system_parts(block, where)
        ]
        parts = _without_attribution(parts)
        if not parts:
            return
        if not self._messages:
            self._messages.append({"role": "system", "content": parts})
        elif self._messages[-1]["role"] == "system":
            self._messages[-1]["content"] += parts
        else:
            for part in parts:
                part["text"] = REMINDER.format(part["text"])
            self._add_user(parts, is_joined=True)
            self._is_folded = True

    def add_answer(self, message: Message, field: str) -> None:
        """Add a message of the model."""
        answer: Json = {"role": "assistant", "content": None}
        parts: list[Json] = []
        thoughts: list[str] = []
        kept = KeptReasoning()
        calls: list[Json] = []
        for _, block in message.blocks(field):
            match block:
                case Text():
                    parts.append(_text_part(block))
                case Other() if block.text:
                    parts.append({"type": "text", "text": f"\n{block.text}\n"})
                case Thinking():
                    thoughts.append(block.thinking)
                    members = decode_reasoning(block.signature)
                    kept.add(members, is_continued=not block.thinking)
                case ToolUse():
                    function = {"name": block.name, "arguments": bytes(block.input).decode()}
                    calls.append({"id": block.id, "type": "function", "function": function})
                case RedactedThinking() | Other():
                    pass
                case _:
                    raise _misplaced(message.role, block)
        if parts or not calls:
            answer["content"] = _answer_content(parts)
        answer |= kept.members
        if thought := "".join(thoughts):
            answer["reasoning_content"] = thought
        if calls:
            answer["tool_calls"] = calls
        self._add(answer)

    def _add(self, *messages: Json) -> None:
        self._messages += messages
        self._is_folded = False

    def _add_user(self, parts: list[Json], *, is_joined: bool) -> None:
        """Add parts of the user, to the last message if they are joined and it is the user's."""
        if not parts:
            return
        if is_joined and self._messages[-1]["role"] == "user":
            self._messages[-1]["content"] += parts
        else:
            self._add({"role": "user", "content": parts})

    def _mark(self, parts: Sequence[Json]) -> None:
        """Put a mark for the cache on the next part after it, or else on the answer before it."""
        if parts:
            parts[0].setdefault("cache_control", CACHE_MARK)
            return
        answer = self._messages[-1] if self._messages else {}
        content = answer.get("content")
        if answer.get("role") == "assistant" and content:
            if isinstance(content, str):
                content = answer["content"] = [{"type": "text", "text": content}]
            content[-1].setdefault("cache_control", CACHE_MARK)


def _misplaced(role: str, block: Block) -> ClientError:
    kind = type(block).__struct_config__.tag
    return ClientError(
        f"messages: a message of role {role} cannot have a block of type {kind}.", param="messages"
    )


def _without_attribution(parts: list[Json]) -> list[Json]:
    for part in parts:
        part["text"] = ATTRIBUTION.sub("", part["text"])
    return [part for part in parts if part["text"]]


def _system_parts(block: Block, field: str) -> list[Json]:
    if isinstance(block, Text):
        return [_text_part(block)]
    if isinstance(block, Other):
        return [{"type": "text", "text": block.text}] if block.text else []
    raise ClientError(f"{field}: the system's messages consist of text.", param=field)


def _result(block: ToolResult, field: str, *, is_question: bool) -> tuple[str, list[Json]]:
    """A tool's result: its text, and its pictures and documents, for the next message."""
    texts = [block.content] if isinstance(block.content, str) else []
    contents = block.content if isinstance(block.content, list) else []
    media: list[Json] = []
    for index, content in enumerate(contents):
        where = f"{field}.content[{index}]"
        part = read_block(content, where)
        if isinstance(part, Text):
            texts.append(part.text)
        elif isinstance(part, Other):
            texts.append(part.text or f"[A block of type {part.type} was left out.]")
        elif isinstance(part, Image | Document):
            media += _parts(part, where, is_question=is_question)
        else:
            raise _misplaced("tool_result", part)
    text = "\n".join(texts)
    return (f"Error: {text}" if block.is_error else text), media


def _text_part(block: Text) -> Json:
    return _marked({"type": "text", "text": block.text}, block.cache_control)


def _parts(block: Text | Image | Document | Other, field: str, *, is_question: bool) -> list[Json]:
    """Translate a block of the user. ``cache_control`` is kept for models that use it.

    :raises ClientError: when the question needs it, and it has no equivalent.
    """
    if isinstance(block, Text):
        return [_text_part(block)]
    if isinstance(block, Other):
        if block.text or not is_question:
            return [{"type": "text", "text": block.text}] if block.text else []
        raise ClientError(
            f"{field}.type: a block of type {block.type!r} is not available here.",
            param=f"{field}.type",
        )
    if isinstance(block.source, StoredSource):
        if not is_question:
            return []
        raise ClientError(
            f"{field}.source: files are not stored here. Send the content itself.",
            param=f"{field}.source",
        )
    if isinstance(block, Image):
        part = {"type": "image_url", "image_url": {"url": block.source.url}}
        return [_marked(part, block.cache_control)]
    return _document_parts(block, field, is_question=is_question)


def _document_parts(block: Document, field: str, *, is_question: bool) -> list[Json]:
    source, heads = block.source, [block.title, block.context]
    parts: list[Json]
    if isinstance(source, TextSource | PartsSource):
        content = source.data if isinstance(source, TextSource) else source.content
        inner = [Text(content)] if isinstance(content, str) else content
        parts = [
            part
            for index, one in enumerate(inner)
            for part in _parts(one, f"{field}.source.content[{index}]", is_question=is_question)
        ]
        parts = [{"type": "text", "text": head} for head in heads if head] + parts
    elif isinstance(source, StoredSource):
        return []
    else:
        file = {"file_data": source.url}
        if block.title:
            file["filename"] = block.title
        parts = [{"type": "file", "file": file}]
    if parts:
        _marked(parts[-1], block.cache_control)
    return parts


def _marked(part: Json, cache_control: Any) -> Json:
    if cache_control is not None:
        part["cache_control"] = CACHE_MARK
    return part


def _content(parts: list[Json]) -> str | list[Json]:
    """The parts as a text if there is only one text. Venice refuses empty texts beside others."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return [part for part in parts if part.get("text") != ""]


def _answer_content(parts: list[Json]) -> str | list[Json]:
    """The texts of an answer as one text, or as parts if one of them has a mark for the cache."""
    if any("cache_control" in part for part in parts):
        return [part for part in parts if part["text"]]
    return "".join(part["text"] for part in parts)
