"""Translates the tools of the Responses API into functions, and calls of them back.

Chat completions know functions alone. A tool of another type that the client runs becomes a
function with the parameters of its calls, and a call of that function becomes the item that the
client expects.
"""

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from service.errors import UpstreamError
from service.formats import surrogates
from service.responses.table import tool_type

Json = dict[str, Any]

MAX_NAME_LENGTH: Final = 64
"""The longest name of a function in chat completions."""
TEXT: Final = {"type": "string"}
NUMBER: Final = {"type": "number"}
WHOLE: Final = {"type": "integer"}
TEXTS: Final = {"type": "array", "items": TEXT}


def _schema(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


ACTION: Final = _schema(
    {
        "type": {
            "type": "string",
            "enum": (
                [
                    "click",
                    "double_click",
                    "drag",
                    "keypress",
                    "move",
                    "screenshot",
                    "scroll",
                    "type",
                    "wait",
                ]
            ),
        },
        "x": NUMBER,
        "y": NUMBER,
        "button": {"type": "string", "enum": ["left", "right", "wheel", "back", "forward"]},
        "scroll_x": NUMBER,
        "scroll_y": NUMBER,
        "text": TEXT,
        "keys": TEXTS,
        "path": {"type": "array", "items": _schema({"x": NUMBER, "y": NUMBER}, "x", "y")},
    },
    "type",
)


class ClientTool(NamedTuple):
    """A type of tool that the client runs, and whose parameters the type decides."""

    item: str
    """The type of the item that calls it."""
    prefix: str
    """How the ids of such items begin."""
    member: str
    """The item's member that has the parameters."""
    description: str
    parameters: Json


CLIENT_TOOLS: Final[Mapping[str, ClientTool]] = {
    "local_shell": ClientTool(
        "local_shell_call",
        "lsh",
        "action",
        "Run a command on the user's computer. The command is a list: the program, then its"
        ' arguments, such as ["bash", "-lc", "ls"].',
        _schema(
            {
                "command": TEXTS,
                "working_directory": TEXT,
                "timeout_ms": WHOLE,
                "env": {"type": "object", "additionalProperties": TEXT},
            },
            "command",
        ),
    ),
    "shell": ClientTool(
        "shell_call",
        "sh",
        "action",
        "Run shell commands on the user's computer.",
        _schema({"commands": TEXTS, "timeout_ms": WHOLE, "max_output_length": WHOLE}, "commands"),
    ),
    "apply_patch": ClientTool(
        "apply_patch_call",
        "apc",
        "operation",
        "Create, update or delete one file. The diff has lines that begin with a space, + or -,"
        " after @@ and a line of context; to create a file each line begins with +. Deleting a"
        " file takes no diff.",
        _schema(
            {
                "type": {
                    "type": "string",
                    "enum": ["create_file", "update_file", "delete_file"],
                },
                "path": TEXT,
                "diff": TEXT,
            },
            "type",
            "path",
        ),
    ),
    "computer": ClientTool(
        "computer_call",
        "cu",
        "actions",
        "Act on the user's computer, with one action or several; a picture of its screen follows.",
        _schema({"actions": {"type": "array", "items": ACTION}}, "actions"),
    ),
    "computer_use_preview": ClientTool(
        "computer_call",
        "cu",
        "action",
        "Act on the user's computer; a picture of its screen follows.",
        ACTION,
    ),
}
OF_ITEMS: Final = {
    "function_call": "function",
    "custom_tool_call": "custom",
    "tool_search_call": "tool_search",
    "local_shell_call": "local_shell",
    "shell_call": "shell",
    "apply_patch_call": "apply_patch",
}
"""The tool of each type of item that calls one; ``computer_call`` has two."""
INPUT: Final = _schema({"input": TEXT}, "input")
CUT_ENDS: Final = ('"}', "}", '"]}', "]}")
"""What may be missing at the end of arguments that were cut off."""


FUNCTION_MEMBERS: Final = frozenset(
    {"type", "name", "description", "parameters", "strict", "function", "defer_loading"}
)


class CallerTool(NamedTuple):
    """A tool as the caller knows it."""

    kind: str
    name: str
    namespace: str | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether an item that calls it can begin before its arguments are complete."""
        return self.kind in ("function", "custom")


class Toolbox:
    """The functions of a chat completion, and the tools that they stand for."""

    def __init__(self) -> None:
        self.functions: list[Json] = []
        self.searches_web = False
        self.searches_x = False
        self._names: dict[CallerTool, str] = {}
        self._tools: dict[str, CallerTool] = {}

    def add(self, tools: Iterable[Any], namespace: str | None = None) -> None:
        """Add tools as functions."""
        for tool in tools:
            kind = tool_type(tool)
            if kind == "web_search":
                self.searches_web = True
            elif kind == "x_search":
                self.searches_x = True
            elif kind == "namespace":
                self.add(tool.get("tools") or (), _text(tool.get("name")))
            elif isinstance(tool, dict):
                self._add(kind, tool, namespace)

    def _add(self, kind: str, tool: Json, namespace: str | None) -> None:
        inner = tool.get("function")
        stated = inner if kind == "function" and isinstance(inner, dict) else tool
        own_name = _text(stated.get("name")) or ("" if kind == "function" else kind)
        known = CallerTool(kind, own_name, namespace)
        if known in self._names:
            return
        function: Json = {"name": self.name_of(known)}
        if kind == "custom":
            function |= {"description": _custom_description(tool), "parameters": INPUT}
        elif kind in CLIENT_TOOLS:
            function["description"] = CLIENT_TOOLS[kind].description + _display(tool)
            function["parameters"] = CLIENT_TOOLS[kind].parameters
        else:
            for name in ("description", "parameters", "strict"):
                if stated.get(name) is not None:
                    function[name] = stated[name]
        # What else stands beside a function is for Venice to judge.
        others = tool.keys() - FUNCTION_MEMBERS
        kept = {name: tool[name] for name in others if kind == "function"}
        self.functions.append({"type": "function", "function": function, **kept})

    def name_of(self, tool: CallerTool) -> str:
        """The name of the function that stands for the tool. Each tool has its own."""
        if (name := self._names.get(tool)) is not None:
            return name
        name = tool.name
        if tool.namespace:
            name = f"{tool.namespace.removesuffix('__')}__{tool.name}"
        if name in self._tools or (tool.namespace and len(name) > MAX_NAME_LENGTH):
            digest = hashlib.sha256(repr(tool).encode(errors="replace")).hexdigest()[:8]
            name = f"{name[: MAX_NAME_LENGTH - 9]}_{digest}"
        self._names[tool] = name
        self._tools[name] = tool
        return name

    def choice(self, choice: Any) -> Any:
        """The choice of a tool in the form of chat completions; None for none that it has."""
        if not isinstance(choice, dict):
            return choice
        kind = tool_type(choice)
        if kind in ("auto", "none", "required"):
            return kind
        if kind in ("web_search", "x_search"):
            return None
        if kind == "allowed_tools":
            return self._allow(choice)
        return {"type": "function", "function": {"name": self._chosen(choice)}}

    def _chosen(self, choice: Json) -> str:
        inner = choice.get("function")
        stated = inner if isinstance(inner, dict) else choice
        kind = tool_type(choice)
        name = _text(stated.get("name")) or ("" if kind == "function" else kind)
        namespace = choice.get("namespace")
        return self.name_of(
            CallerTool(kind, name, namespace if isinstance(namespace, str) else None)
        )

    def _allow(self, choice: Json) -> str:
        """Leave the allowed functions alone, and return whether one must be called."""
        tools = choice.get("tools")
        allowed = [tool for tool in tools if isinstance(tool, dict)] if tools else []
        names = {self._chosen(tool) for tool in allowed}
        self.functions = [one for one in self.functions if one["function"]["name"] in names]
        kinds = set(map(tool_type, allowed))
        self.searches_web &= "web_search" in kinds
        self.searches_x &= "x_search" in kinds
        return "required" if choice.get("mode") == "required" else "auto"

    def call(self, item: Json) -> tuple[str, str]:
        """The function and the arguments of an item of the history that calls a tool."""
        kind = OF_ITEMS.get(item["type"])
        if kind is None:
            kind = "computer" if "actions" in item else "computer_use_preview"
        if kind in CLIENT_TOOLS:
            member = CLIENT_TOOLS[kind].member
            value = item.get(member)
            if kind == "computer":
                value = {"actions": value}
            elif kind == "local_shell" and isinstance(value, dict):
                value = {name: inner for name, inner in value.items() if name != "type"}
            return self.name_of(CallerTool(kind, kind)), as_json(value or {})
        namespace = item.get("namespace")
        namespace = namespace if isinstance(namespace, str) else None
        name = self.name_of(CallerTool(kind, _text(item.get("name")) or kind, namespace))
        if kind == "custom":
            return name, as_json({"input": item.get("input") or ""})
        arguments = item.get("arguments")
        return name, arguments if isinstance(arguments, str) else as_json(arguments or {})

    def tool_of(self, function: str) -> CallerTool:
        """The tool that a function stands for. A name that the model invents is a function."""
        return self._tools.get(function, CallerTool("function", function))


def new_item(tool: CallerTool, call_id: str) -> Json:
    """The item with which a call of the tool begins, without its arguments."""
    namespace = {"namespace": tool.namespace} if tool.namespace else {}
    if tool.kind == "custom":
        item = {"type": "custom_tool_call", "id": new_id("ctc"), "call_id": call_id}
        return {**item, "name": tool.name, "input": "", **namespace}
    item = {"type": "function_call", "id": new_id("fc"), "call_id": call_id, "name": tool.name}
    return {**item, "arguments": "", "status": "in_progress", **namespace}


def client_item(tool: CallerTool, call_id: str, arguments: str) -> Json:
    """The whole item that calls a tool whose parameters its type decides.

    :raises UpstreamError: when the model's arguments are none of the tool.
    """
    parameters = _read_parameters(tool, arguments)
    if tool.kind == "tool_search":
        return {
            "type": "tool_search_call",
            "id": new_id("tsc"),
            "call_id": call_id,
            "execution": "client",
            "arguments": parameters,
            "status": "completed",
        }
    known = CLIENT_TOOLS[tool.kind]
    item: Json = {"type": known.item, "id": new_id(known.prefix), "call_id": call_id}
    if tool.kind == "local_shell":
        parameters = {"type": "exec", "env": {}, **parameters}
    elif tool.kind == "apply_patch" and parameters["type"] != "delete_file":
        parameters.setdefault("diff", "")
    if known.item == "computer_call":
        item["pending_safety_checks"] = []
    item[known.member] = parameters["actions"] if tool.kind == "computer" else parameters
    return {**item, "status": "completed"}


def _read_parameters(tool: CallerTool, arguments: str) -> Json:
    try:
        parameters = surrogates.decode(surrogates.repair(arguments or "{}").encode(), dict)
    except msgspec.DecodeError:
        raise _unfit(tool) from None
    if tool.kind not in CLIENT_TOOLS:
        return parameters
    # Some models write null for what they leave out, and the command as one text.
    parameters = {name: value for name, value in parameters.items() if value is not None}
    if isinstance(parameters.get("command"), str):
        parameters["command"] = ["bash", "-lc", parameters["command"]]
    if isinstance(parameters.get("commands"), str):
        parameters["commands"] = [parameters["commands"]]
    if not _fits(parameters, CLIENT_TOOLS[tool.kind].parameters):
        raise _unfit(tool)
    return parameters


def _unfit(tool: CallerTool) -> UpstreamError:
    return UpstreamError(f"The model called {tool.name} with arguments that it does not have.")


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fits one of the schemas above."""
    match schema["type"]:
        case "string":
            return isinstance(value, str) and value in schema.get("enum", (value,))
        case "array":
            return isinstance(value, list) and all(_fits(one, schema["items"]) for one in value)
        case "object":
            properties = schema.get("properties", {})
            return (
                isinstance(value, dict)
                and all(name in value for name in schema.get("required", ()))
                and all(_fits(value[name], properties[name]) for name in value.keys() & properties)
            )
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)


def custom_input(arguments: str) -> str:
    """The input of a custom tool, by the arguments of its function. What is no JSON, or JSON of
    another form, is the input itself: some models write it so."""
    for end in ("", *CUT_ENDS):
        try:
            value = msgspec.json.decode(surrogates.repair(arguments) + end)
        except (msgspec.DecodeError, RecursionError):
            continue
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            texts = [text for text in value.values() if isinstance(text, str)]
            stated = value.get("input")
            if isinstance(stated, str):
                return stated
            if len(texts) == len(value) == 1:
                return texts[0]
        return arguments
    return arguments


def new_id(prefix: str) -> str:
    """A new id of an item or a response."""
    return f"{prefix}_{uuid.uuid4().hex}"


def _custom_description(tool: Json) -> str:
    parts = [_text(tool.get("description"))]
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        syntax = _text(form.get("syntax")) or "lark"
        parts.append(
            f"The input must match this {syntax} grammar:\n{_text(form.get('definition'))}"
        )
    return "\n\n".join(filter(None, parts)) or f"Takes any text as its input: {tool.get('name')}"


def _display(tool: Json) -> str:
    width, height = tool.get("display_width"), tool.get("display_height")
    return f" The screen has {width} x {height} pixels." if width and height else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_json(value: Any) -> str:
    """Return a value as the JSON text of a call or a result."""
    return surrogates.encode(value).decode()
