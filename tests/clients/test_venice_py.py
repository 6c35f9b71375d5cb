"""Venice's own client with the service's base URL and key; see test_account.py for limits."""

import json

import openai
import pydantic
import pytest
import venice_ai
from support import (
    MODEL,
    assert_ledger_matches_charges,
    cost_of,
    make_settings,
    running,
    set_limit,
    wait_for_entry,
)
from venice_ai import exceptions

pytestmark = [pytest.mark.clients, pytest.mark.shares_service]

MESSAGES = [{"role": "user", "content": "Hello [tokens=12]"}]


@pytest.fixture
async def client(caller):
    """Venice's client with a caller's key."""
    url = f"{caller.service.url}/api/v1"
    async with venice_ai.VeniceClient(base_url=url, api_key=caller.key) as client:
        yield client


class Fox(pydantic.BaseModel):
    """The structured output of the tests."""

    name: str
    friends: list[str]


async def test_chat(client, caller, upstream):
    """Chat works plain and streamed, with Venice's parameters and its cost."""
    asked = {"model": MODEL, "messages": MESSAGES}
    completion = await client.chat.completions.create(
        **asked, venice_parameters={"include_venice_system_prompt": False}
    )
    sent = json.loads(upstream.posts[-1].body)
    stream = await client.chat.completions.create(**asked, stream=True)
    chunks = [chunk async for chunk in stream]

    assert completion.cost.usd == pytest.approx(float(cost_of((await caller.entries())[1])))
    assert sent["venice_parameters"]["include_venice_system_prompt"] is False
    assert chunks[-1].usage.completion_tokens == 12
    await assert_ledger_matches_charges(caller, upstream)


async def test_structured_output_and_tools(client, caller, upstream):
    """Structured output has the schema's object, and a tool gets its arguments."""
    parsed = await client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Fox
    )
    parameters = {"properties": {"where": {"type": "string"}}, "required": ["where"]}
    tool = {"name": "look", "parameters": parameters}
    called = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[{"type": "function", "function": tool}],
        tool_choice="required",
    )

    assert parsed.parsed == Fox(name="simulated", friends=["simulated"])
    (call,) = called.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"where": "simulated"}
    await assert_ledger_matches_charges(caller, upstream)


async def test_images(client, caller, upstream):
    """Images are generated in both ways, edited and upscaled."""
    made = await client.image.create(model="venice-sd35", prompt="a fox", width=512, height=512)
    simple = await client.image.simple_generate(model="venice-sd35", prompt="a fox")
    picture = b"\x89PNG\r\n\x1a\n"
    edited = await client.image.edit(prompt="a red one", image=picture)
    enlarged = await client.image.upscale(image=picture, scale=2)

    assert made.images
    assert simple.data[0].b64_json
    for answer in (edited, enlarged):
        assert answer.startswith(b"\x89PNG")
    endpoints = [entry["endpoint"] for entry in await caller.entries()]
    assert endpoints == [
        "/image/upscale",
        "/image/edit",
        "/images/generations",
        "/image/generate",
    ]
    await assert_ledger_matches_charges(caller, upstream)


async def test_audio(client, caller, upstream):
    """Speech is made, whole and streamed, and transcribed."""
    asked = {"model": "tts-kokoro", "voice": "af_sky", "input": "Hello. You."}
    speech = await client.audio.create_speech(**asked)
    streamed = await client.audio.create_speech(**asked, stream=True)
    pieces = b"".join([piece async for piece in streamed])
    heard = await client.audio.transcribe(file=speech.content)

    assert speech.content == pieces
    assert heard.text
    await assert_ledger_matches_charges(caller, upstream)


async def test_embeddings_responses_decisions(client, caller, upstream):
    """Embeddings, responses and decisions are parsed by the client."""
    embedded = await client.embeddings.create(
        model="text-embedding-bge-m3", input=["a fox", "two"], dimensions=8
    )
    answer = await client.responses.create(model=MODEL, input="[tokens=5]")
    decided = await client.decisions.create(
        model="jev-latest",
        state="It rains.",
        questions={
            "wet": {"type": "noul", "instructions": "Is it wet?"},
            "where": {"type": "choice", "instructions": "Where?", "criteria": {"here": None}},
            "much": {"type": "score", "instructions": "Much?", "criteria": ["no", "yes"]},
        },
    )

    assert [len(item.embedding) for item in embedded.data] == [8, 8]
    assert answer.usage.output_tokens == 5
    assert decided.answers["wet"].noul == 0.5
    assert decided.answers["where"].choice == "here"
    assert decided.answers["much"].legend == {"0": "no", "1": "yes"}
    await assert_ledger_matches_charges(caller, upstream)


async def test_a_picture_without_its_background(client, caller):
    """Background removal, for which Venice lists no price, is recorded with an unknown cost."""
    assert await client.image.background_remove(image=b"\x89PNG\r\n\x1a\n")

    entry = await caller.only_entry()
    assert (entry["cost_usd"], entry["cost_source"]) == (None, "unknown")


async def test_video(client, caller, upstream):
    """A video is quoted, queued, polled until it is ready, and charged once."""
    asked = {
        "model": "wan-2.5-preview-text-to-video",
        "prompt": "a fox",
        "duration_seconds": "5s",
        "resolution": "720p",
    }
    quote = await client.video.quote(
        **{name: value for name, value in asked.items() if name != "prompt"}
    )
    job = await client.video.run(**asked)
    done = await job.wait(poll_interval=0.01)

    assert done.status == "COMPLETED"
    entry = await caller.only_entry()
    assert float(cost_of(entry)) == pytest.approx(quote.quote)
    await assert_ledger_matches_charges(caller, upstream)


async def test_free_requests(client, caller):
    """Models of every type, traits, styles, characters and the balance can be read."""
    assert MODEL in [model.id for model in (await client.models.list(type="all")).data]
    assert (await client.models.get(MODEL)).id == MODEL
    assert await client.models.resolve_chat(require_function_calling=True)
    assert await client.models.list_traits()
    assert (await client.image.list_styles()).data
    assert await client.characters.list()
    assert await client.billing.get_balance()
    assert await caller.entries() == []


async def test_other_calls(client, caller, upstream):
    """A search and a blockchain call work."""
    found = await client.augment.search(query="foxes")
    answer = await client.crypto.rpc(network="base-mainnet", method="eth_blockNumber")

    assert found.results
    assert answer.result == "0x0"
    await assert_ledger_matches_charges(caller, upstream)


async def test_errors(client, caller, upstream):
    """Each error is Venice's own exception with the service's code."""
    with pytest.raises(exceptions.NotFoundError):
        await client.chat.completions.create(model="nope", messages=MESSAGES)
    upstream.faults.push("/chat/completions", "in_band_error", after=4, times=1)
    with pytest.raises(exceptions.APIError):
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        [chunk async for chunk in stream]
    await set_limit(caller, unit="usd", period="day", ceiling="0")
    with pytest.raises(exceptions.PaymentRequiredError, match="limit") as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.status_code == 402


async def test_an_invalid_key(caller):
    """An invalid key raises Venice's own authentication error."""
    url = f"{caller.service.url}/api/v1"
    async with venice_ai.VeniceClient(base_url=url, api_key="rk_" + "A" * 43) as client:
        with pytest.raises(exceptions.AuthenticationError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_hang_up(client, caller):
    """A call that the client abandons is recorded at its bound, because its cost is unknown."""
    long = [{"role": "user", "content": "[tokens=999][delay=0.01]"}]
    stream = await client.chat.completions.create(
        model=MODEL, messages=long, stream=True, max_completion_tokens=2000
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    entry = await wait_for_entry(caller)
    assert entry["outcome"] == "client_closed"
    assert entry["output_tokens"] == 2000
    assert entry["cost_source"] == "estimated"


async def test_sdks_ignore_heartbeats(database_address, upstream):
    """Comments before and between events disturb neither SDK."""
    slow = [{"role": "user", "content": "[tokens=3][delay=0.2]"}]
    settings = make_settings(database_address, upstream.url, heartbeat_s=0.05)
    async with running(settings) as service:
        caller = await service.new_caller()
        async with (
            openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=caller.key) as client,
            venice_ai.VeniceClient(
                base_url=f"{service.url}/api/v1", api_key=caller.key
            ) as venice_client,
        ):
            for sdk in (client, venice_client):
                upstream.faults.push("/chat/completions", "slow_headers", seconds=0.2, times=1)
                stream = await sdk.chat.completions.create(model=MODEL, messages=slow, stream=True)
                chunks = [chunk async for chunk in stream]
                assert chunks[-1].usage.completion_tokens == 3
