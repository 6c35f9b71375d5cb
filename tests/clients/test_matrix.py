"""Each client with each kind of call, and what the ledger has afterwards."""

import asyncio
import dataclasses
from decimal import Decimal

import pytest
from client_process import running_client
from page import block
from prometheus_client.parser import text_string_to_metric_families
from support import MODEL, OPERATOR_KEY, assert_ledger_matches_charges, cost_of, set_limit

pytestmark = [
    pytest.mark.clients,
    pytest.mark.shares_service,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

HELLO = "Hello [tokens=12]"
LOOK = 'Where is it? [call=look {"where": "the den", "times": 2}]'
OPENING = "This is a simulated answer"
LOOKED = "A fox in the den, 2 times."
FOX = {"name": "simulated", "age": 0, "friends": ["simulated"]}
WRONG_KEY = "rk_" + "A" * 43
DEADLINE_S = 5
AGENT_USD = "3"

MODELS = {
    "chat": MODEL,
    "compatible": MODEL,
    "messages": MODEL,
    "responses": MODEL,
    "native": "openai-gpt-52",
}
"""The model for each dialect. Venice translates the responses of all models but those of OpenAI,
which are native."""
RESPONSES = ("responses", "native")
SDKS = {
    "openai_sdk.py": ("chat", *RESPONSES),
    "anthropic_sdk.py": ("messages",),
    "langchain_models.py": ("chat", *RESPONSES, "messages"),
    "pydantic_ai_agents.py": ("chat", *RESPONSES, "messages"),
    "openai_agents.py": ("chat", *RESPONSES),
    "litellm_sdk.py": ("chat", *RESPONSES, "messages"),
    "openai_sdk.mjs": ("chat", *RESPONSES),
    "anthropic_sdk.mjs": ("messages",),
    "ai_sdk.mjs": ("chat", "compatible", *RESPONSES, "messages"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent:
    """A coding agent."""

    block: tuple[str, str]
    """The heading and language of its configuration in docs/clients.md."""
    dialects: tuple[str, ...]
    prints_pieces: bool
    """Whether it prints what it streams."""


AGENTS = {
    "claude_code.py": Agent(
        block=("Claude Code", "sh"), dialects=("messages",), prints_pieces=True
    ),
    "codex_cli.py": Agent(block=("Codex", "toml"), dialects=RESPONSES, prints_pieces=False),
}


class Scenarios:
    """The kinds of call, for one client in one dialect; each is made by a new caller."""

    TOOL_CALLS = 1
    ACTIONS = ("plain", "streamed")
    """How the client is asked for what is refused."""
    MAX_REFUSALS = 1
    """How often the client may send what is refused for good."""

    def __init__(self, client, dialect, service, upstream):
        self._client = client
        self._dialect = dialect
        self._service = service
        self._upstream = upstream

    async def _new_caller(self):
        self._upstream.calls.clear()
        self._upstream.faults.clear()
        return await self._service.new_caller()

    async def _ask(self, caller, action, prompt=HELLO, **changes):
        task = {
            "action": action,
            "dialect": "responses" if self._dialect in RESPONSES else self._dialect,
            "url": caller.service.url,
            "key": caller.key,
            "model": MODELS[self._dialect],
            "prompt": prompt,
        }
        return await self._client.ask(**task | changes)

    async def _entries(self, caller, count):
        """Return as many entries, one for each call that reached Venice. A client may have its
        answer a moment before the call is settled."""
        async with asyncio.timeout(DEADLINE_S):
            while len(entries := await caller.entries()) < count:
                await asyncio.sleep(0.02)
        assert len(entries) == len(self._upstream.posts) == count
        return entries

    async def plain(self):
        """A call returns the model's text, and the usage that the ledger has."""
        caller = await self._new_caller()
        answer = await self._ask(caller, "plain")
        assert "text" in answer, answer
        assert answer["text"].startswith(OPENING)
        await self._has_usage(caller, answer)

    async def streamed(self):
        """A stream comes in pieces, with the usage that the ledger has at its end."""
        caller = await self._new_caller()
        answer = await self._ask(caller, "streamed")
        assert "pieces" in answer, answer
        assert len([piece for piece in answer["pieces"] if piece]) == 12
        assert "".join(answer["pieces"]).startswith(OPENING)
        await self._has_usage(caller, answer)

    async def _has_usage(self, caller, answer):
        (entry,) = await self._entries(caller, 1)
        assert answer["usage"] == [entry["input_tokens"], entry["output_tokens"]]
        await assert_ledger_matches_charges(caller, self._upstream)

    async def tools(self):
        """A tool is called, and the model's last words have its result."""
        await self._run_tools("tools")

    async def tools_streamed(self):
        """A tool is called in a stream, and the model's last words have its result."""
        await self._run_tools("tools_streamed")

    async def _run_tools(self, action):
        caller = await self._new_caller()
        answer = await self._ask(caller, action, LOOK)
        assert "text" in answer, answer
        assert LOOKED in answer["text"]
        await self._entries(caller, self.TOOL_CALLS + 1)
        await assert_ledger_matches_charges(caller, self._upstream)

    async def structured(self):
        """Structured output is an object of the wanted shape."""
        caller = await self._new_caller()
        answer = await self._ask(caller, "structured")
        assert "value" in answer, answer
        assert answer["value"] == FOX
        await self._entries(caller, 1)
        await assert_ledger_matches_charges(caller, self._upstream)

    async def wrong_key(self):
        """A wrong key is an error that is final and names what is wrong."""
        caller = await self._new_caller()
        for action in self.ACTIONS:
            error = await self._refusal(caller, action, 401, key=WRONG_KEY)
            assert "API key" in error["text"], error
        assert await caller.entries() == []

    async def spent_limit(self):
        """A spent limit is an error that is final and names the limit."""
        caller = await self._new_caller()
        await set_limit(caller, unit="usd", period="minute", ceiling="0")
        for action in self.ACTIONS:
            error = await self._refusal(caller, action, 402)
            assert "limit of 0.00 USD" in error["text"], error
        assert await caller.entries() == []
        assert self._upstream.posts == []

    async def _refusal(self, caller, action, status, **changes):
        before = await self._count_responses(status)
        answer = await self._ask(caller, action, **changes)
        assert "error" in answer, answer
        assert answer["error"]["status"] in (status, None), answer
        assert 0 < await self._count_responses(status) - before <= self.MAX_REFUSALS
        return answer["error"]

    async def _count_responses(self, status):
        """Return how many responses of this status the service has sent so far."""
        headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
        async with self._service.http.get("/metrics", headers=headers) as response:
            metrics = text_string_to_metric_families(await response.text())
        return sum(
            sample.value
            for metric in metrics
            for sample in metric.samples
            if sample.name == "rialto_request_duration_seconds_count"
            and sample.labels["status"] == str(status)
        )

    async def cut(self):
        """A stream that Venice cuts is an error that names Venice, and no short answer."""
        caller = await self._new_caller()
        self._cut_next_stream()
        answer = await self._ask(caller, "streamed")
        assert "error" in answer, answer
        assert "Venice" in answer["error"]["text"], answer
        await self._entries(caller, 1)
        await self._booked_cut(caller)

    def _cut_next_stream(self):
        # Rialto chooses the path. Only these two, since it sends requests of its own at any time.
        for path in ("/chat/completions", "/responses"):
            self._upstream.faults.push(path, "cut", after=4, times=1)

    async def _booked_cut(self, caller):
        """Assert that the first call is booked as cut, at no less than Venice charged."""
        entry, post = (await caller.entries())[-1], self._upstream.posts[0]
        assert entry["outcome"] == "upstream_cut"
        assert cost_of(entry) > 0
        assert cost_of(entry) >= Decimal(post.charged_nanos) / 10**9


class AgentScenarios(Scenarios):
    """The kinds of call for a coding agent, which works under a limit of a few dollars, calls tools
    of its own, and repeats what failed."""

    TOOL_CALLS = 2
    """It writes a file and reads it."""
    ACTIONS = ("plain",)
    MAX_REFUSALS = 6
    """Codex repeats a request five times after each status that it does not know."""

    def __init__(self, client, dialect, service, upstream, own_block):
        super().__init__(client, dialect, service, upstream)
        self._block = own_block

    async def _new_caller(self):
        caller = await super()._new_caller()
        await set_limit(caller, unit="usd", period="day", ceiling=AGENT_USD)
        return caller

    async def _ask(self, caller, action, prompt=HELLO, **changes):
        configuration = block(*self._block, caller)
        if self._dialect == "responses":
            configuration = configuration.replace(MODELS["native"], MODEL)
        if "key" in changes:
            configuration = configuration.replace(caller.key, changes["key"])
        return await super()._ask(caller, action, prompt, configuration=configuration, **changes)

    async def cut(self):
        """An agent whose stream Venice cuts finishes all the same."""
        caller = await self._new_caller()
        self._cut_next_stream()
        answer = await self._ask(caller, "plain")
        assert "text" in answer, answer
        assert answer["text"].startswith(OPENING)
        entries = await self._entries(caller, 2)
        assert entries[0]["outcome"] == "ok"
        await self._booked_cut(caller)


SDK_SCENARIOS = (
    Scenarios.plain,
    Scenarios.streamed,
    Scenarios.tools,
    Scenarios.tools_streamed,
    Scenarios.structured,
    Scenarios.wrong_key,
    Scenarios.spent_limit,
    Scenarios.cut,
)
AGENT_SCENARIOS = (
    AgentScenarios.plain,
    AgentScenarios.streamed,
    AgentScenarios.tools,
    AgentScenarios.structured,
    AgentScenarios.wrong_key,
    AgentScenarios.spent_limit,
    AgentScenarios.cut,
)


@pytest.mark.parametrize("program", SDKS)
async def test_sdk(service, upstream, subtests, tmp_path, program):
    """A client that knows nothing of Rialto gets what it asks for, or errors it understands."""
    async with running_client(program, tmp_path) as client:
        for dialect in SDKS[program]:
            scenarios = Scenarios(client, dialect, service, upstream)
            for scenario in SDK_SCENARIOS:
                with subtests.test(f"{dialect} {scenario.__name__}"):
                    await scenario(scenarios)


@pytest.mark.parametrize("program", AGENTS)
async def test_agent(service, upstream, subtests, tmp_path, program):
    """A coding agent finishes a task with tools, and shows its user errors that are true."""
    async with running_client(program, tmp_path) as client:
        agent = AGENTS[program]
        for dialect in agent.dialects:
            scenarios = AgentScenarios(client, dialect, service, upstream, agent.block)
            for scenario in AGENT_SCENARIOS:
                if scenario is AgentScenarios.streamed and not agent.prints_pieces:
                    continue
                with subtests.test(f"{dialect} {scenario.__name__}"):
                    await scenario(scenarios)
