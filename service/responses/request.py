"""Translates requests of the Responses API into requests for chat completions."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from service.formats.reasoning import KeptReasoning, decode_reasoning
from service.responses.table import OFF, TEXT, as_items, item_type, tool_type
from service.responses.tools import Toolbox, as_json
from service.responses.writer import REPEATED

Json = dict[str, Any]

TRANSLATED: Final = frozenset(
    [
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "include",
        "max_output_tokens",
        "top_logprobs",
        "parallel_tool_calls",
        "truncation",
        "store",
        "metadata",
        "client_metadata",
        "stream_options",
        "background",
        "previous_response_id",
        "conversation",
        "prompt",
        "max_tool_calls",
        "venice_parameters",
    ]
)
"""Members that are translated, or that mean nothing in a chat completion. Others are copied."""
LOGPROBS: Final = "message.output_text.logprobs"
SYSTEM: Final = ("system", "developer")
EMPTY_TURN: Final = {"role": "user", "content": ""}


class AnswerContext(NamedTuple):
    """What is needed of a request to translate its answer."""

    toolbox: Toolbox
    stated: Json
    """The members that the response repeats."""
    has_logprobs: bool


def repeated(members: Mapping[str, Any]) -> Json:
    """The members of a request that its response repeats."""
    names = ("model", *REPEATED)
    return {name: members[name] for name in names if members.get(name) is not None}


def chat_body(members: Mapping[str, Any]) -> tuple[Json, AnswerContext]:
    """Translate a request, all of whose members chat completions can express."""
    chat = {
        name: value
        for name, value in members.items()
        if name not in TRANSLATED and value is not None
    }
    if members.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = members["max_output_tokens"]
    toolbox = Toolbox()
    toolbox.add(_list(members.get("tools")))
    chat["messages"] = _Conversation(toolbox).read(members)
    chat |= _tools(members, toolbox)
    chat |= _format(members.get("text"))
    chat |= _reasoning(members.get("reasoning"))
    if parameters := _parameters(members, toolbox):
        chat["venice_parameters"] = parameters
    has_logprobs = LOGPROBS in _list(members.get("include")) or bool(members.get("top_logprobs"))
    if has_logprobs:
        chat["logprobs"] = True
        if members.get("top_logprobs"):
            chat["top_logprobs"] = members["top_logprobs"]
    return chat, AnswerContext(toolbox, repeated(members), has_logprobs)


def _tools(members: Mapping[str, Any], toolbox: Toolbox) -> Json:
    choice = toolbox.choice(members.get("tool_choice"))
    if not toolbox.functions:
        return {}
    chat: Json = {"tools": toolbox.functions}
    if choice is not None:
        chat["tool_choice"] = choice
    if members.get("parallel_tool_calls") is not None:
        chat["parallel_tool_calls"] = members["parallel_tool_calls"]
    return chat


def _format(text: Any) -> Json:
    if not isinstance(text, dict):
        return {}
    chat: Json = {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    others = {name: text[name] for name in text.keys() - {"format", "verbosity"}}
    if others:
        # Venice judges members that are not known here.
        chat["text"] = others
    stated = text.get("format")
    if isinstance(stated, dict) and stated.get("type") == "json_schema":
        schema = {name: value for name, value in stated.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif stated not in TEXT["format"].neutral:
        # Venice judges forms that are not known here, too.
        chat["response_format"] = stated
    return chat


def _reasoning(reasoning: Any) -> Json:
    if not isinstance(reasoning, dict):
        return {}
    kept = {name: value for name, value in reasoning.items() if value is not None}
    summary = kept.pop("generate_summary", None)
    if summary is not None:
        kept.setdefault("summary", summary)
    return {"reasoning": kept} if kept else {}


def _parameters(members: Mapping[str, Any], toolbox: Toolbox) -> Json:
    """Venice's own parameters, with those that hosted searches become."""
    stated = members.get("venice_parameters")
    parameters: Json = dict(stated) if isinstance(stated, dict) else {}
    choice = members.get("tool_choice")
    if toolbox.searches_web and choice != "none":
        is_named = isinstance(choice, dict) and tool_type(choice) == "web_search"
        must_search = is_named or (choice == "required" and not toolbox.functions)
        if parameters.get("enable_web_search") in OFF or must_search:
            parameters["enable_web_search"] = "on" if must_search else "auto"
        parameters.setdefault("enable_web_citations", True)
        parameters.setdefault("include_search_results_in_stream", True)
    if toolbox.searches_x and choice != "none":
        parameters["enable_x_search"] = True
    return parameters


class _Conversation:
    """Translates items into messages.

    Items of one turn of the model become one message: its reasoning, its text and its calls.
    Results of tools follow as messages of their own, and the pictures in them in a message of the
    user, since only these may have pictures. System messages at the start become one, and a later
    one becomes a part of the user's turn: many models take no other.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._messages: list[Json] = []
        self._turn: Json | None = None
        """The model's turn that the last items are of."""
        self._pictures: list[Json] = []
        """The pictures of the last results."""

    def read(self, members: Mapping[str, Any]) -> list[Json]:
        """Return the messages."""
        instructions = members.get("instructions")
        items = [] if instructions in OFF else as_items(instructions, "system")
        for item in [*items, *as_items(members.get("input") or "", "user")]:
            self._take(item)
        self._end_results()
        if not self._messages:
            self._messages.append(dict(EMPTY_TURN))
        return [_finish(message) for message in self._messages]

    def _take(self, item: Json) -> None:
        kind = item_type(item)
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            _add_reasoning(self._assistant(), item)
        elif kind.endswith("_output"):
            self._result(kind, item)
        elif kind in CALLS:
            name, arguments = self._toolbox.call({**item, "type": kind})
            function = {"name": name, "arguments": arguments}
            call = {"id": _call_id(item), "type": "function", "function": function}
            self._assistant().setdefault("tool_calls", []).append(call)
        # Others are the history of tools that ran elsewhere: the answer that followed has it.

    def _message(self, item: Json) -> None:
        role, parts = item.get("role", "user"), _parts(item.get("content"))
        if role == "assistant":
            self._assistant()["content"] += parts
            return
        self._end_results()
        last = self._messages[-1] if self._messages else None
        if role in SYSTEM:
            is_first = last is None or (last["role"] == "system" and len(self._messages) == 1)
            role = "system" if is_first else "user"
        if last is not None and last["role"] == role:
            last["content"] += parts
        else:
            self._messages.append({"role": role, "content": parts})

    def _assistant(self) -> Json:
        """The model's turn, which begins if there is none."""
        if self._turn is None:
            self._end_results()
            self._turn = {"role": "assistant", "content": []}
            self._messages.append(self._turn)
        return self._turn

    def _result(self, kind: str, item: Json) -> None:
        self._turn = None
        if kind == "tool_search_output":
            self._toolbox.add(_list(item.get("tools")))
        parts = _parts(_output(kind, item))
        text = "\n".join(part["text"] for part in parts if part.get("type") == "text")
        self._messages.append({"role": "tool", "tool_call_id": _call_id(item), "content": text})
        self._pictures += [part for part in parts if part.get("type") != "text"]

    def _end_results(self) -> None:
        self._turn = None
        if self._pictures:
            self._messages.append({"role": "user", "content": self._pictures})
            self._pictures = []


CALLS: Final = frozenset(
    [
        "function_call",
        "custom_tool_call",
        "tool_search_call",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
        "computer_call",
    ]
)


THOUGHTS: Final = "reasoning_content"
KEPT: Final = "kept"
"""The members of an unfinished turn that hold its thoughts and its :class:`KeptReasoning`."""


def _finish(message: Json) -> Json:
    """The message with its content in the shortest form and its reasoning joined."""
    content = message["content"]
    if isinstance(content, list):
        if not content and "tool_calls" in message:
            content = None
        elif all(part.keys() == {"type", "text"} for part in content):
            content = "\n\n".join(part["text"] for part in content if part["text"])
        else:
            content = [part for part in content if part.get("text") != ""]
    finished = {**message, "content": content}
    if (kept := finished.pop(KEPT, None)) is not None:
        finished |= kept.members
    if THOUGHTS in finished:
        finished[THOUGHTS] = "".join(finished[THOUGHTS])
    return finished


def _call_id(item: Json) -> str:
    # Older clients name a call of the local shell by its item.
    value = item.get("call_id") or item.get("id")
    return value if isinstance(value, str) else ""


def _output(kind: str, item: Json) -> Any:
    """The result of a tool, as a text or as parts."""
    output = item.get("output")
    if kind == "tool_search_output":
        return as_json([tool.get("name") for tool in _list(item.get("tools"))])
    if kind == "apply_patch_call_output":
        return output or str(item.get("status") or "")
    if kind == "shell_call_output" or not isinstance(output, str | list | dict):
        return "" if output is None else as_json(output)
    is_parts = all(isinstance(part, dict) and "type" in part for part in as_items(output, "user"))
    if isinstance(output, dict):
        return [output] if "type" in output else as_json(output)
    return output if is_parts or isinstance(output, str) else as_json(output)


def _parts(content: Any) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = content if isinstance(content, list) else [content]
    return [_part(part) for part in parts if isinstance(part, dict)]


def _part(part: Json) -> Json:
    """A part of a message in the form of chat completions. Marks for the cache are kept."""
    match part.get("type"):
        case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
            translated: Json = {"type": "text", "text": part.get("text") or ""}
        case "refusal":
            translated = {"type": "text", "text": part.get("refusal") or ""}
        case "input_image" | "image_url" | "computer_screenshot":
            translated = {"type": "image_url", "image_url": _image(part)}
        case "input_file":
            stated = part.get("file_data") or part.get("file_url")
            file = {"file_data": stated, "filename": part.get("filename")}
            named = {name: value for name, value in file.items() if value is not None}
            translated = {"type": "file", "file": named}
        case _:
            return part
    others = part.keys() - PART_MEMBERS
    # The caller's other members are for Venice to judge.
    return translated | {name: part[name] for name in others}


PART_MEMBERS: Final = frozenset(
    [
        "type",
        "text",
        "annotations",
        "logprobs",
        "refusal",
        "image_url",
        "detail",
        "file_id",
        "file_data",
        "file_url",
        "filename",
        "prompt_cache_breakpoint",
    ]
)


def _image(part: Json) -> Json:
    stated = part.get("image_url")
    image = dict(stated) if isinstance(stated, dict) else {"url": stated}
    detail = image.get("detail", part.get("detail"))
    if detail is not None:
        # Chat completions have no such detail as the original; "high" is the nearest.
        image["detail"] = "high" if detail == "original" else detail
    return image


def _add_reasoning(turn: Json, item: Json) -> None:
    """Add an item of reasoning to the model's turn: its text, and what the model wants back."""
    text = _joined(item.get("content")) or _joined(item.get("summary"))
    if text:
        turn.setdefault(THOUGHTS, []).append(text)
    kept = turn.setdefault(KEPT, KeptReasoning())
    kept.add(decode_reasoning(item.get("encrypted_content")), is_continued=not text)


def _joined(parts: Any) -> str:
    """The text of a reasoning item's parts; Venice gives plain texts as parts, too."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in _list(parts)]
    return "".join(text for text in texts if isinstance(text, str))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
