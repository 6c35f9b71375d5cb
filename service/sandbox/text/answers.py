"""Plans the answer of a simulated text model, whatever the format it was asked in."""

import itertools
import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import UNSET

from service.sandbox.exchange import Exchange
from service.sandbox.instances import instance
from service.sandbox.model import Model
from service.sandbox.refusals import Refusal, context_exceeded, invalid, issue
from service.sandbox.text import markers, script, searches
from service.sandbox.text.markers import Markers
from service.sandbox.text.script import Progress, ScriptedCall, Turn

MAX_TOKENS: Final = 100_000
MAX_PAUSE_S: Final = 600.0
MAX_RESULT_CHARACTERS: Final = 2000
MAX_CALLS: Final = 100
TOKENS_PER_MESSAGE: Final = 3
MAX_ECHOED_CHARACTERS: Final = 200
MAX_ECHOED_WORDS: Final = 12
OPENING: Final = "This is a simulated answer from the Rialto sandbox: no model was called."
FILLER: Final = ("and", "the", "sandbox", "goes", "on", "for", "more", "tokens", "were", "asked")
THOUGHT: Final = ("I ", "must ", "call ", "a ", "tool.")
THOUGHT_ID: Final = "call_thought"
"""The start of the id of a call that came with reasoning which the model needs back."""
_PROMPT: Final = re.compile(r"\[prompt=(\d{1,6})\]")
_PIECE: Final = re.compile(".{1,12}", re.DOTALL)
_INPUTS: Final[dict[str, Any]] = {
    "custom": "simulated",
    "apply_patch": {"type": "create_file", "path": "simulated.txt", "diff": "+simulated\n"},
    "shell": {"commands": ["true"]},
    "local_shell": {"command": ["true"]},
    "computer": {"type": "screenshot"},
}
"""The input of a call without a script, by the kind of its tool. Functions have a schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that the model may call."""

    name: str
    kind: str = "function"
    """``function``, or a type of tool of OpenAI's Responses API without its version."""
    schema: Any = None
    namespace: str | None = None


@dataclass(slots=True, kw_only=True)
class Call:
    """A call of a tool."""

    id: str
    tool: Tool
    input: Any
    """The arguments of a function, the input of a custom tool or the action of another."""
    pieces: list[str]
    """``input`` as text, split."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True, kw_only=True)
class Question:
    """What a request asks of the model, whatever its format."""

    model: Model
    turns: list[Turn]
    tools: list[Tool] = field(default_factory=list)
    is_tool_required: bool = False
    is_tool_forbidden: bool = False
    tool_name: str | None = None
    """The only tool that may be called."""
    formatted: Any = UNSET
    """The value to answer with, if the request names a format."""
    stop: list[str] = field(default_factory=list)
    max_tokens: int = MAX_TOKENS
    is_parallel: bool = True
    """False if a turn may have one call only."""
    may_think: bool = True
    is_thought_wanted: bool = False
    """True if the request asks for reasoning."""
    always_thinks: bool = False
    needs_reasoning_back: bool = False
    """True if the next request must repeat the reasoning before a tool call."""
    search: str = "off"
    """``on``, ``off``, or ``auto``, which searches if the message has the marker ``[search]``."""
    is_cited: bool = False
    scraped_urls: int = 0
    other_searches: int = 0


@dataclass(slots=True, kw_only=True)
class Answer:
    """The planned answer."""

    model: Model
    markers: Markers
    prompt_tokens: int
    thoughts: list[str]
    tokens: list[str]
    """The text, or the refusal if ``markers.refusal`` is set."""
    calls: list[Call]
    finish_reason: str
    citations: list[dict[str, Any]]
    fees_nanos: int

    @property
    def completion_tokens(self) -> int:
        """All tokens. A tool call counts its name and the pieces of its input."""
        called = sum(1 + len(call.pieces) for call in self.calls)
        return len(self.thoughts) + len(self.tokens) + called

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def is_refusal(self) -> bool:
        return self.markers.refusal is not None

    @property
    def pause_s(self) -> float:
        """The pause before each token but the first."""
        return min(MAX_PAUSE_S, self.markers.delay or 0.0)

    @property
    def failure(self) -> str | None:
        """The code of the failure in the middle of the answer, if there is one."""
        return self.markers.fail if self.markers.fail is not None else self.markers.error

    def charge(self, exchange: Exchange, sent: int) -> None:
        """Charge the tokens that were sent, and the fees if there were any."""
        exchange.charge(self.model, self.prompt_tokens if sent else 0, sent)
        if self.fees_nanos and sent:
            exchange.charge_nanos(self.fees_nanos)


def plan(question: Question) -> Answer:
    """Plan the answer to a question.

    :raises Refusal: when the prompt is too long, or a marker is invalid.
    """
    model = question.model
    prompt_tokens = _count_prompt(question)
    if prompt_tokens > model.context:
        raise context_exceeded(prompt_tokens, model.context)
    progress = script.follow(question.turns)
    wanted = markers.read(progress.section)
    citations, fees_nanos = _search(question, wanted)
    calls = _calls(question, progress, wanted)
    thoughts = _thoughts(question, progress, wanted, is_call=bool(calls))
    if calls:
        tokens = _split(wanted.text or "")
        if thoughts and question.needs_reasoning_back:
            for call in calls:
                call.id = call.id.replace("call_", THOUGHT_ID, 1)
    else:
        tokens = _text(question, progress, wanted)
        if citations and question.is_cited:
            tokens.append(searches.CITATION)
    is_cut = len(tokens) > question.max_tokens
    finish_reason = "tool_calls" if calls else "length" if is_cut else "stop"
    return Answer(
        model=model,
        markers=wanted,
        prompt_tokens=prompt_tokens,
        thoughts=thoughts,
        tokens=tokens[: question.max_tokens],
        calls=calls,
        finish_reason=wanted.finish or finish_reason,
        citations=citations,
        fees_nanos=fees_nanos,
    )


def _count_prompt(question: Question) -> int:
    """Count words, a few tokens per message, and what ``[prompt=N]`` adds."""
    texts = [turn.text for turn in question.turns]
    count = sum(TOKENS_PER_MESSAGE + len(text.split()) for text in texts)
    added = next(filter(None, (_PROMPT.search(text) for text in texts if "[prompt=" in text)), None)
    return count + (int(added.group(1)) if added else 0)


def _search(question: Question, wanted: Markers) -> tuple[list[dict[str, Any]], int]:
    """Return the search results, and the fees. Scraped pages replace a search, as at Venice."""
    fees = question.other_searches
    if question.scraped_urls:
        return [], (fees + question.scraped_urls) * searches.FEE_NANOS
    if question.search == "on" or (question.search == "auto" and wanted.search):
        return searches.results(), (fees + 1) * searches.FEE_NANOS
    return [], fees * searches.FEE_NANOS


def _thoughts(
    question: Question, progress: Progress, wanted: Markers, *, is_call: bool
) -> list[str]:
    if "Reasoning" not in question.model.capabilities or not question.may_think:
        return []
    if wanted.think is not None:
        return ["Hm, "] * min(MAX_TOKENS, wanted.think)
    # Some models think before every scripted call, and the others if they are asked to.
    thinks = question.model.returns == "reasoning_content" or question.is_thought_wanted
    if question.always_thinks or (thinks and is_call and progress.calls):
        return list(THOUGHT) if is_call else ["Hm."]
    return []


def _calls(question: Question, progress: Progress, wanted: Markers) -> list[Call]:
    """Return the next calls of the script, or else those that the request or a marker wants."""
    tools = question.tools
    if question.tool_name is not None:
        tools = [tool for tool in tools if tool.name == question.tool_name]
    if question.is_tool_forbidden or not tools:
        return []
    by_name = {tool.name: tool for tool in tools}
    most = None if question.is_parallel else 1
    if progress.calls and all(call.name in by_name for call in progress.calls):
        return [_call(by_name[call.name], call) for call in progress.calls[:most]]
    count = min(wanted.tools or 1, most or MAX_CALLS)
    if question.is_tool_required or question.tool_name is not None:
        # Frameworks offer a tool for the final answer, which is none of the script's.
        tools = [tool for tool in tools if tool.name not in progress.names] or tools
    elif wanted.tools is None or progress.result is not None:
        return []
    return [_call(tool) for tool in itertools.islice(itertools.cycle(tools), count)]


def _call(tool: Tool, scripted: ScriptedCall | None = None) -> Call:
    given = UNSET if scripted is None else scripted.input
    if given is UNSET:
        given = _INPUTS[tool.kind] if tool.kind in _INPUTS else instance(tool.schema) or {}
    text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    return Call(
        id=f"call_{uuid.uuid4().hex[:24]}",
        tool=tool,
        input=given,
        pieces=_PIECE.findall(text),
    )


def _text(question: Question, progress: Progress, wanted: Markers) -> list[str]:
    """Return the tokens of an answer without calls."""
    reply = wanted.reply if wanted.reply is not None else _reply_of_system(question.turns)
    if wanted.refusal is not None:
        return _split(wanted.refusal)
    if reply is None and question.formatted is not UNSET:
        return pieces(question.formatted)
    tokens = _split(_sentence(question, progress) if reply is None else reply)
    if wanted.tokens is not None:
        filler = itertools.cycle(f" {token}" for token in FILLER)
        count = min(MAX_TOKENS, wanted.tokens)
        tokens = list(itertools.islice(itertools.chain(tokens, filler), count))
    return until_stop(tokens, question.stop)


def _reply_of_system(turns: list[Turn]) -> str | None:
    """Return what a system prompt wants as the reply, which shows that it reached the model."""
    replies = (
        markers.read(turn.text).reply
        for turn in turns
        if turn.role == "system" and "[reply=" in turn.text
    )
    return next((reply for reply in replies if reply is not None), None)


def _sentence(question: Question, progress: Progress) -> str:
    if progress.calls and question.tools:
        wanted = ", ".join(call.name for call in progress.calls)
        offered = ", ".join(tool.name for tool in question.tools)
        return f"{OPENING} The script calls {wanted}, but the tools offered are {offered}."
    if progress.result is not None:
        return f"{OPENING} The last tool returned: {progress.result[:MAX_RESULT_CHARACTERS]}"
    turns = reversed(question.turns)
    prompt = next((turn.text for turn in turns if turn.role == "user"), "")
    echo = " ".join(prompt[:MAX_ECHOED_CHARACTERS].split()[:MAX_ECHOED_WORDS])
    return f"{OPENING} You wrote: {echo}"


def _split(text: str) -> list[str]:
    """Split a text into tokens of one word each."""
    if not text:
        return []
    first, *others = text.split(" ")
    return [first, *(f" {token}" for token in others)]


def pieces(value: Any) -> list[str]:
    """Encode a value as JSON, in pieces."""
    return _PIECE.findall(msgspec.json.encode(value).decode())


def until_stop(tokens: list[str], stop: list[str]) -> list[str]:
    """Return the tokens before the first stop sequence."""
    if not stop:
        return tokens
    text = "".join(tokens)
    positions = [text.find(end) for end in stop]
    remaining = min((position for position in positions if position >= 0), default=len(text))
    kept = []
    for token in tokens:
        if remaining <= 0:
            break
        kept.append(token[:remaining])
        remaining -= len(token)
    return kept


def schema_of(definition: Any, *path: str) -> dict[str, Any]:
    """Return the schema in the definition of a format.

    :raises Refusal: 400 when there is none.
    """
    if isinstance(definition, dict) and isinstance(definition.get("schema"), dict):
        schema: dict[str, Any] = definition["schema"]
        return schema
    raise invalid(issue("Required", *path, "schema"))


def failed(answer: Answer) -> Refusal:
    """Build the refusal that replaces a whole answer which fails."""
    return Refusal(500, {"error": "Inference processing failed", "code": answer.failure})
