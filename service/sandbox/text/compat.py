"""Reads a request of ``POST /responses`` as Venice's translated mode does.

It ignores ``instructions``, ``text``, hosted tools, reasoning items and whatever it does not know.
"""

from typing import Any, Final

from service.sandbox.model import Model
from service.sandbox.reading import CHARACTER
from service.sandbox.refusals import invalid, issue
from service.sandbox.text import searches
from service.sandbox.text.answers import Question, Tool
from service.sandbox.text.responses_request import (
    ResponsesRequest,
    check_pictures,
    has_picture,
    kind_of,
    turn_of,
)

_ITEMS: Final = frozenset(
    ["message", "function_call", "function_call_output", "reasoning", "item_reference"]
)
_IGNORED_ITEMS: Final = frozenset({"reasoning", "item_reference"})
_IGNORED_TOOLS: Final = frozenset(
    ["web_search", "x_search", "code_interpreter", "file_search", "computer_use_preview"]
)
_PARTS: Final = frozenset({"input_text", "output_text", "input_image"})
_UNTYPED_PARTS: Final = _PARTS | {"text", "image_url"}
_DETAILS: Final = (None, "auto", "low", "high")
_CHOICES: Final = ("auto", "none", "required")


def read(payload: ResponsesRequest, model: Model) -> Question:
    """Translate a request to what a chat completion asks.

    :raises Refusal: 400 for what the translated mode refuses.
    """
    if "E2EE" in model.capabilities and payload.venice_parameters.enable_e2ee:
        raise invalid(issue("E2EE models are not available here", "model"))
    for index, item in enumerate(payload.items):
        _check_item(item, index)
    check_pictures([item for item in payload.items if "output" in item], model)
    items = [item for item in payload.items if kind_of(item) not in _IGNORED_ITEMS]
    slug = payload.venice_parameters.character_slug
    if slug and slug != CHARACTER["slug"]:
        # Venice takes the system messages away with the character that it does not find.
        items = [item for item in items if item.get("role") not in ("system", "developer")]
    question = Question(
        model=model,
        turns=[turn_of(item, index) for index, item in enumerate(items)],
        tools=_tools(payload),
        max_tokens=payload.limit,
        may_think=payload.may_think,
        is_thought_wanted=payload.is_thought_wanted,
        is_cited=payload.venice_parameters.enable_web_citations,
    )
    _choose(payload, question)
    _ask_to_search(payload, question)
    return question


def _check_item(item: dict[str, Any], index: int) -> None:
    kind = kind_of(item)
    if kind not in _ITEMS:
        raise invalid(issue("Invalid input", "input", index, "type", code="invalid_union"))
    if kind.startswith("function_call") and not isinstance(item.get("call_id"), str):
        raise invalid(issue("Required", "input", index, "call_id", code="invalid_type"))
    content = item.get("content")
    if kind != "message" or not isinstance(content, list):
        return
    allowed = _PARTS if item.get("type") else _UNTYPED_PARTS
    for number, part in enumerate(content):
        path = ("input", index, "content", number)
        if not isinstance(part, dict) or part.get("type") not in allowed:
            raise invalid(issue("Invalid input", *path, "type", code="invalid_union"))
        if part.get("detail") not in _DETAILS:
            raise invalid(issue("Expected 'auto' | 'low' | 'high'", *path, "detail"))


def _tools(payload: ResponsesRequest) -> list[Tool]:
    """Return the functions. Other tools with a name are functions to Venice, too."""
    tools = []
    for tool in payload.tools or ():
        function = tool.get("function")
        definition = function if isinstance(function, dict) else tool
        name = definition.get("name")
        if tool.get("type") not in _IGNORED_TOOLS and isinstance(name, str):
            tools.append(Tool(name=name, schema=definition.get("parameters")))
    return tools


def _choose(payload: ResponsesRequest, question: Question) -> None:
    """Apply ``tool_choice``, which Venice drops when there are no functions.

    :raises Refusal: 400 unless it has the form of chat completions.
    """
    choice = payload.tool_choice
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise invalid(issue("Invalid input", "tool_choice", code="invalid_union"))
        question.is_tool_required = choice == "required" and bool(question.tools)
        question.is_tool_forbidden = choice == "none"
        return
    function = choice.get("function")
    if choice.get("type") != "function" or not isinstance(function, dict):
        raise invalid(issue("Invalid input", "tool_choice", "function", code="invalid_union"))
    if question.tools:
        question.tool_name = str(function.get("name"))


def _ask_to_search(payload: ResponsesRequest, question: Question) -> None:
    """Apply the parameters of searches. A ``web_search`` tool forces a search."""
    parameters = payload.venice_parameters
    types = {tool.get("type") for tool in payload.tools or ()}
    if "x_search" in types and "XSearch" in question.model.capabilities:
        question.other_searches = 1
    users = [item for item in payload.items if item.get("role") == "user"]
    if has_picture(users[-1:]):
        return
    if parameters.enable_web_scraping:
        text = next((t.text for t in reversed(question.turns) if t.role == "user"), "")
        question.scraped_urls = searches.count_urls(text)
    is_forced = payload.web_search or "web_search" in types
    question.search = "on" if is_forced else parameters.enable_web_search
