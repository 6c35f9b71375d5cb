"""The tools that Anthropic's clients run, as functions.

Anthropic's own models know their schemas, so requests do not state them. They are documented at
https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview.
"""

import re
from typing import Any, Final

Json = dict[str, Any]

KIND: Final = re.compile(r"(bash|text_editor|computer|memory)_(\d{8})")
INSERTS_TEXT: Final = "20250728"
"""The version since which the text editor calls what it inserts ``insert_text``."""
UNDOES: Final = "20250124"
"""The last version of the text editor with ``undo_edit``."""
ZOOMS: Final = "20251124"
MOVES_MORE: Final = "20250124"
"""The versions of the computer that added actions."""
ACTIONS: Final = (
    "key",
    "type",
    "mouse_move",
    "left_click",
    "left_click_drag",
    "right_click",
    "middle_click",
    "double_click",
    "screenshot",
    "cursor_position",
)
MORE_ACTIONS: Final = (
    "left_mouse_down",
    "left_mouse_up",
    "triple_click",
    "scroll",
    "hold_key",
    "wait",
)


def client_function(kind: str, width: int | None, height: int | None) -> Json | None:
    """The description and the parameters of a tool of this type; None if it is not the client's.
    ``width`` and ``height`` are of the screen, in pixels."""
    match = KIND.fullmatch(kind)
    if match is None:
        return None
    name, version = match.groups()
    if name == "bash":
        return _bash()
    if name == "memory":
        return _memory()
    if name == "text_editor":
        return _text_editor(version)
    return _computer(version, width, height)


def _text(description: str, *choices: str) -> Json:
    text: Json = {"type": "string", "description": description}
    return text | {"enum": list(choices)} if choices else text


def _number(description: str) -> Json:
    return {"type": "integer", "description": description}


def _numbers(description: str, count: int) -> Json:
    return {
        "type": "array",
        "items": {"type": "integer"},
        "minItems": count,
        "maxItems": count,
        "description": description,
    }


def _described(description: str, properties: Json, *required: str) -> Json:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"description": description, "parameters": parameters}


def _bash() -> Json:
    properties = {
        "command": _text("The command to run. Required unless restart is true."),
        "restart": {"type": "boolean", "description": "True to restart the shell."},
    }
    return _described("Run a command in a bash shell that keeps its state.", properties)


def _edits(inserted: str) -> Json:
    """The properties that the text editor and the memory have in common."""
    return {
        "file_text": _text("The content of the new file, for create."),
        "old_str": _text("The text to replace, for str_replace. It must occur exactly once."),
        inserted: _text("The text to insert, for insert."),
        "new_str": _text(
            "The text that replaces it, for str_replace."
            + (" The text to insert, for insert." if inserted == "new_str" else "")
        ),
        "insert_line": _number("The line after which to insert, for insert; 0 for the start."),
        "view_range": _numbers("The first and the last line to show, for view; -1 is the end.", 2),
    }


def _text_editor(version: str) -> Json:
    commands = ["view", "create", "str_replace", "insert"]
    if version <= UNDOES:
        commands.append("undo_edit")
    properties = {
        "command": _text("What to do.", *commands),
        "path": _text("The absolute path of the file or the directory."),
        **_edits("insert_text" if version >= INSERTS_TEXT else "new_str"),
    }
    return _described("View, create and edit files.", properties, "command", "path")


def _memory() -> Json:
    commands = ("view", "create", "str_replace", "insert", "delete", "rename")
    properties = {
        "command": _text("What to do.", *commands),
        "path": _text("The path below /memories, for every command but rename."),
        **_edits("insert_text"),
        "old_path": _text("The path to rename, for rename."),
        "new_path": _text("The new path, for rename."),
    }
    return _described(
        "Keep notes in files below /memories, which stay for later conversations. View /memories"
        " before other work.",
        properties,
        "command",
    )


def _computer(version: str, width: int | None, height: int | None) -> Json:
    actions = [*ACTIONS]
    properties = {
        "coordinate": _numbers("The x and y in pixels from the top left.", 2),
        "text": _text("The text to type, or the keys to press, such as ctrl+s."),
    }
    if version >= MOVES_MORE:
        actions += MORE_ACTIONS
        properties |= {
            "start_coordinate": _numbers("Where the drag starts, for left_click_drag.", 2),
            "scroll_direction": _text("For scroll.", "up", "down", "left", "right"),
            "scroll_amount": _number("How many steps to scroll, for scroll."),
            "duration": {"type": "number", "description": "Seconds, for hold_key and wait."},
        }
    if version >= ZOOMS:
        actions.append("zoom")
        properties["region"] = _numbers("The corners x1, y1, x2, y2, for zoom.", 4)
    size = f"{width or '?'} by {height or '?'} pixels"
    return _described(
        f"Use a screen of {size} with mouse and keyboard, and take screenshots of it.",
        {"action": _text("What to do.", *actions), **properties},
        "action",
    )
