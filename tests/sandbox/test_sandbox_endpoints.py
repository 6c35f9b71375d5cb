"""The sandbox's endpoints other than chat."""

import base64
import io
import zlib
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from sandbox_client import CHAT, Client, last_call, refused

from service.sandbox import CALLS


async def test_embeddings(venice: Client) -> None:
    """An embedding depends on its text only, and arrays of tokens are refused."""
    path = "/api/v1/embeddings"
    asked = {"model": "text-embedding-bge-m3", "input": ["a b", "c", "a b"], "dimensions": 8}
    async with venice.post(path, json=asked) as response:
        body = await response.json()
    vectors = [item["embedding"] for item in body["data"]]

    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [len(vector) for vector in vectors] == [8, 8, 8]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(number * number for number in vectors[0]) == pytest.approx(1)
    assert last_call(venice).charged_nanos == 750
    for tokens in ([1, 2], [[1, 2]], []):
        status, _ = await refused(venice, asked | {"input": tokens}, path)
        assert status == 400


async def test_image_generate(venice: Client) -> None:
    """Generated images are complete PNGs, as base64 or as bytes, and are charged one by one."""
    path = "/api/v1/image/generate"
    asked = {"model": "venice-sd35", "prompt": "a fox"}
    async with venice.post(path, json=asked | {"variants": 2}) as response:
        pictures = [base64.b64decode(image) for image in (await response.json())["images"]]
    async with venice.post(path, json=asked | {"return_binary": True}) as response:
        raw = await response.read()

    assert response.content_type == "image/png"
    assert pictures[0] == raw != pictures[1]
    start = raw.index(b"IDAT")
    size = int.from_bytes(raw[start - 4 : start], "big")
    assert len(zlib.decompress(raw[start + 4 : start + 4 + size])) == 8 * (1 + 3 * 8)
    assert [call.charged_nanos for call in venice.app[CALLS]] == [20_000_000, 10_000_000]


async def test_unknown_path(venice: Client) -> None:
    """A path that the sandbox does not play is a JSON 404 and is recorded."""
    assert await refused(venice, {}, "/api/v1/nowhere?a=b") == (404, {"error": "Not Found"})

    call = last_call(venice)
    assert (call.path, call.query, call.status) == ("/nowhere", {"a": "b"}, 404)


async def test_too_large(venice: Client) -> None:
    """A body over 35 MB is a 413."""
    body = io.BytesIO(b" " * (35 * 1024 * 1024 + 1))
    async with venice.post(CHAT, data=body) as response:
        assert (await response.json())["code"] == "PAYLOAD_TOO_LARGE"

    assert response.status == 413


# Responses and decisions


async def test_responses_plain(sdk: Any, venice: Client) -> None:
    """OpenAI's SDK parses the response and its usage."""
    response = await sdk.responses.create(
        model="llama-3.3-70b", input="[tokens=3]", max_output_tokens=2
    )

    assert len(response.output_text.split()) == 2
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage.output_tokens == 2
    assert last_call(venice).charged_nanos > 0


async def test_responses_stream(sdk: Any) -> None:
    """OpenAI's SDK parses the numbered typed events, and the last one has the usage."""
    stream = await sdk.responses.create(model="llama-3.3-70b", input="[tokens=3]", stream=True)
    events = [event async for event in stream]

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    text = "".join(event.delta for event in events if event.type.endswith("text.delta"))
    assert text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == 3


async def test_responses_tool(sdk: Any) -> None:
    """A required tool is called, plain and streamed."""
    tool = {"type": "function", "name": "look", "parameters": {}, "strict": False}
    asked = {
        "model": "llama-3.3-70b",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        "tools": [tool],
        "tool_choice": "required",
    }
    plain = await sdk.responses.create(**asked)
    events = [event async for event in await sdk.responses.create(**asked, stream=True)]

    for output in (plain.output, events[-1].response.output):
        assert (output[0].type, output[0].name, output[0].arguments) == (
            "function_call",
            "look",
            "{}",
        )


async def test_responses_refuse_e2ee(venice: Client) -> None:
    """Models with end-to-end encryption are refused outside chat completions."""
    body = {"model": "e2ee-qwen3-30b", "input": "a"}
    assert (await refused(venice, body, "/api/v1/responses"))[0] == 400


@pytest.mark.parametrize("path", ["/decisions", "/systemone"])
async def test_decisions(venice: Client, path: str) -> None:
    """Each question has an answer of its kind, and tokens are charged."""
    kinds = ("noul", "choice", "score")
    asked = {
        "model": "jev-latest",
        "state": "It rains.",
        "questions": {kind: {"type": kind, "instructions": "?"} for kind in kinds},
    }
    async with venice.post(f"/api/v1{path}", json=asked) as response:
        body = await response.json()

    assert body["answers"].keys() == set(kinds)
    assert body["usage"]["output_tokens"] == 6
    assert last_call(venice).charged_nanos > 0


# Image edits


def form(**fields: str | bytes) -> aiohttp.FormData:
    """Return a form; values of bytes are files."""
    made = aiohttp.FormData()
    for name, value in fields.items():
        filename = f"{name}.bin" if isinstance(value, bytes) else None
        made.add_field(name, value, filename=filename)
    return made


@pytest.mark.parametrize(
    ("path", "asked", "charged_nanos"),
    [
        ("/image/edit", {"image": b"a", "prompt": "b"}, 40_000_000),
        ("/image/multi-edit", {"images": b"a", "prompt": "b"}, 40_000_000),
        ("/image/upscale", {"image": b"a"}, 20_000_000),
        ("/image/upscale", {"image": b"a", "scale": "4"}, 80_000_000),
        ("/image/background-remove", {"image": b"a"}, 20_000_000),
    ],
)
async def test_edits(venice: Client, path: str, asked: Any, charged_nanos: int) -> None:
    """Forms and JSON have the same result, a PNG."""
    as_json = {name: value for name, value in asked.items() if isinstance(value, str)}
    if "scale" in as_json:
        as_json["scale"] = int(as_json["scale"])
    pictures = {"images": ["YQ=="]} if "images" in asked else {"image": "YQ=="}
    for body in ({"data": form(**asked)}, {"json": as_json | pictures}):
        async with venice.post(f"/api/v1{path}", **body) as response:
            assert (response.status, response.content_type) == (200, "image/png")
            assert (await response.read()).startswith(b"\x89PNG")
        assert last_call(venice).charged_nanos == charged_nanos


async def test_edits_are_refused(venice: Client) -> None:
    """An edit without an image, or with a model that cannot edit, is refused."""
    for body in ({"prompt": "b"}, {"prompt": "b", "image": "YQ==", "x": 1}):
        assert (await refused(venice, body, "/api/v1/image/edit"))[0] == 400
    body = {"prompt": "b", "image": "YQ==", "model": "venice-sd35"}
    assert (await refused(venice, body, "/api/v1/image/edit"))[0] in (400, 404)


# Audio


async def test_speech(sdk: Any, venice: Client) -> None:
    """Speech is charged by the character, and is complete, whole and streamed."""
    whole = await sdk.audio.speech.create(model="tts-kokoro", voice="af_sky", input="a. b. c.")
    asked = {"input": "a. b. c.", "streaming": True}
    async with venice.post("/api/v1/audio/speech", json=asked) as response:
        pieces = await response.read()

    assert whole.content == pieces
    assert pieces.startswith(b"RIFF")
    assert [call.charged_nanos for call in venice.app[CALLS]] == [28_000, 28_000]


async def test_transcriptions(sdk: Any, venice: Client) -> None:
    """A transcription is charged by the second, which is 16,000 bytes."""
    answer = await sdk.audio.transcriptions.create(
        model="nvidia/parakeet-tdt-0.6b-v3", file=("a.wav", b"a" * 32_001)
    )

    assert (answer.text, answer.duration) == ("This is a simulated transcription.", 3)
    assert last_call(venice).charged_nanos == 300_000
    big = aiohttp.FormData()
    big.add_field("file", io.BytesIO(b"a" * (25 * 1024 * 1024 + 1)), filename="a.wav")
    async with venice.post("/api/v1/audio/transcriptions", data=big) as response:
        assert response.status == 413


async def test_voices(venice: Client) -> None:
    """A voice costs half a dollar."""
    async with venice.post("/api/v1/audio/voices", data=form(file=b"a", name="b")) as response:
        assert (await response.json())["id"].startswith("vv_")

    assert last_call(venice).charged_nanos == 500_000_000


# Queues

VIDEO = {"model": "wan-2.5-preview-text-to-video", "duration": "5s"}
MUSIC = {"model": "elevenlabs-music", "duration_seconds": 30}


@pytest.mark.parametrize(
    ("family", "asked", "content_type"),
    [("video", VIDEO, "video/mp4"), ("audio", MUSIC, "audio/wav")],
)
async def test_queue(venice: Client, family: str, asked: Any, content_type: str) -> None:
    """A job is charged its quote when it is queued, and is finished at the third retrieval."""

    async def post(step: str, body: Any) -> aiohttp.ClientResponse:
        response = await venice.post(f"/api/v1/{family}/{step}", json=body)
        await response.read()
        return response

    quote = (await (await post("quote", asked)).json())["quote"]
    queued = await (await post("queue", {**asked, "prompt": "a fox"})).json()
    assert last_call(venice).charged_nanos == int(Decimal(str(quote)) * 10**9) > 0

    ticket = {"model": asked["model"], "queue_id": queued["queue_id"]}
    answers = [await post("retrieve", ticket) for _ in range(3)]
    assert [(await answer.json())["status"] for answer in answers[:2]] == ["PROCESSING"] * 2
    assert answers[2].content_type == content_type
    assert last_call(venice).charged_nanos == 0
    assert (await post("complete", ticket)).status == 200
    assert (await post("retrieve", ticket)).status == 400


async def test_voice_changer(venice: Client) -> None:
    """A voice change states how many seconds it charges."""
    path = "/api/v1/audio/voice-changer"
    async with venice.post(f"{path}/quote", json={"duration_seconds": 2}) as response:
        assert (await response.json())["quote"] == 0.02
    async with venice.post(f"{path}/queue", data=form(audio=b"a" * 16_001)) as response:
        assert (await response.json())["duration_seconds"] == 2

    assert last_call(venice).charged_nanos == 20_000_000


async def test_consents(venice: Client) -> None:
    """Some models require a consent, and a longer or larger video costs more."""
    path = "/api/v1/video/quote"
    quotes = []
    for change in ({}, {"duration": "10s"}, {"resolution": "1080p"}):
        async with venice.post(path, json=VIDEO | change) as response:
            quotes.append((await response.json())["quote"])
    assert quotes == [0.25, 0.5, 0.5]
    assert (await refused(venice, {**VIDEO, "duration": "long"}, path))[0] == 400
    assert (await refused(venice, {}, "/api/v1/video/transcriptions"))[0] == 410


# Endpoints paid by the request, and free ones


async def test_augment(venice: Client) -> None:
    """A search, a scrape and a parsed document cost a cent each."""
    async with venice.post("/api/v1/augment/search", json={"query": "a"}) as response:
        assert len((await response.json())["results"]) == 1
    page = {"url": "https://a.invalid"}
    async with venice.post("/api/v1/augment/scrape", json=page) as response:
        assert (await response.json())["format"] == "markdown"
    async with venice.post("/api/v1/augment/text-parser", data=form(file=b"a b")) as response:
        assert await response.json() == {"text": "a b", "tokens": 2}

    assert [call.charged_nanos for call in venice.app[CALLS]] == [10_000_000] * 3


async def test_chain(venice: Client) -> None:
    """Each request in a batch costs, and a header states the amount."""
    batch = [{"jsonrpc": "2.0", "method": "eth_blockNumber", "id": number} for number in (1, 2)]
    path = "/api/v1/crypto/rpc/base-mainnet"
    async with venice.post(path, json=batch) as response:
        assert [answer["id"] for answer in await response.json()] == [1, 2]
        assert response.headers["X-Venice-RPC-Cost-USD"] == "0.00006"

    assert last_call(venice).charged_nanos == 60_000
    assert (await refused(venice, {"method": "a"}, "/api/v1/crypto/rpc/nowhere"))[0] == 404
    assert (await refused(venice, [], path))[0] == 400  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/image/styles", 200),
        ("/characters", 200),
        ("/characters/simulated-sage", 200),
        ("/characters/nobody", 404),
        ("/characters/simulated-sage/reviews", 200),
        ("/crypto/rpc/networks", 200),
        ("/tee/attestation?model=a", 200),
        ("/tee/attestation", 400),
        ("/tee/signature?request_id=a", 200),
        ("/tee/signature", 400),
        ("/billing/balance", 401),
    ],
)
async def test_free_paths(venice: Client, path: str, status: int) -> None:
    """Free paths charge nothing."""
    async with venice.get(f"/api/v1{path}") as response:
        assert response.status == status

    assert last_call(venice).charged_nanos == 0
