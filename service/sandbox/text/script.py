"""Scripted conversations: a user message names the tool calls that the simulated model makes.

``[call=NAME {json}]`` is a step with one call, and ``[call=NAME {json} + NAME {json}]`` is a step
with parallel calls. Several such markers are several steps. The sandbox keeps no state: the history
in each request determines which step comes next. Other markers apply to the next step after them,
and those behind the last step to the final answer.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

MAX_STEPS: Final = 1000
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
    """The calls of each step, and the text before each step and behind the last one."""

    steps: list[list[ScriptedCall]] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a conversation stands."""

    section: str
    """The text whose markers apply to the answer."""
    calls: list[ScriptedCall] = field(default_factory=list)
    """The calls of the next step. Empty after the last one, and without a script."""
    names: frozenset[str] = frozenset()
    """The names of all tools in the script."""
    result: str | None = None
    """The latest tool result since the user spoke, if there is one."""


def parse(text: str) -> Script:
    """Parse the script in a text. A malformed ``[call=…]`` is text."""
    script = Script()
    position = start = 0
    while (found := text.find(_START, position)) >= 0 and len(script.steps) < MAX_STEPS:
        calls, end = _parse_calls(text, found + len(_START))
        if calls:
            script.steps.append(calls)
            script.sections.append(text[start:found])
            start = end
        position = end
    script.sections.append(text[start:])
    return script


def _parse_calls(text: str, position: int) -> tuple[list[ScriptedCall], int]:
    """Parse the calls of one step. Returns them with the position behind the bracket, or none."""
    calls: list[ScriptedCall] = []
    start = position
    while name := _NAME.match(text, _skip_space(text, position)):
        call = ScriptedCall(name=name.group())
        position = _skip_space(text, name.end())
        if text[position : position + 1] in ("{", "[", '"'):
            try:
                call.input, position = _JSON.raw_decode(text, position)
                # Python reads half characters, which cannot be sent.
                msgspec.json.encode(call.input)
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
    """Determine the next step from the history."""
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    scripted = (index for index in reversed(users) if _START in turns[index].text)
    begin = next(scripted, None)
    if begin is not None:
        script = parse(turns[begin].text)
        later = turns[begin + 1 :]
        if script.steps and not _is_over(script, later):
            return _next(script, later)
    if not users:
        return Progress(section="")
    return Progress(section=turns[users[-1]].text, result=_last_result(turns[users[-1] + 1 :]))


def _last_result(turns: list[Turn]) -> str | None:
    return next((turn.text for turn in reversed(turns) if turn.role == "tool"), None)


def _is_over(script: Script, later: list[Turn]) -> bool:
    """Return whether the script was answered to its end and the user has spoken again."""
    remaining = sum(map(len, script.steps))
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
    progress = Progress(
        section=script.sections[-1],
        names=frozenset(call.name for calls in script.steps for call in calls),
        result=_last_result(later),
    )
    answered = sum(turn.role == "tool" for turn in later)
    for calls, section in zip(script.steps, script.sections, strict=False):
        if answered < len(calls):
            progress.calls = calls[answered:]
            progress.section = section
            break
        answered -= len(calls)
    return progress
