"""OpenAI's Python SDK within the test's own process; test_matrix.py runs it as others do."""

import asyncio
import base64
import io
import json
import time

import openai
import pydantic
import pytest
from support import MODEL, assert_ledger_matches_charges, cost_of, set_limit, wait_for_entry

MESSAGES = [{"role": "user", "content": "Hello [tokens=12]"}]
LONG = [{"role": "user", "content": "[tokens=999][delay=0.01]"}]
EMBEDDING = "text-embedding-bge-m3"
PNG = base64.b64decode("iVBORw0KGgo=")
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string"}, "times": {"type": "integer"}},
            "required": ["where", "times"],
            "additionalProperties": False,
        },
    },
}
pytestmark = [pytest.mark.clients, pytest.mark.shares_service]
TOOLS_ASKED = [{"role": "user", "content": "[tools=2]"}]


class Fox(pydantic.BaseModel):
    """The structured output of the tests."""

    name: str
    friends: list[str]


FOX = Fox(name="simulated", friends=["simulated"])


@pytest.fixture
async def client(caller):
    """The asynchronous client with a caller's key."""
    url = f"{caller.service.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=caller.key, max_retries=0) as client:
        yield client


@pytest.fixture
def blocking(caller):
    """The synchronous client, for use in a thread."""
    url = f"{caller.service.url}/v1"
    with openai.OpenAI(base_url=url, api_key=caller.key, max_retries=0) as client:
        yield client


async def test_plain(client, caller):
    """A plain completion has Venice's cost beside the usage."""
    completion = await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert completion.choices[0].message.content
    assert completion.usage.completion_tokens == 12
    assert completion.model_extra["cost"]["usd"] > 0
    assert (await caller.only_entry())["output_tokens"] == 12


async def test_a_stream(client, caller):
    """A streamed completion arrives in chunks, with the usage at its end."""
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]

    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) == 12
    assert chunks[-1].usage.completion_tokens == 12
    assert (await caller.only_entry())["output_tokens"] == 12


async def test_responses_and_events(client, caller):
    """The Responses API works, whole and as typed events."""
    plain = await client.responses.create(model=MODEL, input="[tokens=12]")
    stream = await client.responses.create(model=MODEL, input="[tokens=12]", stream=True)
    events = [event async for event in stream]

    assert plain.output_text == events[-1].response.output_text
    assert plain.usage.output_tokens == 12
    assert [entry["output_tokens"] for entry in await caller.entries()] == [12, 12]


async def test_streamed_audio(client, caller):
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


async def test_a_cut_stream(client, upstream):
    """A stream that Venice cuts raises in the SDK instead of looking like a short response."""
    upstream.faults.push("/chat/completions", "cut", after=4, times=1)
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    with pytest.raises(openai.APIError, match="closed the connection"):
        async for _ in stream:
            pass


async def test_tool_calls(client, caller, upstream):
    """Two parallel tool calls arrive whole and as deltas, and their results are answered."""
    asked = {"model": MODEL, "messages": TOOLS_ASKED, "tools": [LOOK]}
    whole = (await client.chat.completions.create(**asked)).choices[0]
    async with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        streamed = (await stream.get_final_completion()).choices[0]

    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        calls = [call.function for call in choice.message.tool_calls]
        assert [call.name for call in calls] == ["look", "look"]
        assert json.loads(calls[0].arguments) == {"where": "simulated", "times": 0}
    assert kinds.count("tool_calls.function.arguments.done") == 2
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "A fox."}
        for call in whole.message.tool_calls
    ]
    conversation = [*TOOLS_ASKED, whole.message, *results]
    answer = await client.chat.completions.create(**asked | {"messages": conversation})
    assert answer.choices[0].finish_reason == "stop"
    await assert_ledger_matches_charges(caller, upstream)


async def test_structured_output(client, caller, upstream):
    """Structured output is parsed, whole and streamed; a truncated one is the SDK's own error."""
    asked = {"model": MODEL, "messages": MESSAGES, "response_format": Fox}
    completion = await client.chat.completions.parse(**asked)
    async with client.chat.completions.stream(**asked) as stream:
        streamed = await stream.get_final_completion()

    assert completion.choices[0].message.parsed == FOX
    assert streamed.choices[0].message.parsed == FOX
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(**asked, max_completion_tokens=1)
    await assert_ledger_matches_charges(caller, upstream)


async def test_a_picture(client, caller, upstream):
    """A picture is sent as a data URL; a model without vision refuses it."""
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    parts = [
        {"type": "text", "text": "What? [tokens=3]"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    messages = [{"role": "user", "content": parts}]
    assert await client.chat.completions.create(model="kimi-k2-6", messages=messages)
    (sent,) = json.loads(upstream.posts[-1].body)["messages"]
    assert sent["content"] == parts
    await assert_ledger_matches_charges(caller, upstream)

    with pytest.raises(openai.BadRequestError, match="image input") as caught:
        await client.chat.completions.create(model=MODEL, messages=messages)
    assert caught.value.code == "upstream_rejected"


async def test_images(client, caller, upstream):
    """An image is generated, then edited; see test_image_edits.py too."""
    made = await client.images.generate(model="venice-sd35", prompt="a fox", n=1)
    picture = base64.b64decode(made.data[0].b64_json)
    assert picture.startswith(b"\x89PNG")

    edited = await client.images.edit(image=("fox.png", io.BytesIO(picture)), prompt="a red one")
    assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
    await assert_ledger_matches_charges(caller, upstream)


async def test_audio(client, caller, upstream):
    """Speech is made and transcribed, as an object and as plain text."""
    speech = await client.audio.speech.create(
        model="tts-kokoro", voice="af_sky", input="Hello.", response_format="wav", speed=1.5
    )
    asked = {"model": "nvidia/parakeet-tdt-0.6b-v3", "file": ("a.wav", speech.content)}
    heard = await client.audio.transcriptions.create(**asked)
    raw = await client.audio.transcriptions.with_raw_response.create(
        **asked, response_format="text"
    )

    assert speech.content.startswith(b"RIFF")
    assert raw.headers.get_list("Content-Type") == ["text/plain; charset=utf-8"]
    assert heard.text == raw.text
    assert raw.headers["x-rialto-cost-usd"] == (await caller.entries())[0]["cost_usd"]
    await assert_ledger_matches_charges(caller, upstream)


async def test_a_transcription_of_another_format(client, caller, upstream):
    """An unsupported transcription format is passed on; the plain text that Venice fails to give is
    an upstream error and paid for."""
    asked = {"model": "nvidia/parakeet-tdt-0.6b-v3", "file": ("a.wav", b"x" * 100)}
    await client.audio.transcriptions.create(**asked, response_format="vtt")
    assert b"\r\n\r\nvtt\r\n" in upstream.posts[-1].body

    upstream.faults.push("/audio/transcriptions", "garbage", times=1)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.audio.transcriptions.create(**asked, response_format="text")
    assert caught.value.code == "upstream_error"
    assert cost_of((await caller.entries())[0]) > 0


async def test_embeddings(client, caller, upstream):
    """Embeddings as base64, the SDK's default, and as floats have the same numbers."""
    asked = {"model": EMBEDDING, "input": ["a fox", "two"], "dimensions": 16}
    packed = await client.embeddings.create(**asked)
    floats = await client.embeddings.create(**asked, encoding_format="float")
    text = await client.embeddings.create(
        **asked | {"input": "a fox"}, extra_body={"encoding_format": "base64"}
    )

    for one, other in zip(packed.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert text.data[0].embedding == packed.data[0].embedding
    with pytest.raises(openai.BadRequestError, match="no arrays of tokens"):
        await client.embeddings.create(model=EMBEDDING, input=[[1, 2]])
    await assert_ledger_matches_charges(caller, upstream)


async def test_responses(client, caller, upstream):
    """The Responses API works with accumulated events, a tool, instructions and a list of items."""
    asked = {
        "model": MODEL,
        "instructions": "Be short.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "[tokens=5]"}]}],
    }
    whole = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        pieces = [event.delta async for event in stream if event.type.endswith("text.delta")]
        streamed = await stream.get_final_response()
    tool = {"type": "function", **LOOK["function"]}
    called = await client.responses.create(**asked, tools=[tool], tool_choice="required")
    async with client.responses.stream(**asked, tools=[tool], tool_choice="required") as stream:
        (item,) = (await stream.get_final_response()).output

    assert whole.output_text == streamed.output_text == "".join(pieces)
    (call,) = called.output
    assert (call.type, call.name) == (item.type, item.name) == ("function_call", "look")
    assert json.loads(call.arguments) == json.loads(item.arguments)
    assert json.loads(call.arguments) == {"where": "simulated", "times": 0}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**asked, previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    await assert_ledger_matches_charges(caller, upstream)


async def test_the_synchronous_client(blocking, caller, upstream):
    """The synchronous client makes the same calls."""

    def work():
        models = [model.id for model in blocking.models.list()]
        whole = blocking.chat.completions.create(model=MODEL, messages=MESSAGES)
        with blocking.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True
        ) as stream:
            chunks = list(stream)
        parsed = blocking.chat.completions.parse(
            model=MODEL, messages=MESSAGES, response_format=Fox
        )
        raw = blocking.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
        return models, whole, chunks, parsed, raw

    models, whole, chunks, parsed, raw = await asyncio.to_thread(work)

    assert MODEL in models
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 12
    assert parsed.choices[0].message.parsed == FOX
    assert raw.headers["x-rialto-cost-usd"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    await assert_ledger_matches_charges(caller, upstream)


async def test_one_model(client):
    """A model can be read by its name."""
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nope")


async def test_a_limit_of_money(client, caller):
    """A limit of money is a 402 with a code, the limit and its numbers, and the SDK does not retry
    it."""
    limit = await set_limit(caller, unit="usd", period="day", ceiling="0")
    for ask in (
        client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES),
        client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True),
        client.images.generate(model="venice-sd35", prompt="a fox"),
        client.embeddings.create(model=EMBEDDING, input="a"),
        client.audio.speech.create(model="tts-kokoro", voice="af_sky", input="Hello."),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await ask
        error = caught.value
        assert (error.status_code, error.code) == (402, "limit_exceeded")
        assert error.type == "insufficient_quota"
        assert error.body["limit"]["id"] == limit["id"]
        assert error.request_id == error.body["request_id"]
    assert await caller.entries() == []


async def test_the_sdk_waits_for_retry_after(client, caller):
    """The SDK retries after Retry-After and is admitted."""
    await set_limit(caller, unit="concurrency", ceiling=1)
    holding = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "[tokens=4][delay=0.1]"}],
        stream=True,
    )
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.code == "rate_limited"
    retry_after_s = int(caught.value.response.headers["Retry-After"])
    assert retry_after_s >= 1

    async def drain():
        return [chunk async for chunk in holding]

    began = time.monotonic()
    patient = client.with_options(max_retries=3)
    answer, _ = await asyncio.gather(
        patient.chat.completions.create(model=MODEL, messages=MESSAGES), drain()
    )
    assert answer.usage.completion_tokens == 12
    assert time.monotonic() - began >= retry_after_s
    assert len(await caller.entries()) == 2


async def test_a_call_that_never_fits_is_not_retried(client, caller):
    """A call that can never fit is an error that the SDK does not retry."""
    await set_limit(caller, unit="requests", period="minute", ceiling=0)
    began = time.monotonic()
    with pytest.raises(openai.BadRequestError) as caught:
        await client.with_options(max_retries=5).chat.completions.create(
            model=MODEL, messages=MESSAGES
        )

    assert "Retry-After" not in caught.value.response.headers
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ("model_overloaded", openai.InternalServerError, "upstream_busy"),
        ("rate_limited", openai.InternalServerError, "upstream_busy"),
        ("insufficient_balance", openai.InternalServerError, "upstream_exhausted"),
        ("invalid_key", openai.InternalServerError, "upstream_exhausted"),
        ("inference_failed", openai.InternalServerError, "upstream_error"),
        ("timeout", openai.InternalServerError, "upstream_timeout"),
        ("content_policy", openai.UnprocessableEntityError, "upstream_rejected"),
        ("context_length", openai.BadRequestError, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_venices_errors(client, caller, upstream, fault, error, code, stream):
    """Each of Venice's errors becomes the SDK's own exception; only a call that may have started is
    recorded with an estimated cost."""
    upstream.faults.push("/chat/completions", fault)
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)

    assert caught.value.code == code
    (entry,) = await caller.entries()
    is_begun = fault in ("inference_failed", "timeout")
    assert entry["cost_source"] == ("estimated" if is_begun else "not_charged")
    assert (cost_of(entry) > 0) is is_begun


async def test_an_invalid_key(client):
    """An invalid key raises the SDK's 401 with the code of the reason."""
    for key, code in (("rk_" + "A" * 43, "invalid_api_key"), ("sk-1", "malformed_api_key")):
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.with_options(api_key=key).models.list()
        assert caught.value.code == code


async def test_an_unknown_model(client):
    """An unknown model raises the SDK's 404 with the nearest name."""
    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        await client.chat.completions.create(model="llama-3.3-70bb", messages=MESSAGES)


async def test_a_stream_that_is_closed(client, caller, upstream):
    """A stream that the client closes is recorded at its bound, and Venice is cancelled at once."""
    stream = await client.chat.completions.create(model=MODEL, messages=LONG, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()

    entry = await wait_for_entry(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert entry["cost_usd"] == entry["bound_usd"]
    async with asyncio.timeout(5):
        while upstream.posts[-1].cut_at is None:
            await asyncio.sleep(0.01)


async def test_a_call_that_is_cancelled(client, caller):
    """A call that is cancelled while Venice works is recorded at its bound, because its cost is
    unknown."""
    call = asyncio.create_task(
        client.chat.completions.create(model=MODEL, messages=LONG, max_completion_tokens=1000)
    )
    await asyncio.sleep(0.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    entry = await wait_for_entry(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "bound")


async def test_a_synchronous_stream_is_closed(blocking, caller):
    """A synchronous stream whose block is left is recorded."""

    def work():
        with blocking.chat.completions.create(model=MODEL, messages=LONG, stream=True) as stream:
            next(iter(stream))

    await asyncio.to_thread(work)
    assert (await wait_for_entry(caller))["outcome"] == "client_closed"


async def test_a_client_timeout(client, caller):
    """A client's timeout raises the SDK's own exception, and the call is recorded."""
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.3).chat.completions.create(model=MODEL, messages=LONG)

    assert (await wait_for_entry(caller))["outcome"] == "client_closed"
