"""Scripted conversations with the sandbox: tool calls that a user message names."""

import json
from typing import Any

import pytest
from sandbox_client import CHAT, Client, refused

MODEL = "llama-3.3-70b"
RESPONSES = "/api/v1/responses"
TASK = 'Fix it. [call=read {"path": "a[1].py"}] [call=list {} + read {"path": "b.py"}] Thanks.'
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
NAMES = ("list", "read")
CHAT_TOOLS = [{"type": "function", "function": {"name": n, "parameters": SCHEMA}} for n in NAMES]
TOOLS = [{"type": "function", "name": n, "parameters": SCHEMA, "strict": False} for n in NAMES]
WANTED = [("read", {"path": "a[1].py"}), ("list", {}), ("read", {"path": "b.py"})]


def run(name: str, arguments: str) -> str:
    """Play a tool whose result shows what it was called with."""
    return f"{name} returned {json.loads(arguments).get('path', 'nothing')}"


async def chat(sdk: Any, asked: dict[str, Any], streamed: bool) -> Any:
    if not streamed:
        return await sdk.chat.completions.create(**asked)
    async with sdk.chat.completions.stream(**asked) as stream:
        return await stream.get_final_completion()


async def chat_to_its_end(sdk: Any, model: str, streamed: bool) -> tuple[list[Any], str, list[int]]:
    """Run an agent's loop over chat completions. Returns its calls, the last text and how many
    calls each turn had."""
    messages: list[Any] = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": TASK},
    ]
    called, counts = [], []
    for _ in range(5):
        asked = {"model": model, "messages": messages, "tools": CHAT_TOOLS}
        message = (await chat(sdk, asked, streamed)).choices[0].message
        calls = message.tool_calls or []
        counts.append(len(calls))
        if not calls:
            return called, message.content, counts
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in calls:
            function = call.function
            called.append((function.name, json.loads(function.arguments)))
            result = run(function.name, function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise AssertionError("The conversation has no end.")


async def responses(sdk: Any, asked: dict[str, Any], streamed: bool) -> Any:
    if not streamed:
        return await sdk.responses.create(**asked)
    events = [event async for event in await sdk.responses.create(**asked, stream=True)]
    return events[-1].response


async def responses_to_its_end(
    sdk: Any, model: str, streamed: bool
) -> tuple[list[Any], str, list[int]]:
    """Run an agent's loop over the Responses API, as :func:`chat_to_its_end` does."""
    items: list[Any] = [{"role": "user", "content": TASK}]
    called, counts = [], []
    for _ in range(5):
        response = await responses(sdk, {"model": model, "input": items, "tools": TOOLS}, streamed)
        # Venice's summaries are texts where the SDK expects objects.
        items += [item.model_dump(exclude_none=True, warnings=False) for item in response.output]
        calls = [item for item in response.output if item.type == "function_call"]
        counts.append(len(calls))
        if not calls:
            return called, response.output_text, counts
        for call in calls:
            called.append((call.name, json.loads(call.arguments)))
            output = run(call.name, call.arguments)
            given = {"type": "function_call_output", "call_id": call.call_id, "output": output}
            items.append(given)
    raise AssertionError("The conversation has no end.")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("converse", "model"),
    [
        (chat_to_its_end, MODEL),
        (chat_to_its_end, "kimi-k2-6"),
        (chat_to_its_end, "claude-opus-4-8"),
        (chat_to_its_end, "qwen3-coder-480b"),
        (chat_to_its_end, "openai-gpt-52"),
        (responses_to_its_end, MODEL),
        (responses_to_its_end, "kimi-k2-6"),
        (responses_to_its_end, "openai-gpt-oss-120b"),
        (responses_to_its_end, "openai-gpt-52"),
        (responses_to_its_end, "openai-gpt-4o-mini-2024-07-18"),
    ],
)
async def test_script_is_played(sdk: Any, converse: Any, model: str, streamed: bool) -> None:
    """An agent makes all scripted calls turn by turn and ends with a text that quotes the last
    result, in both APIs, whole and streamed."""
    called, text, counts = await converse(sdk, model, streamed)

    assert called == WANTED
    assert counts == [1, 2, 0]
    assert text.startswith("This is a simulated answer")
    assert text.endswith("The last tool returned: read returned b.py")


def history(*turns: Any) -> list[dict[str, Any]]:
    """Return messages: a text is the user's, a number that many calls with their results."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if isinstance(turn, str):
            role, _, text = turn.partition(": ")
            messages.append({"role": role, "content": text})
            continue
        ids = [f"call_{len(messages)}_{number}" for number in range(turn)]
        function = {"name": "read", "arguments": "{}"}
        calls = [{"id": id_, "type": "function", "function": function} for id_ in ids]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": id_, "content": "found"} for id_ in ids]
    return messages


SCRIPT = "user: [call=read {}][call=list {} + read {}]"


@pytest.mark.parametrize(
    ("turns", "names"),
    [
        ((SCRIPT,), ["read"]),
        ((SCRIPT, 1), ["list", "read"]),
        # A reminder that a client adds does not end the script.
        ((SCRIPT, 1, "user: Remember the rules."), ["list", "read"]),
        ((SCRIPT, 1, 1), ["read"]),
        ((SCRIPT, 1, 2), []),
        ((SCRIPT, 1, 2, "user: Remember the rules."), []),
        ((SCRIPT, 1, 2, "assistant: done", "user: thanks"), []),
        ((SCRIPT, 1, "assistant: I stop.", "user: Go on."), ["list", "read"]),
        ((SCRIPT, 1, 2, "assistant: done", "user: more [call=list]"), ["list"]),
        (("user: [tools=2]",), ["list", "read"]),
        (("user: [tools=2]", 2, "user: Remember the rules."), []),
        (("user: [tools=2]", 2), []),
        (("user: [call=read {broken}]",), []),
        (("user: [call=]",), []),
        (('user: [call=read {"a": "\\ud800"}]',), []),
    ],
)
async def test_next_turn(sdk: Any, turns: Any, names: list[str]) -> None:
    """The history determines which calls come next."""
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=history(*turns), tools=CHAT_TOOLS
    )
    message = answer.choices[0].message

    assert [call.function.name for call in message.tool_calls or []] == names
    if turns[-1] == "user: thanks":
        assert message.content.endswith("You wrote: thanks")


async def test_call_without_arguments(sdk: Any) -> None:
    """A scripted call without arguments gets those that the tool's schema requires."""
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=history("user: [call=read]"), tools=CHAT_TOOLS
    )

    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"path": "simulated"}


async def test_one_call_at_a_time(sdk: Any) -> None:
    """Without parallel calls, the calls of a turn are made one after the other."""
    names = []
    for done in range(3):
        answer = await sdk.chat.completions.create(
            model=MODEL,
            messages=history("user: [call=read {} + list {}]", *[1] * done),
            tools=CHAT_TOOLS,
            parallel_tool_calls=False,
        )
        calls = answer.choices[0].message.tool_calls or []
        names.append([call.function.name for call in calls])

    assert names == [["read"], ["list"], []]


async def test_tool_that_is_not_offered(sdk: Any) -> None:
    """A scripted call of a tool that was not offered is a text that names the offered ones."""
    asked = {"model": MODEL, "messages": history("user: [call=write {}]")}
    offered = await sdk.chat.completions.create(**asked, tools=CHAT_TOOLS)
    without = await sdk.chat.completions.create(**asked)

    assert "The script calls write, but the tools offered are list, read." in (
        offered.choices[0].message.content
    )
    assert "You wrote: [call=write {}]" in without.choices[0].message.content


async def test_required_tool_after_a_script(sdk: Any) -> None:
    """A tool that is required after the script is another than the script's, as frameworks offer
    one for the final answer."""
    answer = await sdk.chat.completions.create(
        model=MODEL,
        messages=history("user: [call=list {}]", 1),
        tools=CHAT_TOOLS,
        tool_choice="required",
    )

    assert answer.choices[0].message.tool_calls[0].function.name == "read"


async def test_markers_apply_to_the_next_turn(sdk: Any) -> None:
    """A marker before a call applies to its turn only, and one behind the last call to the final
    text."""
    task = "user: [text=I look.][finish=stop][call=list {}][finish=tool_use][call=read][tokens=2]"
    answers = [
        await sdk.chat.completions.create(
            model=MODEL, messages=history(task, *[1] * done), tools=CHAT_TOOLS
        )
        for done in range(3)
    ]
    first, second, third = (answer.choices[0] for answer in answers)

    assert (first.message.content, first.finish_reason) == ("I look.", "stop")
    assert (second.message.content, second.finish_reason) == (None, "tool_use")
    assert (third.message.content, third.finish_reason) == ("This is", "stop")


async def test_reply_of_a_system_prompt(sdk: Any) -> None:
    """``[reply=TEXT]`` determines the text, also in a system prompt, and so shows that this
    arrived."""
    system = {"role": "system", "content": "Be brief. [reply=Aye, sir.]"}
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=[system, {"role": "user", "content": "Hello"}]
    )

    assert answer.choices[0].message.content == "Aye, sir."


async def test_parts_in_a_result(venice: Client) -> None:
    """A tool's result must be one text in chat completions, and name its call."""
    parts = [{"type": "text", "text": "found"}]
    messages = history("user: [call=read {}]", 1)
    for wrong, path in (({"content": parts}, "content"), ({"tool_call_id": None}, "tool_call_id")):
        bent = [*messages[:-1], {**messages[-1], **wrong}]
        status, body = await refused(venice, {"model": MODEL, "messages": bent}, CHAT)

        assert (status, body["issues"][0]["path"]) == (400, ["messages", 2, path])
