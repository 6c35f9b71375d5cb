"""OpenAI's ``images.edit``, translated into Venice's image edits."""

import asyncio
import base64

import aiohttp
import openai
import pytest
from aiohttp import web
from support import (
    assert_ledger_matches_charges,
    cost_of,
    make_settings,
    running,
    set_alias,
    set_limit,
    wait_for_entry,
)

from service.api import CATALOG
from service.sandbox.form import parse

pytestmark = pytest.mark.shares_service

EDITOR = "firered-image-edit"
PNG = base64.b64decode("iVBORw0KGgo=") + b"\r\n--x\0"
FOX = ("fox.png", PNG, "image/png")
OWL = ("owl.jpg", b"\xff\xd8\xff owl", "image/jpeg")
MEBIBYTE = 1024 * 1024
MODELS = {
    "data": [
        {
            "id": EDITOR,
            "type": "inpaint",
            "model_spec": {"pricing": {"inpaint": {"usd": 0.04}}},
        }
    ]
}


@pytest.fixture
async def client(caller):
    """OpenAI's SDK with a caller's key."""
    url = f"{caller.service.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=caller.key, max_retries=0) as client:
        yield client


def form_of(call):
    """Return the texts and files that Venice received."""
    return parse(call.body, call.headers["Content-Type"])


async def test_one_image(client, caller, upstream):
    """Venice's edit gets the one image byte for byte, and no members that it does not know."""
    raw = await client.images.with_raw_response.edit(
        image=FOX,
        prompt="a red one",
        model=EDITOR,
        n=1,
        size="1536x1024",
        response_format="b64_json",
        quality="auto",
        output_format="webp",
        background="opaque",
        input_fidelity="high",
        user="alice",
        stream=False,
        extra_body={"safe_mode": False},
    )
    edited = raw.parse()

    assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
    assert edited.created > 1_700_000_000
    assert raw.headers.get_list("Content-Type") == ["application/json"]
    (call,) = upstream.calls.to("/image/edit")
    sent = form_of(call)
    assert sent.texts == {
        "prompt": "a red one",
        "model": EDITOR,
        "aspect_ratio": "3:2",
        "output_format": "webp",
        "safe_mode": "false",
    }
    assert sent.files == {"image": [PNG]}
    assert b'filename="fox.png"' in call.body
    assert b"Content-Type: image/png" in call.body
    entry = await caller.only_entry()
    assert (entry["endpoint"], entry["model"]) == ("/image/edit", EDITOR)
    assert raw.headers["x-rialto-cost-usd"] == entry["cost_usd"] == "0.04"
    await assert_ledger_matches_charges(caller, upstream)


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
async def test_as_a_url(caller, upstream, prefix):
    """A response by URL holds the picture in a data URL with Venice's content type."""
    url = f"{caller.service.url}{prefix}"
    async with openai.AsyncOpenAI(base_url=url, api_key=caller.key) as client:
        edited = await client.images.edit(image=FOX, prompt="x", response_format="url")

    start, _, content = edited.data[0].url.partition(",")
    assert start == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")
    await assert_ledger_matches_charges(caller, upstream)


async def test_several_images(client, caller, upstream):
    """Several images become one call, in their order, and each input is paid for."""
    await client.images.edit(image=[FOX, OWL, FOX], prompt="together", model=EDITOR)

    (call,) = upstream.calls.to("/image/multi-edit")
    sent = form_of(call)
    assert sent.texts == {"prompt": "together", "modelId": EDITOR}
    assert sent.files == {"images": [PNG, OWL[1], PNG]}
    entry = await caller.only_entry()
    assert (entry["endpoint"], entry["cost_usd"]) == ("/image/multi-edit", "0.06")
    await assert_ledger_matches_charges(caller, upstream)


@pytest.mark.parametrize(("quality", "expected"), [("hd", "high"), ("low", "low")])
async def test_a_quality(service, client, caller, upstream, quality, expected):
    """A quality is sent where Venice's edit accepts one, and priced by it."""
    prices = {"1K": {"low": {"usd": 0.01}, "high": {"usd": 0.2}}}
    upstream.listing.change(EDITOR, {"pricing": {"quality": prices}})
    await service.app[CATALOG].sync()

    await client.images.edit(image=FOX, prompt="x", quality=quality)

    (call,) = upstream.calls.to("/image/multi-edit")
    assert form_of(call).texts == {"prompt": "x", "quality": expected}
    assert float(cost_of(await caller.only_entry())) == prices["1K"][expected]["usd"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("auto", {}),
        ("1024x1024", {"aspect_ratio": "1:1"}),
        ("1792x1024", {"aspect_ratio": "16:9"}),
        ("2048x2048", {"aspect_ratio": "1:1", "resolution": "2K"}),
        ("2160x3840", {"aspect_ratio": "9:16", "resolution": "4K"}),
    ],
)
async def test_a_size(client, upstream, size, expected):
    """A size becomes the nearest aspect ratio that Venice offers."""
    await client.images.edit(image=FOX, prompt="x", size=size)

    (call,) = upstream.calls.to("/image/edit")
    assert form_of(call).texts == {"prompt": "x", **expected}


@pytest.mark.parametrize("count", [1, 2])
async def test_by_an_alias(service, client, caller, upstream, count):
    """Venice gets the model's own name instead of the alias, in the right field."""
    await set_alias(service, "gpt-image-1", [EDITOR])
    await client.images.edit(image=[FOX] * count, prompt="x", model="gpt-image-1")

    field = "model" if count == 1 else "modelId"
    assert form_of(upstream.posts[-1]).texts[field] == EDITOR
    entry = await caller.only_entry()
    assert (entry["model"], entry["requested_model"]) == (EDITOR, "gpt-image-1")


async def test_end_users_have_limits(client, caller):
    """Limits of end users apply to edits, by the same names as elsewhere."""
    await set_limit(caller, unit="requests", period="day", ceiling=1, each_end_user=True)
    await client.images.edit(image=FOX, prompt="x", user="alice")
    with pytest.raises(openai.RateLimitError):
        await client.images.edit(image=FOX, prompt="x", safety_identifier="alice", user="bob")
    await client.images.edit(image=FOX, prompt="x", user="bob")

    assert len(await caller.entries()) == 2


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"n": 2}, "n"),
        ({"mask": FOX}, "mask"),
        ({"stream": True}, "stream"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"response_format": "file"}, "response_format"),
        ({"size": "big"}, "size"),
        ({"size": "100x1000"}, "size"),
        ({"size": "8192x8192"}, "size"),
        ({"image": []}, "image"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 70_000}, "prompt"),
        ({"model": "two words"}, "model"),
        ({"user": "x" * 129}, "user"),
    ],
)
async def test_members_without_a_translation(client, caller, upstream, asked, field):
    """A member that cannot be translated for Venice is refused by name and costs nothing."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.edit(**{"image": FOX, "prompt": "x", **asked})

    assert (caught.value.code, caught.value.param) == ("invalid_request", field)
    assert str(field) in caught.value.message
    assert await caller.entries() == []
    assert upstream.calls.to("/image/edit") == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": "aGVsbG8="}, "image: must be a file."),
        ({"image": PNG, "prompt": "x", "model": "a"}, "There is no model 'a'."),
    ],
)
async def test_odd_forms(service, caller, fields, expected):
    """Malformed forms from clients other than the SDK are refused with the reason."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value, filename="a.png" if isinstance(value, bytes) else None)
    url = "/v1/images/edits"
    async with service.http.post(url, data=form, headers=caller.headers) as response:
        assert response.status in (400, 404)
        assert (await response.json())["error"]["message"].startswith(expected)


async def test_json_is_no_form(service, caller):
    """A JSON body is refused with the reason."""
    async with service.http.post(
        "/v1/images/edits", json={"prompt": "x"}, headers=caller.headers
    ) as response:
        assert response.status == 400
        assert "multipart/form-data" in (await response.json())["error"]["message"]


async def test_venices_refusal_is_the_sdks_error(client, caller, upstream):
    """A refusal by Venice becomes the SDK's error with the same text, and costs nothing."""
    upstream.faults.push("/image/edit", "content_policy", times=1)
    with pytest.raises(openai.UnprocessableEntityError):
        await client.images.edit(image=FOX, prompt="x")
    assert (await caller.only_entry())["cost_source"] == "not_charged"


async def test_a_withheld_image_is_given_and_costs_nothing(client, caller, upstream):
    """An image that Venice withheld, as a header states, is passed on and costs nothing."""
    upstream.faults.push("/image/edit", "content_violation", times=1)
    raw = await client.images.with_raw_response.edit(image=FOX, prompt="x")

    assert raw.headers["x-venice-is-content-violation"] == "true"
    assert base64.b64decode(raw.parse().data[0].b64_json).startswith(b"\x89PNG")
    assert (await caller.only_entry())["cost_source"] == "not_charged"


class Odd:
    """A Venice with odd edits."""

    def __init__(self):
        self.sent_bytes = 0
        self.begun = asyncio.Event()

    async def models(self, request):
        return web.json_response(MODELS)

    async def edit(self, request):
        prompt = parse(await request.read(), request.headers["Content-Type"]).texts["prompt"]
        if prompt == "nothing":
            return web.json_response({"error": None})
        response = web.StreamResponse(headers={"content-type": "image/webp; q=1"})
        await response.prepare(request)
        if prompt == "cut":
            await response.write(b"x")
            request.transport.abort()
        elif prompt == "stuck":
            await response.write(b"x")
            self.begun.set()
            await asyncio.sleep(60)
        elif prompt == "huge":
            for _ in range(100):
                await response.write(b"x" * MEBIBYTE)
                self.sent_bytes += MEBIBYTE
        else:
            await response.write(b"whole")
        return response


@pytest.fixture
async def odd(aiohttp_server, database_address):
    """An odd Venice, and a caller of a service before it."""
    venice = Odd()
    app = web.Application()
    app.router.add_post("/api/v1/image/edit", venice.edit)
    app.router.add_get("/api/v1/models", venice.models)
    server = await aiohttp_server(app)
    async with running(make_settings(database_address, str(server.make_url("")))) as service:
        venice.caller = await service.new_caller()
        url = f"{service.url}/v1"
        async with openai.AsyncOpenAI(
            base_url=url, api_key=venice.caller.key, max_retries=0
        ) as venice.client:
            yield venice
        await service.audit()


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("huge", "upstream_error"), ("cut", "upstream_cut"), ("nothing", "upstream_error")],
)
async def test_an_answer_that_is_no_picture(odd, prompt, code):
    """A response that is not a picture is an upstream error and was charged."""
    with pytest.raises(openai.InternalServerError) as caught:
        await odd.client.images.edit(image=FOX, prompt=prompt)

    assert (caught.value.status_code, caught.value.code) == (502, code)
    assert odd.sent_bytes < 80 * MEBIBYTE
    entry = await odd.caller.only_entry()
    assert (entry["outcome"], entry["status"], entry["cost_usd"]) == (code, 502, "0.04")


async def test_the_type_is_venices(odd):
    """The data URL has Venice's content type without its parameters, however the header is
    spelled."""
    edited = await odd.client.images.edit(image=FOX, prompt="x", response_format="url")
    assert edited.data[0].url == "data:image/webp;base64," + base64.b64encode(b"whole").decode()


async def test_a_caller_that_leaves_in_the_middle(odd):
    """A call whose caller leaves is charged for the picture, which was made."""
    asking = asyncio.create_task(odd.client.images.edit(image=FOX, prompt="stuck"))
    async with asyncio.timeout(5):
        await odd.begun.wait()
    asking.cancel()

    entry = await wait_for_entry(odd.caller)
    assert (entry["outcome"], entry["cost_usd"]) == ("client_closed", "0.04")


async def test_a_quote(caller, upstream):
    """A quote for an edit equals that of Venice's call; an impossible edit has the same error as
    the call."""
    http = caller.service.http

    async def asked(path, **texts):
        form = aiohttp.FormData({"prompt": "a red one", "model": EDITOR, **texts})
        form.add_field("image", PNG, filename="fox.png", content_type="image/png")
        async with http.post(path, data=form, headers=caller.headers) as response:
            return response.status, await response.json()

    status, quote = await asked("/v1/quote/images/edits")
    refused, error = await asked("/v1/quote/images/edits", n="2")

    assert (status, quote["endpoint"], quote["model"]) == (200, "/image/edit", EDITOR)
    assert (quote["would_pass"], quote["max_output_tokens"]) == (True, None)
    assert upstream.calls.to("/image/edit") == []
    assert (refused, error["error"]["param"]) == (400, "n")
    await asked("/v1/images/edits")
    assert quote["max_cost_usd"] == (await caller.only_entry())["cost_usd"]
