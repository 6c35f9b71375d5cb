"""LangChain within the test's own process; test_matrix.py runs it as others do."""

import asyncio
import functools
import json

import openai
import pydantic
import pytest
import tiktoken
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langsmith.utils import tracing_is_enabled
from support import MODEL, set_limit, wait_for_entry

pytestmark = [pytest.mark.clients, pytest.mark.shares_service]

HELLO = "Hello [tokens=12]"
EMBEDDING = "text-embedding-bge-m3"


@pytest.fixture
async def pointed(caller):
    """Return the arguments that every LangChain client needs, with an HTTP client that is closed
    here."""
    async with openai.DefaultAsyncHttpxClient() as http_async_client:
        with openai.DefaultHttpxClient() as http_client:
            yield {
                "base_url": f"{caller.service.url}/v1",
                "api_key": caller.key,
                "max_retries": 0,
                "http_client": http_client,
                "http_async_client": http_async_client,
            }


@pytest.fixture
def chat(pointed):
    """A factory of chat models that accepts further arguments."""
    return functools.partial(ChatOpenAI, **pointed, model=MODEL)


@pytest.fixture
def embeddings(pointed):
    """A factory of embedding models that accepts further arguments."""
    return functools.partial(OpenAIEmbeddings, **pointed, model=EMBEDDING)


class Fox(pydantic.BaseModel):
    """A description of a fox."""

    name: str
    age: int
    friends: list[str]


@tool
def look(where: str, times: int) -> str:
    """A tool that looks somewhere."""
    return f"A fox in {where}, {times} times."


def test_nothing_is_traced():
    """Tracing is off in the tests."""
    assert not tracing_is_enabled()


async def test_invoke(chat, caller):
    """A plain response has the usage that the ledger has."""
    message = await chat().ainvoke([("system", "Be short."), ("user", HELLO)])

    assert message.text
    assert message.response_metadata["finish_reason"] == "stop"
    entry = await caller.only_entry()
    assert message.usage_metadata["output_tokens"] == entry["output_tokens"] == 12
    assert message.usage_metadata["input_tokens"] == entry["input_tokens"]
    assert message.id


async def test_the_synchronous_client(chat, caller):
    """The synchronous client gets a response."""
    message = await asyncio.to_thread(chat().invoke, HELLO)
    pieces = await asyncio.to_thread(lambda: list(chat().stream(HELLO)))

    assert message.text == "".join(piece.text for piece in pieces)
    assert [entry["outcome"] for entry in await caller.entries()] == ["ok", "ok"]


async def test_stream(chat, caller):
    """A stream arrives in pieces with the usage at its end."""
    pieces = [piece async for piece in chat().astream(HELLO)]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece

    assert sum(bool(piece.text) for piece in pieces) == 12
    assert whole.usage_metadata["output_tokens"] == 12
    assert (await caller.only_entry())["output_tokens"] == 12


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output(chat, caller, method):
    """Structured output works by schema, by tool and as any object."""
    shape = None if method == "json_mode" else Fox
    structured = chat().with_structured_output(shape, method=method)
    answer = await structured.ainvoke(f"{HELLO} as json")

    if method == "json_mode":
        assert list(answer) == ["answer"]
    else:
        assert answer == Fox(name="simulated", age=0, friends=["simulated"])
    assert (await caller.only_entry())["cost_source"] == "reported"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_tools(chat, caller, is_streamed):
    """Two concurrent tool calls are made, and their results are answered."""
    model = chat(streaming=is_streamed).bind_tools([look])
    asked = HumanMessage("[tools=2]")
    message = await model.ainvoke([asked])
    assert [call["name"] for call in message.tool_calls] == ["look", "look"]
    results = [await look.ainvoke(call) for call in message.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)
    assert results[0].content == "A fox in simulated, 0 times."

    answer = await model.ainvoke([asked, message, *results])
    assert answer.text
    assert answer.tool_calls == []
    assert [entry["outcome"] for entry in await caller.entries()] == ["ok", "ok"]


async def test_responses(chat, caller):
    """The client's Responses API mode works."""
    model = chat(use_responses_api=True)
    message = await model.ainvoke(HELLO)
    pieces = [piece async for piece in model.astream(HELLO)]

    assert message.text == "".join(piece.text for piece in pieces)
    assert [entry["output_tokens"] for entry in await caller.entries()] == [12, 12]


async def test_a_picture(chat, upstream):
    """Venice gets a picture's data URL unchanged."""
    url = "data:image/png;base64,iVBORw0KGgo="
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert (await chat(model="kimi-k2-6").ainvoke([HumanMessage(parts)])).text

    (sent,) = json.loads(upstream.posts[-1].body)["messages"]
    assert sent["content"][1]["image_url"]["url"] == url


async def test_errors(chat, caller, upstream):
    """Errors are the SDK's own exceptions with the service's codes."""
    with pytest.raises(openai.NotFoundError):
        await chat(model="nope").ainvoke(HELLO)
    upstream.faults.push("/chat/completions", "in_band_error", after=4, times=1)
    with pytest.raises(openai.APIError):
        [piece async for piece in chat().astream(HELLO)]
    await set_limit(caller, unit="usd", period="day", ceiling="0")
    with pytest.raises(openai.APIStatusError) as caught:
        await chat().ainvoke(HELLO)
    assert (caught.value.status_code, caught.value.code) == (402, "limit_exceeded")


async def test_hang_up(chat, caller):
    """A call that the client abandons is recorded at its bound, because its cost is unknown."""
    stream = chat(max_tokens=2000).astream("[tokens=999][delay=0.01]")
    async for piece in stream:
        if piece.text:
            break
    await stream.aclose()

    entry = await wait_for_entry(caller)
    assert entry["outcome"] == "client_closed"
    assert entry["output_tokens"] == 2000
    assert entry["cost_source"] == "estimated"


async def test_embeddings(embeddings, caller):
    """Texts are sent unchanged when the client does not count tokens."""
    model = embeddings(check_embedding_ctx_length=False)
    vectors = await model.aembed_documents(["a fox", "two foxes"])
    (short,) = await embeddings(check_embedding_ctx_length=False, dimensions=8).aembed_documents(
        ["a fox"]
    )

    assert [len(vector) for vector in vectors] == [1024, 1024]
    assert await model.aembed_query("a fox") == vectors[0]
    assert len(short) == 8
    assert [entry["input_tokens"] for entry in await caller.entries()] == [2, 2, 4]


async def test_embeddings_of_tokens(embeddings, caller, monkeypatch):
    """Token numbers, which no model of Venice accepts, are refused with an error that explains
    it."""
    encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"(?s:.)",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )
    # The real tokenizers are fetched from the network.
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: encoding)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length") as caught:
        await embeddings().aembed_documents(["a fox"])

    assert caught.value.param == "input"
    assert await caller.entries() == []
