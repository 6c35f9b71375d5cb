"""What becomes of each member of a request for a response: the one table.

Venice serves a model of OpenAI's natively and translates requests for all others. Its translation
ignores members that chat completions lack, and others that it was not written for. So nothing that
it would ignore is sent to it: such a request goes by way of chat completions, which Rialto
translates itself, or is refused.

Source: https://docs.venice.ai/guides/features/responses-api
"""

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from service.errors import ClientError
from service.formats.reasoning import decode_reasoning

MODE_HEADER: Final = "x-venice-responses-mode"
AUTO, NATIVE, COMPAT = MODES = ("auto", "native", "compat")
NATIVE_MODELS: Final = "openai-"
"""The prefix of the models that Venice serves natively."""
TRANSLATED_MODELS: Final = frozenset({"openai-gpt-oss-120b"})
"""Models with that prefix that Venice translates all the same."""

Members = Mapping[str, Any]


class Way(enum.Enum):
    """What becomes of a member."""

    PASS = "pass"  # noqa: S105 - no password
    """Venice takes it as it is."""
    REWRITE = "rewrite"
    """Venice takes it in another form."""
    CHAT = "chat"
    """Only a chat completion can express it."""
    REFUSE = "refuse"
    """Venice has nothing like it."""
    TRANSLATED = "translated"
    """Native mode lacks it: Venice translates the request, so the other column counts."""
    PINNED = "pinned"
    """It is unknown here. Venice is asked for native mode, so that it refuses the member if it does
    not know it either, rather than translate the request without it."""
    LEFT_OUT = "left out"
    """It means nothing to Venice, and would make it leave native mode."""


PASS, REWRITE, CHAT, REFUSE = Way.PASS, Way.REWRITE, Way.CHAT, Way.REFUSE
TRANSLATED, PINNED, LEFT_OUT = Way.TRANSLATED, Way.PINNED, Way.LEFT_OUT


class MemberRule(NamedTuple):
    """What becomes of a member in native and in translated mode. ``neutral`` values ask for
    nothing; ``why`` says why the member is refused and what to do instead."""

    native: Way
    translated: Way
    neutral: tuple[Any, ...] = ()
    why: str = "cannot be expressed for this model; leave it out"


OFF: Final[tuple[Any, ...]] = (None, False, "", "off", [], {}, UNSET)
NOT_STORED: Final = "responses are not stored; send the whole conversation as input"
NO_FILES: Final = "files are not stored; send the content itself"
HOSTED: Final = "runs at OpenAI, and Venice has nothing like it; use a function"

ANY: Final = MemberRule(PASS, PASS)
BY_CHAT: Final = MemberRule(PASS, CHAT)
"""OpenAI has it, and Venice's translation ignores it."""
OF_CHAT: Final = MemberRule(TRANSLATED, CHAT, OFF)
"""Only chat completions have it."""
OF_VENICE: Final = MemberRule(TRANSLATED, PASS, OFF)
"""Venice's own."""
UNKNOWN: Final = MemberRule(PINNED, CHAT, OFF)
UNSTORED: Final = MemberRule(REFUSE, REFUSE, (None, False, UNSET), NOT_STORED)
NO_TOOL: Final = MemberRule(REFUSE, REFUSE, (), HOSTED)


def _each(names: str, rule: MemberRule) -> dict[str, MemberRule]:
    return dict.fromkeys(names.split(), rule)


MEMBERS: Final[Mapping[str, MemberRule]] = {
    "model": ANY,
    "stream": ANY,
    "stream_options": ANY,
    "max_output_tokens": ANY,
    "temperature": ANY,
    "top_p": ANY,
    "user": ANY,
    "safety_identifier": ANY,
    "anon_user_id": ANY,
    # Nothing is stored, whatever they state.
    "store": ANY,
    "metadata": ANY,
    "client_metadata": MemberRule(LEFT_OUT, LEFT_OUT),
    "background": UNSTORED,
    "previous_response_id": UNSTORED,
    "conversation": UNSTORED,
    "prompt": MemberRule(REFUSE, REFUSE, OFF, "prompts are not stored; send instructions"),
    "messages": MemberRule(REFUSE, REFUSE, OFF, "belongs to chat completions; send input"),
    "instructions": MemberRule(PASS, REWRITE, OFF),
    "parallel_tool_calls": MemberRule(PASS, CHAT, (None, True)),
    "top_logprobs": MemberRule(PASS, CHAT, OFF),
    "prompt_cache_key": MemberRule(PASS, CHAT, OFF),
    "prompt_cache_retention": MemberRule(PASS, CHAT, OFF),
    "truncation": MemberRule(PASS, REFUSE, (None, "disabled"), "must be 'disabled' for this model"),
    "max_tool_calls": MemberRule(
        PASS, REFUSE, (None,), "Venice cannot limit the calls of its own tools for this model"
    ),
    # Rialto replaces them by its own cap in either mode.
    "max_tokens": MemberRule(REFUSE, PASS, OFF, "use max_output_tokens"),
    "max_completion_tokens": MemberRule(REFUSE, PASS, OFF, "use max_output_tokens"),
    "service_tier": MemberRule(PINNED, CHAT, (None, "auto", "default", "standard")),
    "fallbacks": OF_VENICE,
    "web_search": OF_VENICE,
    **_each(
        "best_of n seed stop stop_token_ids response_format reasoning_effort verbosity logprobs"
        " logit_bias frequency_penalty presence_penalty repetition_penalty min_p top_k min_temp"
        " max_temp promptCacheKey thinking thinking_budget functions function_call modalities"
        " web_search_options x_search",
        OF_CHAT,
    ),
}
PARAMETERS: Final[Mapping[str, MemberRule]] = {
    "enable_e2ee": ANY,
    "include_venice_system_prompt": ANY,
    "enable_web_citations": ANY,
    "include_search_results_in_stream": ANY,
    "enable_web_search": OF_VENICE,
    "enable_web_scraping": OF_VENICE,
}
"""Venice's own parameters. Its translation ignores the others, and for a character that it does not
know the caller's instructions, too."""
REASONING: Final[Mapping[str, MemberRule]] = {
    "effort": ANY,
    "enabled": ANY,
    "summary": MemberRule(PASS, CHAT, (None,)),
    "generate_summary": MemberRule(PASS, CHAT, (None,)),
}
TEXT: Final[Mapping[str, MemberRule]] = {
    "format": MemberRule(PASS, CHAT, (None, {}, {"type": "text"})),
    "verbosity": MemberRule(PASS, CHAT, (None,)),
}
INCLUDE: Final[Mapping[str, MemberRule]] = {"message.output_text.logprobs": BY_CHAT}
"""What the answer should contain beside the usual. Other values are of tools that are not there, or
change nothing."""
ITEMS: Final[Mapping[str, MemberRule]] = {
    "message": ANY,
    "function_call": ANY,
    "function_call_output": ANY,
    "web_search_call": BY_CHAT,
    **_each(
        "reasoning custom_tool_call custom_tool_call_output local_shell_call"
        " local_shell_call_output shell_call shell_call_output apply_patch_call"
        " apply_patch_call_output tool_search_call tool_search_output computer_call"
        " computer_call_output",
        BY_CHAT,
    ),
    # The history of tools that ran at OpenAI; the answers that followed are texts.
    **_each(
        "file_search_call code_interpreter_call image_generation_call mcp_call mcp_list_tools"
        " mcp_approval_request mcp_approval_response ghost_snapshot",
        MemberRule(PINNED, CHAT),
    ),
    "item_reference": MemberRule(REFUSE, REFUSE, (), NOT_STORED),
}
UNKNOWN_ITEM: Final = MemberRule(PINNED, REFUSE)
LATE_SYSTEM: Final = BY_CHAT
"""A system message within the conversation: many models take only one, at the start."""
PARTS: Final[Mapping[str, MemberRule]] = {
    **_each("text input_text output_text summary_text reasoning_text", ANY),
    **_each("refusal input_image image_url computer_screenshot input_file", BY_CHAT),
    **_each("input_audio file video_url input_video", MemberRule(TRANSLATED, CHAT)),
}
UNKNOWN_PART: Final = MemberRule(PINNED, CHAT)
PART_MEMBERS: Final[Mapping[str, MemberRule]] = {
    "file_id": MemberRule(REFUSE, REFUSE, OFF, NO_FILES),
    "file_url": MemberRule(TRANSLATED, CHAT, OFF),
}
TEXTS_OF_PARTS: Final = ("text", "refusal")
TOOLS: Final[Mapping[str, MemberRule]] = {
    "function": ANY,
    "x_search": OF_VENICE,
    "web_search": MemberRule(TRANSLATED, CHAT),
    **_each(
        "custom local_shell apply_patch namespace shell tool_search computer computer_use_preview",
        BY_CHAT,
    ),
}
SEARCH_MEMBERS: Final[Mapping[str, MemberRule]] = {
    "filters": MemberRule(REFUSE, REFUSE, OFF, "Venice's search takes no filters"),
}
X_SEARCH_MEMBER: Final = MemberRule(
    TRANSLATED, PASS, OFF, "cannot be combined with what only chat completions can express"
)
"""A filter of a search of X. Chat completions can search X, but without filters."""
CHOICES: Final[Mapping[str, MemberRule]] = {
    "web_search": MemberRule(TRANSLATED, CHAT),
    **_each("auto none required", MemberRule(PINNED, CHAT)),
    **_each(
        "allowed_tools custom local_shell apply_patch shell tool_search computer"
        " computer_use_preview",
        BY_CHAT,
    ),
}
FLAT_CHOICE: Final = MemberRule(PASS, REWRITE)
NESTED: Final = MemberRule(REWRITE, PASS)
"""In the form of chat completions, which native mode does not know."""

WEB_SEARCH: Final = re.compile(r"web_?search(?:_preview)?(?:_\d{4}_?\d{2}_?\d{2})?", re.IGNORECASE)
X_SEARCH: Final = re.compile(r"x_?search", re.IGNORECASE)


def is_native(model: str) -> bool:
    """Whether Venice serves the model, by its own name, natively."""
    plain = model.partition(":")[0]
    return plain.startswith(NATIVE_MODELS) and plain not in TRANSLATED_MODELS


def tool_type(tool: Any) -> str:
    """Return the type of a tool, or of a choice of one, with one name for each search."""
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        return ""
    if WEB_SEARCH.fullmatch(kind):
        return "web_search"
    return "x_search" if X_SEARCH.fullmatch(kind) else kind


def item_type(item: Members) -> str:
    """Return the type of an item of the conversation. A message need not state its own."""
    kind = item.get("type")
    if kind is None:
        return "message" if "role" in item else "item_reference"
    return kind if isinstance(kind, str) else ""


class RuledMember(NamedTuple):
    """A member of a request, and its rule."""

    field: str
    rule: MemberRule


def findings(members: Members) -> Iterator[RuledMember]:
    """Yield the members of a request that ask for something, with their rules.

    :raises ClientError: for tools, contents and texts of another type, which no translation could
        read.
    """
    yield from _members_of(members, MEMBERS, UNKNOWN)
    if ":" in str(members.get("model", "")):
        # Only chat completions read what follows the colon.
        yield RuledMember("model", OF_CHAT)
    for name, table, other in (
        ("venice_parameters", PARAMETERS, OF_CHAT),
        ("reasoning", REASONING, UNKNOWN),
        ("text", TEXT, UNKNOWN),
    ):
        value = members.get(name)
        if isinstance(value, dict):
            yield from _members_of(value, table, other, f"{name}.")
    for index, value in enumerate(members.get("include") or ()):
        yield RuledMember(f"include[{index}]", INCLUDE.get(value, ANY))
    tools = members.get("tools")
    yield from _tools([] if tools is None else tools, "tools")
    yield from _choice(members.get("tool_choice"))
    yield from _input(members)


def _members_of(
    members: Members, table: Mapping[str, MemberRule], other: MemberRule, within: str = ""
) -> Iterator[RuledMember]:
    for name, value in members.items():
        if not within and name in NESTED_MEMBERS:
            continue
        rule = table.get(name, other)
        if value not in rule.neutral:
            yield RuledMember(within + name, rule)


NESTED_MEMBERS: Final = frozenset(
    {"input", "include", "tools", "tool_choice", "venice_parameters", "reasoning", "text"}
)
"""Members that have a table of their own."""


def _tools(tools: Any, within: str) -> Iterator[RuledMember]:
    for index, tool in enumerate(_checked_tools(tools, within)):
        field, kind = f"{within}[{index}]", tool_type(tool)
        rule = TOOLS.get(kind, NO_TOOL)
        if kind == "function" and isinstance(tool.get("function"), dict):
            rule = NESTED
        if not _runs_at_client(kind, tool):
            rule = NO_TOOL
        yield RuledMember(f"{field}.type" if rule is NO_TOOL else field, rule)
        if kind == "web_search":
            present = {name: tool[name] for name in SEARCH_MEMBERS if name in tool}
            yield from _members_of(present, SEARCH_MEMBERS, ANY, f"{field}.")
        if kind == "x_search":
            others = {name: value for name, value in tool.items() if name != "type"}
            yield from _members_of(others, {}, X_SEARCH_MEMBER, f"{field}.")
        if kind == "namespace" and tool.get("tools") is not None:
            yield from _tools(tool["tools"], f"{field}.tools")


def _checked_tools(tools: Any, field: str) -> list[Members]:
    """:raises ClientError: when they are not a list of objects."""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ClientError(f"{field}: must be a list of objects.", param=field)
    return tools


def _runs_at_client(kind: str, tool: Members) -> bool:
    """Whether a tool that may run at either end runs at the client's."""
    if kind == "shell":
        place = tool.get("environment")
        return place is None or (isinstance(place, dict) and place.get("type") == "local")
    return kind != "tool_search" or tool.get("execution") == "client"


def _choice(choice: Any) -> Iterator[RuledMember]:
    if not isinstance(choice, dict):
        return
    kind = tool_type(choice)
    if choice.get("tools") is not None:
        _checked_tools(choice["tools"], "tool_choice.tools")
    if kind == "function":
        yield RuledMember("tool_choice", NESTED if "function" in choice else FLAT_CHOICE)
    else:
        rule = CHOICES.get(kind, NO_TOOL)
        yield RuledMember("tool_choice.type" if rule is NO_TOOL else "tool_choice", rule)


def _input(members: Members) -> Iterator[RuledMember]:
    instructions, items = members.get("instructions"), members.get("input")
    if isinstance(instructions, list):
        yield from _items(instructions, "instructions", may_begin=True)
    if isinstance(items, list):
        yield from _items(items, "input", may_begin=instructions in OFF)


def _items(items: list[Any], within: str, *, may_begin: bool) -> Iterator[RuledMember]:
    """``may_begin``: whether a system message may stand first, since nothing is before it."""
    for index, item in enumerate(items):
        field = f"{within}[{index}]"
        if not isinstance(item, dict):
            yield RuledMember(field, UNKNOWN_ITEM)
            continue
        kind = item_type(item)
        rule = ITEMS.get(kind, UNKNOWN_ITEM)
        yield RuledMember(f"{field}.type" if rule.translated is REFUSE else field, rule)
        is_system = item.get("role") in ("system", "developer")
        if is_system and (index > 0 or not may_begin):
            yield RuledMember(field, LATE_SYSTEM)
        if item.get("namespace") is not None:
            yield RuledMember(f"{field}.namespace", BY_CHAT)
        if kind == "tool_search_output" and item.get("tools") is not None:
            _checked_tools(item["tools"], f"{field}.tools")
        if kind != "reasoning":
            _check_content(item.get("content"), f"{field}.content")
            for name in ("content", "output"):
                yield from _parts(item.get(name), f"{field}.{name}")


def _check_content(content: Any, field: str) -> None:
    """Check the content of an item, which cannot be arbitrary JSON like the output of a tool.

    :raises ClientError: when it is neither a text nor parts.
    """
    if not isinstance(content, str | list | dict | None):
        raise ClientError(f"{field}: must be a text or a list of objects.", param=field)
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict):
            raise ClientError(f"{field}[{index}]: must be an object.", param=f"{field}[{index}]")


def _parts(content: Any, field: str) -> Iterator[RuledMember]:
    if isinstance(content, dict):
        yield from _part(content, field)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            yield from _part(part, f"{field}[{index}]")


def _part(part: Any, field: str) -> Iterator[RuledMember]:
    if not isinstance(part, dict) or "type" not in part:
        return
    kind = part["type"]
    rule = PARTS.get(kind, UNKNOWN_PART) if isinstance(kind, str) else UNKNOWN_PART
    if rule is not ANY:
        yield RuledMember(field, rule)
    for name in TEXTS_OF_PARTS:
        if not isinstance(part.get(name), str | None):
            raise ClientError(f"{field}.{name}: must be a text.", param=f"{field}.{name}")
    for name in PART_MEMBERS:
        if part.get(name) not in PART_MEMBERS[name].neutral:
            yield RuledMember(f"{field}.{name}", PART_MEMBERS[name])


class Served(enum.Enum):
    """How a request is served."""

    NATIVE = "native"
    TRANSLATED = "translated"
    CHAT = "chat"


class Plan(NamedTuple):
    """How a request is served, and the members that change for it. ``UNSET`` removes one."""

    served: Served
    changes: Members
    mode: str | None = None
    """What the header for the mode states; None to leave it out."""
    field: str | None = None
    """The first member for which the request is not passed as it is."""


def plan(
    members: Members, found: Sequence[RuledMember], *, is_native_model: bool, mode: str | None
) -> Plan:
    """Decide how a request is served, for a model that Venice serves natively or not. ``found`` are
    its :func:`findings`, and ``mode`` is what the caller's header states.

    :raises ClientError: naming the first member that cannot be expressed.
    """
    if mode == NATIVE or (is_native_model and mode != COMPAT):
        leaving = next((one for one in found if one.rule.native is TRANSLATED), None)
        if mode == NATIVE and not is_native_model:
            raise ClientError(
                f"{MODE_HEADER}: native is for OpenAI's models alone.", param=MODE_HEADER
            )
        if leaving is not None and mode == NATIVE:
            raise _refusal(RuledMember(leaving.field, leaving.rule._replace(why=NOT_NATIVE)))
        if leaving is None:
            _refuse_first(found, "native")
            is_pinned = any(one.rule.native is PINNED for one in found)
            return Plan(Served.NATIVE, _native(members), NATIVE if is_pinned else mode)
    _refuse_first(found, "translated")
    for way in (CHAT, REWRITE):
        field = next((one.field for one in found if one.rule.translated is way), None)
        if field is not None and way is CHAT:
            for one in found:
                if one.rule is X_SEARCH_MEMBER:
                    raise _refusal(one)
            return Plan(Served.CHAT, {}, field=field)
    return Plan(Served.TRANSLATED, _translated(members), mode, field)


NOT_NATIVE: Final = f"native mode does not have it; leave {MODE_HEADER} out"


def _refuse_first(found: Sequence[RuledMember], column: str) -> None:
    for one in found:
        if getattr(one.rule, column) is REFUSE:
            raise _refusal(one)


def _refusal(finding: RuledMember) -> ClientError:
    return ClientError(f"{finding.field}: {finding.rule.why}.", param=finding.field)


def _native(members: Members) -> dict[str, Any]:
    """The changes for native mode, which takes OpenAI's own forms alone."""
    changes = _left_out(members)
    choice, tools = members.get("tool_choice"), members.get("tools")
    if isinstance(choice, dict) and "function" in choice and tool_type(choice) == "function":
        changes["tool_choice"] = _flat(choice)
    if isinstance(tools, list):
        native = [_native_tool(tool) for tool in tools]
        if native != tools:
            changes["tools"] = native
    items = members.get("input")
    if isinstance(items, list) and any(map(_is_foreign_reasoning, items)):
        changes["input"] = [item for item in items if not _is_foreign_reasoning(item)]
    return changes


def _native_tool(tool: Any) -> Any:
    """The tool in OpenAI's own form. A shell runs at the client unless it says otherwise, which
    OpenAI wants stated."""
    if _is_nested(tool):
        return _flat(tool)
    if tool_type(tool) == "shell" and tool.get("environment") is None:
        return {**tool, "environment": {"type": "local"}}
    return tool


def _is_foreign_reasoning(item: Any) -> bool:
    """Whether an item is the reasoning of a model that is not OpenAI's, which OpenAI refuses."""
    if not isinstance(item, dict) or item.get("type") != "reasoning":
        return False
    sealed = item.get("encrypted_content")
    return not isinstance(sealed, str) or bool(decode_reasoning(sealed))


def _is_nested(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("function"), dict)


def _flat(tool: Members) -> dict[str, Any]:
    """A function, or the choice of one, in the form of the Responses API."""
    function = tool["function"] if isinstance(tool["function"], dict) else {}
    return {name: value for name, value in tool.items() if name != "function"} | function


def _left_out(members: Members) -> dict[str, Any]:
    return {
        name: UNSET for name, rule in MEMBERS.items() if rule.native is LEFT_OUT and name in members
    }


def _translated(members: Members) -> dict[str, Any]:
    """The changes for Venice's translation, which takes a choice in the form of chat completions
    and reads no instructions."""
    changes = _left_out(members)
    choice, instructions = members.get("tool_choice"), members.get("instructions")
    if isinstance(choice, dict) and "function" not in choice and tool_type(choice) == "function":
        changes["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    if "instructions" in members:
        changes["instructions"] = UNSET
    if instructions not in OFF:
        changes["input"] = [*as_items(instructions, "system"), *as_items(members["input"], "user")]
    return changes


def as_items(conversation: Any, role: str) -> list[Any]:
    """The conversation, or the instructions, as items. ``role`` is that of a plain text."""
    if isinstance(conversation, list):
        return conversation
    return [{"role": role, "content": conversation}]
