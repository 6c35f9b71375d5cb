"""Real SDKs with the service's base URL and key; each has a file of its own too."""

import openai
import pytest
import venice_ai
from support import MODEL, make_settings, running

MESSAGES = [{"role": "user", "content": "Hello [tokens=12]"}]


@pytest.fixture
async def client(caller):
    """OpenAI's SDK with a caller's key."""
    url = f"{caller.service.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=caller.key, max_retries=0) as client:
        yield client


async def test_openai_plain(client, caller):
    """A plain completion has Venice's cost beside the usage."""
    completion = await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert completion.choices[0].message.content
    assert completion.usage.completion_tokens == 12
    assert completion.model_extra["cost"]["usd"] > 0
    assert (await caller.only_entry())["output_tokens"] == 12


async def test_openai_stream(client, caller):
    """A streamed completion arrives in chunks, with the usage at its end."""
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]

    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) == 12
    assert chunks[-1].usage.completion_tokens == 12
    assert (await caller.only_entry())["output_tokens"] == 12


async def test_openai_responses(client, caller):
    """The Responses API works, whole and as typed events."""
    plain = await client.responses.create(model=MODEL, input="[tokens=12]")
    stream = await client.responses.create(model=MODEL, input="[tokens=12]", stream=True)
    events = [event async for event in stream]

    assert plain.output_text == events[-1].response.output_text
    assert plain.usage.output_tokens == 12
    assert [entry["output_tokens"] for entry in await caller.entries()] == [12, 12]


async def test_openai_audio(client, caller):
    """Speech is made, whole and streamed, and transcribed."""
    speech = await client.audio.speech.create(model="tts-kokoro", voice="af_sky", input="Hello.")
    async with client.audio.speech.with_streaming_response.create(
        model="tts-kokoro", voice="af_sky", input="Hello.", extra_body={"streaming": True}
    ) as response:
        streamed = b"".join([chunk async for chunk in response.iter_bytes()])
    heard = await client.audio.transcriptions.create(
        model="nvidia/parakeet-tdt-0.6b-v3", file=("a.wav", speech.content)
    )

    assert speech.content == streamed
    assert heard.text
    endpoints = [entry["endpoint"] for entry in await caller.entries()]
    assert endpoints == ["/audio/transcriptions", "/audio/speech", "/audio/speech"]


async def test_openai_sees_a_cut_stream(client, upstream):
    """A stream that Venice cuts raises in the SDK instead of looking like a short response."""
    upstream.faults.push("/chat/completions", "cut", after=4, times=1)
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    with pytest.raises(openai.APIError, match="closed the connection"):
        async for _ in stream:
            pass


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
