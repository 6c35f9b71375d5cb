"""Translates tools and the choice among them.

Tools that Anthropic's clients run themselves become functions. Web search becomes Venice's own.
Other tools that run at Anthropic are refused.
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType

from service.anthropic.client_tools import client_function
from service.errors import ClientError

Json = dict[str, Any]

SEARCH_TOOL: Final = "web_search_"
TOOL_SEARCH: Final = "tool_search_tool_"
"""Tools that find other tools. They are left out, because the model gets all tools at once."""


class Tool(Struct):
    """A tool that the model may call."""

    name: str
    type: str | None = "custom"
    description: str | None = None
    input_schema: Raw | UnsetType = UNSET
    strict: bool | None = None
    display_width_px: int | None = None
    display_height_px: int | None = None

    @property
    def is_search(self) -> bool:
        """Whether the tool is Anthropic's web search, which Venice's own replaces."""
        return (self.type or "").startswith(SEARCH_TOOL)


class ToolChoice(Struct):
    """Which tools the model must call."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def tool_members(tools: Sequence[Tool], choice: ToolChoice | None) -> Json:
    """The members of a chat completion for the tools.

    :raises ClientError: for a tool that runs at Anthropic, and for a choice that names no tool.
    """
    functions = [
        {"type": "function", "function": function}
        for index, tool in enumerate(tools)
        if (function := _function(tool, f"tools[{index}]")) is not None
    ]
    _check_choice(choice)
    if not functions:
        return {}
    return {"tools": functions, **_choice(tools, choice)}


def search_parameters(tools: Sequence[Tool], choice: ToolChoice | None) -> Json:
    """Venice's parameters for the web search, if it is among the tools."""
    if not any(tool.is_search for tool in tools) or (choice and choice.type == "none"):
        return {}
    is_alone = all(tool.is_search for tool in tools)
    is_forced = choice is not None and (
        (choice.type == "any" and is_alone) or _names_search(tools, choice)
    )
    return {
        "enable_web_search": "on" if is_forced else "auto",
        "enable_web_citations": True,
        "include_search_results_in_stream": True,
    }


def _names_search(tools: Sequence[Tool], choice: ToolChoice) -> bool:
    names = {tool.name for tool in tools if tool.is_search}
    return choice.type == "tool" and choice.name in names


def _check_choice(choice: ToolChoice | None) -> None:
    if choice is None:
        return
    if choice.type not in ("auto", "any", "tool", "none"):
        raise ClientError(
            "tool_choice.type: must be auto, any, tool or none.", param="tool_choice.type"
        )
    if choice.type == "tool" and choice.name is None:
        raise ClientError("tool_choice.name: is missing.", param="tool_choice.name")


def _choice(tools: Sequence[Tool], choice: ToolChoice | None) -> Json:
    if choice is None:
        return {}
    chat: Json = {}
    if choice.disable_parallel_tool_use is not None:
        chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if _names_search(tools, choice):
        # Venice searches whatever the model chooses among its functions.
        chat["tool_choice"] = "auto"
    elif choice.type == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        chat["tool_choice"] = "required" if choice.type == "any" else choice.type
    return chat


def _function(tool: Tool, field: str) -> Json | None:
    """The function for a tool; None for a tool that becomes none."""
    kind = tool.type or "custom"
    if tool.is_search or kind.startswith(TOOL_SEARCH):
        return None
    function: Json = {"name": tool.name}
    if kind != "custom":
        described = client_function(kind, tool.display_width_px, tool.display_height_px)
        if described is None:
            raise ClientError(
                f"{field}.type: {kind!r} runs at Anthropic, and is not available here.",
                param=f"{field}.type",
            )
        function |= described
    if tool.description is not None:
        function["description"] = tool.description
    if tool.input_schema is not UNSET:
        function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function
