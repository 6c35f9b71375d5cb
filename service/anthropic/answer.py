"""Sorts a chat completion, whole or in chunks, into the content blocks of a message."""

import abc
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from service.anthropic.search import cited, search_blocks
from service.errors import UpstreamError
from service.formats import surrogates
from service.formats.completion import AssistantMessage, ToolCall, ToolCallNumbers, Usage
from service.formats.partial_json import PartialObject
from service.formats.reasoning import KeptReasoning, encode_reasoning
from service.formats.surrogates import Pieces

Json = dict[str, Any]

STOP_REASONS: Final = {
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "content_filter": "refusal",
}
NO_ARGUMENTS: Final = ("", "null")


class Block(abc.ABC):
    """A content block that arrives in pieces."""

    is_kept_open: ClassVar[bool] = False
    """Whether more may come although a later block has begun."""

    @property
    def is_ready(self) -> bool:
        """Whether enough is known for the block to begin."""
        return True

    @property
    def is_held_back(self) -> bool:
        """Whether something arrived that cannot be passed on yet."""
        return False

    @abc.abstractmethod
    def start(self) -> Json:
        """The block as it begins, without what its deltas carry."""

    def deltas(self) -> list[Json]:
        """The deltas that follow from what arrived since the last time."""
        return []

    def last_deltas(self) -> list[Json]:
        """The deltas that end the block."""
        return []

    def whole(self) -> Json:
        """The block with all its deltas."""
        block = self.start()
        for delta in [*self.deltas(), *self.last_deltas()]:
            kind = delta["type"]
            if kind == "citations_delta":
                block["citations"] = [*block.get("citations", ()), delta["citation"]]
            else:
                name = kind.removesuffix("_delta")
                block[name] += delta[name]
        return block


class _TextPieces:
    """A text that arrives in pieces. Halves of surrogate pairs wait for each other."""

    def __init__(self) -> None:
        self.has_text = False
        """Whether anything but white space arrived."""
        self._pieces = Pieces()
        self._waiting: list[str] = []

    def add(self, piece: str) -> None:
        self.has_text = self.has_text or not piece.isspace()
        if text := self._pieces.add(piece):
            self._waiting.append(text)

    @property
    def are_waiting(self) -> bool:
        """Whether complete pieces were not taken yet."""
        return bool(self._waiting)

    def take(self, *, is_last: bool = False) -> list[str]:
        """Return the pieces that are complete and were not returned before."""
        if is_last and (rest := self._pieces.rest()):
            self._waiting.append(rest)
        pieces, self._waiting = self._waiting, []
        return pieces


class TextBlock(Block):
    """A text of the model."""

    def __init__(self, results: Sequence[Json]) -> None:
        self.pieces = _TextPieces()
        self._results = results
        self._seen: list[str] = []
        """The text, for its marks: some streams state the results of a search after it."""

    def start(self) -> Json:
        """See :meth:`Block.start`."""
        return {"type": "text", "text": ""}

    def deltas(self) -> list[Json]:
        """See :meth:`Block.deltas`."""
        return self._deltas(self.pieces.take())

    def last_deltas(self) -> list[Json]:
        """See :meth:`Block.last_deltas`."""
        texts = self._deltas(self.pieces.take(is_last=True))
        return texts + [
            {"type": "citations_delta", "citation": citation}
            for citation in cited("".join(self._seen), self._results)
        ]

    def _deltas(self, texts: list[str]) -> list[Json]:
        self._seen += texts
        return [{"type": "text_delta", "text": text} for text in texts]


class ThinkingBlock(Block):
    """Reasoning of the model, with what the model needs back."""

    def __init__(self, kept: KeptReasoning) -> None:
        self.pieces = _TextPieces()
        self.kept = kept

    def start(self) -> Json:
        """See :meth:`Block.start`."""
        return {"type": "thinking", "thinking": "", "signature": ""}

    def deltas(self) -> list[Json]:
        """See :meth:`Block.deltas`."""
        return self._deltas(self.pieces.take())

    def last_deltas(self) -> list[Json]:
        """See :meth:`Block.last_deltas`."""
        signature = {"type": "signature_delta", "signature": encode_reasoning(self.kept.members)}
        return [*self._deltas(self.pieces.take(is_last=True)), signature]

    def _deltas(self, texts: list[str]) -> list[Json]:
        return [{"type": "thinking_delta", "thinking": text} for text in texts]


class ToolBlock(Block):
    """A tool call. Its arguments are passed on as they arrive, as long as they are JSON."""

    is_kept_open = True

    def __init__(self) -> None:
        self._id = ""
        self._name = ""
        self._arguments = _TextPieces()
        self._object = PartialObject()
        self._has_begun = False
        """Whether some of the arguments were passed on."""

    @property
    def is_ready(self) -> bool:
        """Whether the tool's name is known."""
        return bool(self._name)

    @property
    def is_held_back(self) -> bool:
        """Whether arguments wait, for the name or because they are not JSON."""
        return self._arguments.are_waiting

    @property
    def is_empty(self) -> bool:
        """Whether nothing arrived but empty pieces."""
        return not self._name and not self._id and not self._arguments.has_text

    def add(self, piece: ToolCall) -> None:
        """Add a piece of the call. An id or a name that arrives again changes nothing."""
        self._id = self._id or piece.id or ""
        self._name = self._name or piece.name
        if piece.arguments:
            self._arguments.add(piece.arguments)
            self._object.feed(piece.arguments)

    def start(self) -> Json:
        """See :meth:`Block.start`."""
        self._id = self._id or f"toolu_{uuid.uuid4().hex}"
        return {"type": "tool_use", "id": self._id, "name": self._name, "input": {}}

    def deltas(self) -> list[Json]:
        """See :meth:`Block.deltas`.

        :raises UpstreamError: when the arguments stop being JSON after some were passed on.
        """
        if self._object.is_valid:
            return self._deltas(self._arguments.take()) if self._object.is_begun else []
        if self._has_begun:
            raise UpstreamError("The model's arguments of a tool call are not a JSON object.")
        return []

    def last_deltas(self) -> list[Json]:
        """See :meth:`Block.last_deltas`. Arguments that are not a JSON object become its only
        member, so that the tool can refuse them."""
        pieces = self._arguments.take(is_last=True)
        if self._object.is_valid and self._object.is_begun:
            return self._deltas(pieces)
        arguments = "".join(pieces)
        if arguments.strip() in NO_ARGUMENTS:
            return []
        return self._deltas([surrogates.encode({"arguments": arguments}).decode()])

    def whole(self) -> Json:
        """See :meth:`Block.whole`."""
        block = self.start()
        deltas = [*self.deltas(), *self.last_deltas()]
        arguments = surrogates.repair("".join(delta["partial_json"] for delta in deltas))
        if self._object.is_complete or not self._object.is_valid:
            block["input"] = msgspec.Raw(arguments.encode() or b"{}")
        elif arguments:
            block["input"] = {"arguments": arguments}
        return block

    def _deltas(self, pieces: list[str]) -> list[Json]:
        self._has_begun = self._has_begun or bool(pieces)
        return [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]


class WholeBlock(Block):
    """A block that arrives whole."""

    def __init__(self, block: Json) -> None:
        self._block = block

    def start(self) -> Json:
        """See :meth:`Block.start`."""
        return self._block


class Content:
    """The content blocks of one message, in the order in which they begin.

    ``with_thinking`` is whether the caller asked for thinking. What the model needs back is kept in
    any case, in a block of thinking without text where nobody asked.
    """

    def __init__(self, *, with_thinking: bool) -> None:
        self.blocks: deque[Block] = deque()
        """The blocks so far. Its user may remove blocks from the front, except the last."""
        self.has_tools = False
        self.is_refused = False
        self.searches = 0
        self._with_thinking = with_thinking
        self._loose = KeptReasoning()
        """What the model needs back and belongs to no block yet."""
        self._numbers = ToolCallNumbers()
        self._tools: list[ToolBlock] = []
        self._results: list[Json] = []

    def take_results(self, results: Sequence[Json]) -> None:
        """Add the results of Venice's web search. Repeated results are ignored."""
        if not results or self._results:
            return
        self._results += results
        self.searches = 1
        for block in search_blocks(results):
            self._begin(WholeBlock(block))

    def take(self, piece: AssistantMessage) -> None:
        """Add a message, or a piece of one."""
        if self._with_thinking and piece.thought:
            self._last_thinking().pieces.add(piece.thought)
        last = self.blocks[-1] if self.blocks else None
        (last.kept if isinstance(last, ThinkingBlock) else self._loose).take(piece)
        if piece.content:
            self._last_text().pieces.add(piece.content)
        if piece.refusal:
            self.is_refused = True
            self._last_text().pieces.add(piece.refusal)
        for call in piece.tool_calls or ():
            number = self._numbers.number_of(call)
            if number == len(self._tools):
                self._tools.append(ToolBlock())
                self._begin(self._tools[number])
            self._tools[number].add(call)

    def finish(self) -> None:
        """Complete the blocks when all pieces have arrived.

        :raises UpstreamError: when a tool call has no name.
        """
        self._place_loose()
        for tool in self._tools:
            if tool.is_empty:
                self.blocks.remove(tool)
            elif not tool.is_ready:
                raise UpstreamError("Venice's answer cannot be read: a tool call has no name.")
            else:
                self.has_tools = True

    def stop_reason(self, finish_reason: str | None) -> str:
        """Anthropic's name for the reason. Some models call tools and give another reason."""
        if self.is_refused:
            return "refusal"
        usual = "tool_use" if self.has_tools else "end_turn"
        return STOP_REASONS.get(finish_reason or "", usual)

    def usage(self, usage: Usage | None, input_estimate: int) -> Json:
        """Anthropic's ``usage``, whose input does not include the cache's tokens. The estimate
        stands in for an input that Venice does not state."""
        usage = usage or Usage()
        read, written = usage.cached_tokens, usage.cache_write_tokens
        prompt_tokens = usage.prompt_tokens
        stated: Json = {
            "input_tokens": input_estimate if prompt_tokens is None else prompt_tokens,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": usage.completion_tokens or 0,
        }
        stated["input_tokens"] = max(0, stated["input_tokens"] - read - written)
        if self.searches:
            stated["server_tool_use"] = {
                "web_search_requests": self.searches,
                "web_fetch_requests": 0,
            }
        return stated

    def _last_thinking(self) -> ThinkingBlock:
        last = self.blocks[-1] if self.blocks else None
        if not isinstance(last, ThinkingBlock):
            last, self._loose = ThinkingBlock(self._loose), KeptReasoning()
            self.blocks.append(last)
        return last

    def _last_text(self) -> TextBlock:
        last = self.blocks[-1] if self.blocks else None
        if not isinstance(last, TextBlock):
            last = TextBlock(self._results)
            self._begin(last)
        return last

    def _begin(self, block: Block) -> None:
        self._place_loose()
        self.blocks.append(block)

    def _place_loose(self) -> None:
        """Make a block of what the model needs back and belongs to no block."""
        kept = self._loose
        if kept.is_opaque or (self._with_thinking and kept.members):
            self.blocks.append(ThinkingBlock(kept))
            self._loose = KeptReasoning()
