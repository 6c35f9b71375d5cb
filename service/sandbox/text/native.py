"""Reads a request of ``POST /responses`` as OpenAI does, to which Venice's native mode forwards.

How Venice passes OpenAI's refusals on is not documented: here they have Venice's usual form.
"""

from typing import Any, Final

from msgspec import UNSET

from service.sandbox.instances import instance
from service.sandbox.model import Model
from service.sandbox.refusals import invalid, issue
from service.sandbox.text import answers
from service.sandbox.text.answers import Question, Tool
from service.sandbox.text.responses_request import (
    ResponsesRequest,
    check_pictures,
    is_call,
    is_output,
    kind_of,
    turn_of,
)
from service.sandbox.text.script import Turn

SEAL: Final = "sealed-"
"""The start of the encrypted reasoning that this mode sends, and takes back."""
_BUILT_IN: Final = {
    "apply_patch": "apply_patch",
    "shell": "shell",
    "local_shell": "local_shell",
    "computer": "computer",
    "computer_use": "computer",
    "computer_use_preview": "computer",
}
"""The kinds of tools without a name, by type."""
_NAMELESS: Final = frozenset({"tool_search"})
_CHOICES: Final = ("auto", "none", "required")


def read(payload: ResponsesRequest, model: Model) -> Question:
    """Read what a request asks of the model.

    :raises Refusal: 400 for what OpenAI refuses.
    """
    items = payload.items
    _check_history(items)
    check_pictures(items, model)
    turns = [turn_of(item, index) for index, item in enumerate(items) if _is_turn(kind_of(item))]
    if payload.instructions is not None:
        turns.insert(0, Turn(role="system", text=payload.instructions))
    question = Question(
        model=model,
        turns=turns,
        tools=_tools(payload.tools or []),
        formatted=_formatted(payload, turns),
        max_tokens=payload.limit,
        is_parallel=payload.parallel_tool_calls is not False,
        may_think=payload.may_think,
        always_thinks=True,
    )
    _choose(payload, question)
    return question


def _is_turn(kind: str) -> bool:
    return kind == "message" or is_call(kind) or is_output(kind)


def _check_history(items: list[dict[str, Any]]) -> None:
    """Check that calls and their outputs match, and that reasoning comes back sealed."""
    called: dict[str, int] = {}
    for index, item in enumerate(items):
        kind = kind_of(item)
        if kind == "reasoning":
            _check_reasoning(item, index)
        elif is_call(kind):
            # Calls of hosted tools have no call_id.
            if isinstance(item.get("call_id"), str):
                called[item["call_id"]] = index
        elif is_output(kind):
            call_id = item.get("call_id")
            if call_id not in called:
                text = f"No tool call found for function call output with call_id {call_id}."
                raise invalid(issue(text, "input", index, "call_id"))
            del called[call_id]
    for call_id, index in called.items():
        raise invalid(
            issue(f"No tool output found for function call {call_id}.", "input", index, "call_id")
        )


def _check_reasoning(item: dict[str, Any], index: int) -> None:
    sealed = item.get("encrypted_content")
    if sealed is None:
        text = f"Item with id '{item.get('id')}' not found: items are not persisted."
        raise invalid(issue(text, "input", index, "id"))
    if not isinstance(sealed, str) or not sealed.startswith(SEAL):
        text = "The encrypted content could not be verified."
        raise invalid(issue(text, "input", index, code="invalid_encrypted_content"))
    if not isinstance(item.get("summary"), list):
        raise invalid(issue("Required", "input", index, "summary", code="invalid_type"))


def _tools(
    given: list[dict[str, Any]], namespace: str | None = None, *path: str | int
) -> list[Tool]:
    tools = []
    for index, tool in enumerate(given):
        at = (*path, "tools", index)
        kind = str(tool.get("type"))
        if kind == "namespace":
            inner = tool.get("tools")
            tools += _tools(inner if isinstance(inner, list) else [], str(tool.get("name")), *at)
        elif kind in ("function", "custom"):
            name = tool.get("name")
            if not isinstance(name, str):
                raise invalid(issue("Required", *at, "name", code="invalid_type"))
            schema = tool.get("parameters")
            if kind == "function" and tool.get("strict") is True:
                _check_strict(schema, *at, "parameters")
            tools.append(Tool(name=name, kind=kind, schema=schema, namespace=namespace))
        elif kind in _BUILT_IN:
            tools.append(Tool(name=_BUILT_IN[kind], kind=_BUILT_IN[kind]))
        elif kind not in _NAMELESS:
            raise invalid(issue(f"There is no tool of type {kind!r}", *at, "type"))
    return tools


def _check_strict(schema: Any, *path: str | int) -> None:
    """Check the uppermost level of a strict schema."""
    given = schema if isinstance(schema, dict) else {}
    if given.get("additionalProperties") is not False:
        raise invalid(issue("'additionalProperties' must be false in a strict schema", *path))
    if set(given.get("properties", ())) != set(given.get("required", ())):
        raise invalid(issue("'required' must name every property in a strict schema", *path))


def _formatted(payload: ResponsesRequest, turns: list[Turn]) -> Any:
    """Return the value of an answer in the requested JSON format, or UNSET."""
    requested = (payload.text or {}).get("format") or {}
    match requested.get("type", "text"):
        case "text":
            return UNSET
        case "json_object":
            if not any("json" in turn.text.lower() for turn in turns):
                text = "The input must contain the word 'json' for a json_object format."
                raise invalid(issue(text, "input"))
            return {"answer": answers.OPENING}
        case "json_schema":
            if not isinstance(requested.get("name"), str):
                raise invalid(issue("Required", "text", "format", "name", code="invalid_type"))
            schema = answers.schema_of(requested, "text", "format")
            if requested.get("strict") is True:
                _check_strict(schema, "text", "format", "schema")
            return instance(schema)
    raise invalid(issue("Unknown format", "text", "format", "type"))


def _choose(payload: ResponsesRequest, question: Question) -> None:
    """Apply ``tool_choice``.

    :raises Refusal: 400 when it does not fit the tools.
    """
    choice = payload.tool_choice
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise invalid(issue("Expected 'auto' | 'none' | 'required'", "tool_choice"))
        question.is_tool_required = choice == "required"
        question.is_tool_forbidden = choice == "none"
        return
    kind = str(choice.get("type"))
    if kind == "allowed_tools":
        question.is_tool_required = choice.get("mode") == "required"
        return
    name = choice.get("name", _BUILT_IN.get(kind))
    if name not in {tool.name for tool in question.tools}:
        text = "Tool choice not found in 'tools'" if name else "Required: 'name'"
        raise invalid(issue(text, "tool_choice", "name"))
    question.tool_name = str(name)
