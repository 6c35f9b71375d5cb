"""Tools of Anthropic's clients as functions, and web search as Venice's own."""

import json

import pytest
from anthropic.types.beta import (
    BetaMemoryTool20250818CreateCommand,
    BetaMemoryTool20250818DeleteCommand,
    BetaMemoryTool20250818InsertCommand,
    BetaMemoryTool20250818RenameCommand,
    BetaMemoryTool20250818StrReplaceCommand,
    BetaMemoryTool20250818ViewCommand,
)

from service.anthropic import chat_request, decode
from service.errors import ClientError

SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
LOOK = {"name": "look", "input_schema": {"type": "object"}}


def chat(*tools, choice=None):
    """What Venice would get."""
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    asked |= {"tools": list(tools), "tool_choice": choice}
    return json.loads(chat_request(decode(json.dumps(asked).encode()), takes_effort=True).body)


def function(**tool):
    (sent,) = chat(tool)["tools"]
    return sent["function"]


@pytest.mark.parametrize(
    ("kind", "name", "required", "some"),
    [
        ("bash_20250124", "bash", [], {"command", "restart"}),
        ("bash_20241022", "bash", [], {"command", "restart"}),
        (
            "text_editor_20250728",
            "str_replace_based_edit_tool",
            ["command", "path"],
            {"file_text", "insert_line", "insert_text", "old_str", "new_str", "view_range"},
        ),
        ("text_editor_20250124", "str_replace_editor", ["command", "path"], {"new_str"}),
        ("computer_20250124", "computer", ["action"], {"coordinate", "scroll_amount", "duration"}),
        ("computer_20251124", "computer", ["action"], {"region"}),
        ("memory_20250818", "memory", ["command"], {"path", "old_path", "insert_text"}),
    ],
)
def test_tools_of_the_client(kind, name, required, some):
    """A tool that the client runs is a function with the parameters that Anthropic documents."""
    sent = function(type=kind, name=name, display_width_px=800, display_height_px=600, strict=True)
    parameters = sent["parameters"]

    assert (sent["name"], sent["strict"]) == (name, True)
    assert sent["description"]
    assert parameters["required"] == required
    assert some <= parameters["properties"].keys()
    if name == "computer":
        assert "800 by 600" in sent["description"]
        assert "zoom" in parameters["properties"]["action"]["enum"] or kind < "computer_2025112"


def test_memory_has_the_members_of_the_sdk():
    """Each command of the SDK's own memory tool finds its members among the parameters."""
    properties = function(type="memory_20250818", name="memory")["parameters"]["properties"]

    for command in (
        BetaMemoryTool20250818CreateCommand,
        BetaMemoryTool20250818DeleteCommand,
        BetaMemoryTool20250818InsertCommand,
        BetaMemoryTool20250818RenameCommand,
        BetaMemoryTool20250818StrReplaceCommand,
        BetaMemoryTool20250818ViewCommand,
    ):
        assert command.model_fields.keys() <= properties.keys()
        (name,) = command.model_fields["command"].annotation.__args__
        assert name in properties["command"]["enum"]


def test_only_old_editors_undo():
    """``undo_edit`` and the name of the inserted text depend on the version."""
    new = function(type="text_editor_20250728", name="e")["parameters"]["properties"]
    old = function(type="text_editor_20241022", name="e")["parameters"]["properties"]

    assert "undo_edit" in old["command"]["enum"]
    assert "undo_edit" not in new["command"]["enum"]
    assert "insert_text" not in old


@pytest.mark.parametrize(
    "kind", ["code_execution_20250825", "web_fetch_20250910", "computer_toolset_20260801", "x"]
)
def test_other_tools_are_refused(kind):
    """A tool that runs at Anthropic is refused by its place."""
    with pytest.raises(ClientError, match="runs at Anthropic") as caught:
        chat(LOOK, {"type": kind, "name": "x"})

    assert caught.value.param == "tools[1].type"


def test_a_search_for_tools_is_left_out():
    """The model gets all tools at once, deferred ones too."""
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}

    (sent,) = chat(search, {**LOOK, "defer_loading": True})["tools"]
    assert sent["function"]["name"] == "look"


@pytest.mark.parametrize(
    ("tools", "choice", "searches", "sent"),
    [
        ([SEARCH], None, "auto", None),
        ([SEARCH], {"type": "auto"}, "auto", None),
        ([SEARCH], {"type": "any"}, "on", None),
        ([SEARCH], {"type": "tool", "name": "web_search"}, "on", None),
        ([SEARCH], {"type": "none"}, None, None),
        ([SEARCH, LOOK], None, "auto", None),
        ([SEARCH, LOOK], {"type": "any"}, "auto", "required"),
        ([SEARCH, LOOK], {"type": "tool", "name": "web_search"}, "on", "auto"),
        (
            [SEARCH, LOOK],
            {"type": "tool", "name": "look"},
            "auto",
            {"type": "function", "function": {"name": "look"}},
        ),
        ([SEARCH, LOOK], {"type": "none"}, None, "none"),
        ([LOOK], {"type": "any"}, None, "required"),
    ],
)
def test_web_search(tools, choice, searches, sent):
    """Web search is Venice's own, forced where the choice names it; functions keep their choice."""
    body = chat(*tools, choice=choice)

    parameters = body["venice_parameters"]
    assert parameters.get("enable_web_search") == searches
    assert parameters.get("enable_web_citations") == (None if searches is None else True)
    assert body.get("tool_choice") == sent
    assert len(body.get("tools", [])) == (LOOK in tools)


@pytest.mark.parametrize(
    ("choice", "param"),
    [({"type": "sometimes"}, "tool_choice.type"), ({"type": "tool"}, "tool_choice.name")],
)
def test_a_malformed_choice(choice, param):
    """A choice that names no tool, or is of another type, is refused."""
    for tools in ([LOOK], [SEARCH]):
        with pytest.raises(ClientError) as caught:
            chat(*tools, choice=choice)
        assert caught.value.param == param
