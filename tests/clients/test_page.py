"""docs/clients.md: what it shows for SDKs runs as it is written. The blocks of the agents are what
test_matrix.py runs them with."""

import asyncio

import pytest
from client_process import running_client
from page import block
from support import assert_ledger_matches_charges

pytestmark = [
    pytest.mark.clients,
    pytest.mark.shares_service,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PYTHON_CALLS = {
    "OpenAI": """
        answer = client.chat.completions.create(
            model="llama-3.3-70b", messages=[{"role": "user", "content": "Hello"}]
        ).choices[0].message.content
    """,
    "Anthropic": """
        answer = client.messages.create(
            model="llama-3.3-70b",
            max_tokens=100,
            messages=[{"role": "user", "content": "Hello"}],
        ).content[0].text
    """,
    "LangChain": """
        answer = chat.invoke("Hello").text
        assert len(embeddings.embed_query("a fox")) == 1024
    """,
    "pydantic-ai": """
        answer = agent.run_sync("Hello").output
    """,
    "OpenAI's Agents SDK": """
        from agents import Runner
        answer = Runner.run_sync(agent, "Hello").final_output
    """,
    "LiteLLM": """
        answer = completion.choices[0].message.content
    """,
}
"""What follows the block of each heading in Python."""
JAVASCRIPT_CALLS = {
    "OpenAI": """
        const messages = [{ role: "user", content: "Hello" }];
        const made = await client.chat.completions.create({ model: "llama-3.3-70b", messages });
        export const answer = made.choices[0].message.content;
    """,
    "Anthropic": """
        const messages = [{ role: "user", content: "Hello" }];
        const asked = { model: "llama-3.3-70b", max_tokens: 100, messages };
        export const answer = (await client.messages.create(asked)).content[0].text;
    """,
    "AI SDK": """
        import { generateText } from "ai";
        export const answer = (await generateText({ model, prompt: "Hello" })).text;
    """,
}
"""What follows the block of each heading in JavaScript."""


async def run(caller, upstream, tmp_path, subtests, language, program, calls):
    """Run each block with its call, and compare the ledger."""
    async with running_client(program, tmp_path) as client:
        for heading, call in calls.items():
            with subtests.test(heading):
                code = block(heading, language, caller)
                answer = await client.ask(action="run", code=code, call=call)
                assert answer.get("text", "").startswith("This is a simulated answer"), answer
    calls_count = len(upstream.posts)
    assert calls_count >= len(calls)
    async with asyncio.timeout(5):
        while len(await caller.entries()) < calls_count:
            await asyncio.sleep(0.02)
    await assert_ledger_matches_charges(caller, upstream)


async def test_python(caller, upstream, tmp_path, subtests):
    """Each block in Python works with nothing changed but the address and the key."""
    await run(caller, upstream, tmp_path, subtests, "python", "page_blocks.py", PYTHON_CALLS)


async def test_javascript(caller, upstream, tmp_path, subtests):
    """Each block in JavaScript works with nothing changed but the address and the key."""
    await run(caller, upstream, tmp_path, subtests, "js", "page_blocks.mjs", JAVASCRIPT_CALLS)
