"""Scripted conversations: a user message names the tool calls that the simulated model makes.

``[call=NAME {json}]`` is one turn with one call, and ``[call=NAME {json} + NAME {json}]`` is one
turn with parallel calls. Several such markers are several turns. The sandbox keeps no state: each
request's history determines which turn comes next. Other markers apply to the turn of the next call
after them, and those behind the last call to the final answer.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

MAX_TURNS: Final = 1000
_START: Final = "[call="
_NAME: Final = re.compile(r"[\w.:/-]{1,128}")
_SPACE: Final = re.compile(r"\s*")
_JSON: Final = json.JSONDecoder()


@dataclass(slots=True, kw_only=True)
class Turn:
    """One message or item of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    is_call: bool = False
    """True for an assistant's turn with tool calls."""


@dataclass(slots=True, kw_only=True)
class ScriptedCall:
    """A call that a script asks for. Without an input, the tool's schema determines it."""

    name: str
    input: Any = msgspec.UNSET


@dataclass(slots=True, kw_only=True)
class Script:
    """The calls of each turn, and the text before each turn and behind the last one."""

    turns: list[list[ScriptedCall]] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a conversation stands."""

    section: str
    """The text whose markers apply to the next turn."""
    calls: list[ScriptedCall] = field(default_factory=list)
    """The calls of the next turn. Empty after the last one, and without a script."""
    names: frozenset[str] = frozenset()
    """The names of all tools in the script."""
    result: str | None = None
    """The latest tool result since the user spoke, if there is one."""


def parse(text: str) -> Script:
    """Parse the script in a text. A malformed ``[call=…]`` is text."""
    script = Script()
    position = start = 0
    while (found := text.find(_START, position)) >= 0 and len(script.turns) < MAX_TURNS:
        calls, end = _parse_calls(text, found + len(_START))
        if calls:
            script.turns.append(calls)
            script.sections.append(text[start:found])
            start = end
        position = end
    script.sections.append(text[start:])
    return script


def _parse_calls(text: str, position: int) -> tuple[list[ScriptedCall], int]:
    """Parse the calls of one turn. Returns them with the position behind the bracket, or none."""
    calls: list[ScriptedCall] = []
    start = position
    while name := _NAME.match(text, _skip_space(text, position)):
        call = ScriptedCall(name=name.group())
        position = _skip_space(text, name.end())
        if text[position : position + 1] in ("{", "[", '"'):
            try:
                call.input, position = _JSON.raw_decode(text, position)
            except (ValueError, RecursionError):
                return [], start
        calls.append(call)
        position = _skip_space(text, position)
        if text.startswith("]", position):
            return calls, position + 1
        if not text.startswith("+", position):
            break
        position += 1
    return [], start


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def follow(turns: list[Turn]) -> Progress:
    """Determine the next turn from the history."""
    last_user = _last(turns, len(turns))
    for index in reversed(range(len(turns))):
        turn = turns[index]
        if turn.role == "user" and _START in turn.text:
            script = parse(turn.text)
            if script.turns and not _is_over(script, turns[index + 1 :]):
                return _next(script, turns[index + 1 :])
            break
    section = turns[last_user].text if last_user is not None else ""
    later = turns[(last_user or 0) :]
    results = [turn.text for turn in later if turn.role == "tool"]
    return Progress(section=section, result=results[-1] if results else None)


def _last(turns: list[Turn], end: int) -> int | None:
    return next((index for index in reversed(range(end)) if turns[index].role == "user"), None)


def _is_over(script: Script, later: list[Turn]) -> bool:
    """Return whether the script was answered to its end and the user has spoken again."""
    remaining = sum(map(len, script.turns))
    is_answered = False
    for turn in later:
        if turn.role == "tool":
            remaining -= 1
        elif turn.role == "assistant" and not turn.is_call:
            is_answered = remaining <= 0
        elif turn.role == "user" and is_answered:
            return True
    return False


def _next(script: Script, later: list[Turn]) -> Progress:
    results = [turn.text for turn in later if turn.role == "tool"]
    progress = Progress(
        section=script.sections[-1],
        names=frozenset(call.name for calls in script.turns for call in calls),
        result=results[-1] if results else None,
    )
    answered = len(results)
    for calls, section in zip(script.turns, script.sections, strict=False):
        if answered < len(calls):
            progress.calls = calls[answered:]
            progress.section = section
            break
        answered -= len(calls)
    return progress
