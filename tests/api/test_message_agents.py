"""Agents of Anthropic's SDK that finish a task with tools, on models that answer oddly."""

import anthropic
import pytest

pytestmark = pytest.mark.shares_service

TOOLS = [
    {
        "name": name,
        "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}},
    }
    for name in ("read", "list")
]
TASK = (
    '[think=3] Mend it. [call=read {"path": "a.py"}] [call=list {"path": "b"} + read {"path": "c"}]'
)
THINKING = {"type": "enabled", "budget_tokens": 1024}
ODD_FORMS = (
    "shared-index",
    "no-index",
    "late-name",
    "empty-texts",
    "nulls",
    "interleaved",
    "whole-calls",
    "object-arguments",
    "float-usage",
    "text-usage",
    "encrypted",
    "crlf",
    "no-last-line-break",
)


@pytest.fixture
async def client(caller):
    async with anthropic.AsyncAnthropic(
        base_url=caller.service.url, api_key=caller.key, max_retries=0
    ) as client:
        yield client


async def finish(client, task, *, is_streamed, **members):
    """Let an agent work until its turn ends; return its calls and its last message."""
    messages = [{"role": "user", "content": task}]
    calls = []
    for _ in range(6):
        asked = {"max_tokens": 4000, "tools": TOOLS, "messages": messages, **members}
        if is_streamed:
            async with client.messages.stream(**asked) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(**asked)
        if message.stop_reason != "tool_use":
            return calls, message
        results = []
        for block in message.content:
            if block.type == "tool_use":
                calls.append((block.name, block.input))
                content = [{"type": "text", "text": f"result {len(calls)}"}]
                results.append({"type": "tool_result", "tool_use_id": block.id, "content": content})
        messages += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
            {"role": "system", "content": "Go on."},
        ]
    raise AssertionError("The agent did not finish.")


CALLS = [("read", {"path": "a.py"}), ("list", {"path": "b"}), ("read", {"path": "c"})]


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("llama-3.3-70b", None),
        ("qwen3-coder-480b", None),
        ("kimi-k2-6", THINKING),
        ("deepseek-v4-pro", THINKING),
        ("claude-opus-4-8", THINKING),
        ("gemini-3-flash-preview", THINKING),
        ("gemini-3-flash-preview", None),
    ],
)
async def test_an_agent_finishes(client, caller, model, thinking, is_streamed):
    """Every kind of model gets back what it needs, and the agent's last text quotes the result."""
    members = {"model": model} | ({"thinking": thinking} if thinking else {})
    calls, message = await finish(client, TASK, is_streamed=is_streamed, **members)

    assert calls == CALLS
    assert "result 3" in message.content[-1].text
    assert [entry["outcome"] for entry in await caller.entries()] == ["ok"] * 3


@pytest.mark.parametrize("form", ODD_FORMS)
async def test_an_agent_finishes_on_odd_streams(client, form):
    """No form that streams take now and then loses or mixes a call."""
    task = f"{TASK} [odd={form}]".replace("[call", f"[odd={form}] [call")
    for is_streamed in (True, False):
        calls, message = await finish(client, task, is_streamed=is_streamed, model="llama-3.3-70b")
        assert calls == CALLS, is_streamed
        assert "result 3" in message.content[-1].text
        assert message.usage.output_tokens > 0


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_search_of_an_agent(client, caller, is_streamed):
    """A search that is forced shows its results and citations, and the ledger has its price."""
    asked = {
        "model": "llama-3.3-70b",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "What do foxes do?"}],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "tool", "name": "web_search"},
    }
    if is_streamed:
        async with client.messages.stream(**asked) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(**asked)

    blocks = {block.type: block for block in message.content}
    assert blocks.keys() == {"server_tool_use", "web_search_tool_result", "text"}
    found = blocks["web_search_tool_result"].content[0]
    assert found.title == "Simulated result 1"
    assert [citation.url for citation in blocks["text"].citations] == [found.url]
    assert message.usage.server_tool_use.web_search_requests == 1
    assert float((await caller.only_entry())["cost_usd"]) > 0.01


async def test_a_refusal_of_an_agent(client):
    """A refusal is text, and the reason for the end."""
    message = await client.messages.create(
        model="llama-3.3-70b",
        max_tokens=100,
        messages=[{"role": "user", "content": "[refusal=I would rather not.]"}],
    )

    assert (message.content[0].text, message.stop_reason) == ("I would rather not.", "refusal")
