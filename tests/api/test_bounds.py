"""A call's bound covers all that its body requests, in whatever spelling, and Venice gets the body
that was priced."""

import base64
import json
import struct
from decimal import Decimal

import aiohttp
import pytest
from support import MODEL, set_limit

from service import app as application

pytestmark = pytest.mark.shares_service

SEARCH = Decimal("0.01")
OPUS = "claude-opus-4-8"
MESSAGES = [{"role": "user", "content": "x"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
LINK = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
TEXT = {"type": "text", "text": "What is that?"}
WIDE_WINDOW = 1_000_000
CHAT = "/chat/completions"
RESPONSES = "/responses"


def body_of(path, **members):
    """Return a small body for the path."""
    conversation = {"input": "x"} if path == RESPONSES else {"messages": MESSAGES}
    maximum = "max_output_tokens" if path == RESPONSES else "max_completion_tokens"
    return {"model": MODEL, maximum: 100, **conversation, **members}


async def send(caller, path, body):
    """Post a body, which may be bytes; return the status and the decoded response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {**caller.headers, "Content-Type": "application/json"}
    async with caller.service.http.post(f"/v1{path}", data=content, headers=headers) as response:
        return response.status, await response.json()


async def quoted(caller, path, body):
    """Return the quote for a body."""
    status, quote = await send(caller, f"/quote{path}", body)
    assert status == 200, quote
    return quote


async def cost(caller, path, **members):
    """Return the most that a body can cost; None if it is not known."""
    usd = (await quoted(caller, path, body_of(path, **members)))["max_cost_usd"]
    return None if usd is None else Decimal(usd)


SEARCHES = [
    {"venice_parameters": {"enable_web_search": "on"}},
    {"venice_parameters": {"enable_web_search": "auto"}},
    {"venice_parameters": {"enable_web_search": True}},
    {"venice_parameters": {"enable_x_search": True}},
    {"web_search": True},
    {"web_search_options": {}},
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "web_search_preview"}]},
    {"tools": [{"type": "web_search_preview_2025_03_11"}]},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    {"tools": [{"type": "Web_Search"}]},
    {"tools": [{"type": "x_search", "allowed_x_handles": ["a"]}]},
    {"tools": [{"type": "web_search", "external_web_access": True}]},
    {"tools": [{"type": "namespace", "name": "a", "tools": [{"type": "web_search"}]}]},
    {"tools": [{"type": "function", "function": {"name": "f"}, "web_search": {"enable": True}}]},
    {"model": f"{MODEL}:enable_web_search=on"},
    {"model": f"{MODEL}:enable%5Fweb%5Fsearch=on"},
    {"model": f"{MODEL}:disable_thinking=true&enable_web_search=%6Fn"},
    {"model": f"{MODEL}:enable_x_search=true"},
]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("members", SEARCHES, ids=json.dumps)
async def test_a_search_has_one_price(caller, path, members):
    """A search costs its fee and a prompt as long as the window, however it is requested."""
    plain = await cost(caller, path)
    one_way = await cost(caller, path, venice_parameters={"enable_web_search": "on"})

    assert plain < SEARCH < one_way == await cost(caller, path, **members)
    both = {"venice_parameters": {"enable_web_search": "on"}, "tools": [{"type": "x_search"}]}
    assert await cost(caller, path, **both) == one_way + SEARCH


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_mentioning_a_search_costs_nothing(caller, path):
    """A prompt or a client's tool that mentions a search, and a disabled search, add nothing to the
    bound."""
    plain = await cost(caller, path)
    function = {"name": "web_search", "description": '"web_search" "x_search" "file"'}
    tool = {"type": "function", **function, "function": function}
    for members in (
        {"tools": [tool]},
        {"tools": [{"type": "custom", "name": "image_generation"}]},
        {"metadata": {"a": '{"type":"web_search"}'}},
        {"venice_parameters": {"enable_web_search": "off", "enable_web_citations": True}},
        {"web_search": False},
        {"tools": None, "tool_choice": "auto"},
        {"model": f"{MODEL}:enable_web_search=off"},
    ):
        assert plain <= await cost(caller, path, **members) < SEARCH


async def test_a_search_that_may_not_leave_the_client_is_left_out(caller, upstream):
    """A search tool that may not leave the client, which Codex always sends, is left out; without
    other tools ``tool_choice`` is left out too."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.05")
    search = {"type": "web_search", "external_web_access": False}
    function = {"type": "function", "name": "f", "parameters": {}}
    for tools, left in (
        ([function, search], {"tools": [function], "tool_choice": "auto"}),
        ([search], {}),
    ):
        body = body_of(RESPONSES, tools=tools, tool_choice="auto", parallel_tool_calls=True)
        assert (await send(caller, RESPONSES, body))[0] == 200
        sent = json.loads(upstream.calls.to(RESPONSES)[-1].body)
        assert {name: sent[name] for name in ("tools", "tool_choice") if name in sent} == left


HOSTED = [
    {"tools": [{"type": "image_generation"}]},
    {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
    {"tools": [{"type": "co\u0064e_interpreter"}]},
    {"tools": [{"type": "file_search", "vector_store_ids": ["a"]}]},
    {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
    {"tools": [{"type": "shell", "environment": "local"}]},
    {"tools": [{"type": "tool_search"}]},
    {"tools": [{"type": "mcp", "server_url": "https://example.com"}]},
    {"tools": [{"type": "web_search_and_more"}]},
    {"tool_choice": {"type": "image_generation"}},
]
"""Tools that run elsewhere; the Responses API refuses them by name, see test_responses.py."""
UNPRICED = [
    {"tools": [{"type": "function", "function": {"name": "f"}, "model": OPUS}]},
    {"service_tier": "priority"},
    {"plugins": [{"id": "web"}]},
    {"models": [OPUS]},
    {"Web_Search": True},
    {"web\u200bsearch": True},
    {"speed": "fast"},
    {"modalities": ["text", "audio"]},
    {"venice_parameters": {"Enable_Web_Search": "on"}},
    {"venice_parameters": {"enable_image_generation": True}},
    {"reasoning": {"pro": True}},
    {"model": f"{MODEL}:enable_anything=on"},
]


@pytest.mark.parametrize(
    ("path", "members"),
    [(CHAT, members) for members in HOSTED + UNPRICED]
    + [(RESPONSES, members) for members in UNPRICED],
    ids=json.dumps,
)
async def test_no_limit_of_money_admits_an_unknown_price(service, upstream, path, members):
    """A limit of money refuses members with an unknown price; without one they pass, and some are
    removed for ``tolerant`` callers."""
    caller = await service.new_caller(settings={"tolerant": False})
    assert await cost(caller, path, **members) is None
    await set_limit(caller, unit="usd", period="day", ceiling="5")
    status, answer = await send(caller, path, body_of(path, **members))

    assert (status, answer["error"]["code"]) == (402, "price_unknown")
    assert answer["error"]["param"].split("[")[0].split(".")[0].split(":")[0] in members
    assert upstream.calls.to(path) == []


USUAL = [
    {"modalities": ["text"]},
    {"prediction": {"type": "content", "content": "abc"}},
    {"anything": None},
    {"anything": False},
    {"anything": ""},
    {"anything": []},
    {"venice_parameters": {"anything": "off", "enable_anything": False}},
    {"tools": [{"type": "shell"}]},
    {"tools": [{"type": "shell", "environment": {"type": "local", "skills": []}}]},
    {"tools": [{"type": "tool_search", "execution": "client", "parameters": {}}]},
    {"tools": [{"type": "computer_use_preview", "environment": "browser"}]},
    {"tool_choice": {"type": "computer"}, "tools": [{"type": "computer"}]},
]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("members", USUAL, ids=json.dumps)
async def test_what_clients_usually_send_has_a_price(service, path, members):
    """Members that clients usually send have a price even when nothing is removed: empty values ask
    for nothing, and clients run their own tools."""
    caller = await service.new_caller(settings={"tolerant": False})
    assert await cost(caller, path) <= await cost(caller, path, **members) < SEARCH


async def test_a_prediction_may_be_charged_as_output(service):
    """The bound of a call with a prediction includes the rejected tokens beside the maximum
    output."""
    caller = await service.new_caller(settings={"tolerant": False})
    plain = await cost(caller, CHAT, model=OPUS)
    prediction = {"type": "content", "content": "x" * 1_000}
    predicted = await cost(caller, CHAT, model=OPUS, prediction=prediction)
    # OPUS costs USD 5 for a million input tokens and USD 25 for a million output tokens.
    assert predicted - plain >= 1_000 * Decimal("0.00003")


async def test_tolerant_callers_may_send_members_only_openai_takes(caller, upstream):
    """Members that only OpenAI knows are removed for tolerant callers, because Venice refuses
    them."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.05")
    openai = {"modalities": ["text"], "prediction": {"type": "content", "content": "abc"}}
    assert (await send(caller, CHAT, body_of(CHAT, **openai, audio=None)))[0] == 200
    assert not openai.keys() & json.loads(upstream.calls.to(CHAT)[-1].body).keys()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/image/generate", {"model": "venice-sd35", "prompt": "x", "turbo": True}),
        ("/images/generations", {"prompt": "x", "enhance_prompt": True}),
        ("/image/edit", {"image": "https://example.com/a.png", "prompt": "x", "n": 2}),
        ("/image/upscale", {"image": "https://example.com/a.png", "enhance": True}),
        ("/audio/speech", {"input": "x", "clone": "y"}),
        ("/embeddings", {"model": "text-embedding-bge-m3", "input": "x", "fallbacks": [{}]}),
        ("/decisions", {"model": "jev-latest", "state": "x", "questions": {}, "tools": [{}]}),
        ("/augment/search", {"query": "x", "deep": True}),
        ("/video/queue", {"model": "wan-2.5-preview-text-to-video", "prompt": "x", "best": 1}),
    ],
)
async def test_unknown_members_have_no_price(caller, path, body):
    """A member that is not in the table makes the price unknown, on every endpoint."""
    assert (await quoted(caller, path, body))["max_cost_usd"] is None


async def test_images_are_multiplied(caller):
    """The bound multiplies the price of an image by their number, also in OpenAI's format."""
    body = {"model": "venice-sd35", "prompt": "x"}
    one = await quoted(caller, "/images/generations", body)
    four = await quoted(caller, "/images/generations", {**body, "n": 4})
    assert Decimal(four["max_cost_usd"]) == 4 * Decimal(one["max_cost_usd"])


URL = "https://example.com/a.png"
EDITOR = "firered-image-edit"


@pytest.fixture
async def priced_images(service, upstream):
    """Models whose price per image depends on the number of pictures and on the quality."""
    more = {"included": 1, "additional": {"usd": 0.01}}
    upstream.listing.change(EDITOR, {"pricing": {"inpaint": {"usd": 0.04}, "inputImages": more}})
    qualities = {"1K": {name: {"usd": usd} for name, usd in (("low", 0.01), ("high", 0.2))}}
    upstream.listing.change("venice-sd35", {"pricing": {"quality": qualities}})
    await service.app[application.api.CATALOG].sync()


@pytest.mark.parametrize(
    ("members", "pictures"),
    [
        ({"image": URL}, 1),
        ({"images": [URL] * 3}, 3),
        ({"image": URL, "images": None}, 1),
        ({"image": [URL] * 3}, 3),
        ({"images[]": [URL] * 3}, 3),
        ({"image": URL, "images": [URL] * 3}, 4),
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("path", ["/image/edit", "/image/multi-edit"])
@pytest.mark.usefixtures("priced_images")
async def test_every_picture_of_an_edit_counts(caller, path, members, pictures):
    """Every input picture of an edit counts in the bound, in whatever member it is."""
    quote = await quoted(caller, path, {"prompt": "x", "model": EDITOR, **members})
    assert Decimal(quote["max_cost_usd"]) == Decimal("0.03") + pictures * Decimal("0.01")


@pytest.mark.parametrize("name", ["image", "images", "images[]"])
async def test_a_list_of_pictures_in_a_text_is_refused(service, caller, name):
    """A list of pictures encoded as text is refused, because it is not known how Venice reads
    it."""
    form = aiohttp.FormData({"prompt": "x"}, default_to_multipart=True)
    form.add_field(name, json.dumps([URL] * 3))
    url = "/v1/image/multi-edit"
    async with service.http.post(url, data=form, headers=caller.headers) as response:
        answer = await response.json()
        assert (response.status, answer["error"]["param"]) == (400, name)


@pytest.mark.usefixtures("priced_images")
async def test_a_quality_that_venice_ignores_saves_nothing(caller):
    """A quality changes the bound only on the route where Venice uses it."""
    body = {"model": "venice-sd35", "prompt": "x", "quality": "low"}
    for path, usd in (("/images/generations", "0.20"), ("/image/generate", "0.01")):
        assert (await quoted(caller, path, body))["max_cost_usd"] == usd


@pytest.mark.parametrize("name", ["stream", "chunking_strategy", "user", "known_speaker_names[]"])
async def test_usual_fields_of_a_transcription_have_its_price(service, caller, name):
    """The usual fields of OpenAI's transcription clients keep the price by length."""
    form = aiohttp.FormData({name: "false"}, default_to_multipart=True)
    form.add_field("file", b"x" * 1_000, filename="a.wav")
    url = "/v1/quote/audio/transcriptions"
    async with service.http.post(url, data=form, headers=caller.headers) as response:
        assert (await response.json())["max_cost_usd"] == "0.0002"


@pytest.mark.parametrize(
    ("members", "output_tokens"),
    [
        ({}, 100),
        ({"n": 3}, 300),
        ({"n": 3, "best_of": 5}, 1_500),
        ({"variants": 4}, 400),
        ({"max_tokens": 700}, 700),
        ({"reasoning": {"effort": "high", "max_tokens": 900}}, 1_000),
        ({"thinking": {"type": "enabled", "budget_tokens": 900}, "n": 2}, 2_000),
        ({"thinking_budget": -1}, 32_768),
    ],
)
async def test_members_that_multiply_or_raise_the_output(caller, members, output_tokens):
    """The bound multiplies the output by the number of choices and adds reasoning beside the
    maximum."""
    plain = await quoted(caller, CHAT, body_of(CHAT))
    quote = await quoted(caller, CHAT, body_of(CHAT, **members))
    more = quote["max_tokens"] - plain["max_tokens"] - (output_tokens - 100)
    assert 0 <= more < 100


@pytest.mark.parametrize("value", ["2", 2.0, 1e2, True, -1, 0, 2**40, 10**30, [2], {"a": 1}])
@pytest.mark.parametrize(
    "name", ["n", "best_of", "variants", "max_tokens", "max_completion_tokens", "max_output_tokens"]
)
async def test_counts_are_whole_numbers(caller, upstream, name, value):
    """Counts must be whole numbers, because Venice could read a text, a fraction or a boolean
    differently."""
    status, answer = await send(caller, CHAT, body_of(CHAT, **{name: value}))
    assert (status, answer["error"]["param"]) == (400, name)
    assert upstream.calls.to(CHAT) == []


async def test_a_response_is_capped_by_its_own_member(caller, upstream):
    """A response is capped by ``max_output_tokens``, since Venice may ignore the maxima of other
    APIs; of those, what is below the cap stays."""
    body = {"model": MODEL, "input": "x", "max_tokens": 100_000, "max_completion_tokens": 5}
    assert (await send(caller, RESPONSES, body))[0] == 200
    sent = json.loads(upstream.calls.to(RESPONSES)[-1].body)
    maxima = ("max_output_tokens", "max_tokens", "max_completion_tokens")
    assert [sent[name] for name in maxima] == [8_192, 8_192, 5]


@pytest.mark.parametrize(
    "suffix",
    [
        "enable_web_search",
        "=on",
        "free",
        "enable%255Fweb_search=on",
        "enable_web_search=on;a=b",
        "enable_web_search=on+off",
        "enable_web_search=off&enable_web_search=on",
        "enable_web_search=off&enable%5Fweb%5Fsearch=on",
        "enable_web_search:on",
        "a=%00",
        "a=%C3%A9",
        "a=%zz",
        "a=b=c",
        "a=b#c",
    ],
)
async def test_a_suffix_that_can_be_read_in_two_ways_is_refused(caller, upstream, suffix):
    """A model suffix that can be read in two ways is a 400 that names the field and the rule."""
    for path in (CHAT, RESPONSES, "/embeddings"):
        body = {**body_of(path), "model": f"{MODEL}:{suffix}", "input": "x"}
        status, answer = await send(caller, path, body)
        assert (status, answer["error"]["param"]) == (400, "model")
    assert [call for call in upstream.calls if call.method == "POST"] == []


async def test_what_is_sent_is_what_was_priced(caller, upstream):
    """A model suffix goes to Venice in the one spelling in which it was read."""
    for stated, sent in (
        ("enable%5Fweb%5Fsearch=o%6Eff", None),
        ("enable%5Fweb%5Fcitations=true&disable_thinking=true", "enable_web_citations=true&"),
        ("&enable_web_search=o%66f&", "enable_web_search=off"),
    ):
        body = body_of(CHAT, model=f"{MODEL}:{stated}")
        status, _ = await send(caller, CHAT, body)
        if sent is None:
            assert status == 400
            continue
        assert status == 200
        model = json.loads(upstream.calls.to(CHAT)[-1].body)["model"]
        assert model.startswith(f"{MODEL}:{sent}")
        assert "%" not in model
    for name in (f"{MODEL}%3Aenable_web_search=on", f"{MODEL[:-1]}%62"):
        assert (await send(caller, CHAT, body_of(CHAT, model=name)))[0] == 400
    body = {"model": "venice-sd35:enhance_prompt=true", "prompt": "x"}
    assert (await send(caller, "/image/generate", body))[0] == 400


async def test_a_suffix_raises_nobodys_bounds(service, upstream):
    """A prompt that exceeds its bound through a suffix does not raise other callers' bounds."""
    caller, other = await service.new_caller(), await service.new_caller("other")
    before = await cost(other, CHAT)
    for name in (f"{MODEL}:enable%5Fweb%5Fsearch=on", MODEL):
        body = body_of(CHAT, model=name, messages=[{"role": "user", "content": "[prompt=9000]"}])
        assert (await send(caller, CHAT, body))[0] == 200
    assert await cost(other, CHAT) == before


async def tokens(caller, *content, model=OPUS, **members):
    """Return the token bound of a message with these parts."""
    message = {"role": "user", "content": list(content)}
    return (await quoted(caller, CHAT, body_of(CHAT, model=model, messages=[message], **members)))[
        "max_tokens"
    ]


async def test_a_picture_has_the_bound_of_a_picture(caller):
    """A picture, inline or linked, has the fixed bound of a picture rather than of its bytes or of
    the window."""
    plain = await tokens(caller, TEXT)
    linked = await tokens(caller, TEXT, LINK)
    assert plain < linked < plain + 20_000
    assert abs(await tokens(caller, TEXT, PICTURE) - linked) < 200
    several = await tokens(caller, TEXT, LINK, PICTURE, LINK)
    assert 3 * (linked - plain) - 300 < several - plain < 3 * (linked - plain) + 300

    item = {"role": "user", "content": [{"type": "input_image", "image_url": PICTURE["image_url"]}]}
    item["content"][0]["image_url"] = PICTURE["image_url"]["url"]
    for path, conversation in (
        (RESPONSES, {"input": [item]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": item["content"]}]}),
    ):
        quote = await quoted(caller, path, body_of(path, model=OPUS, **conversation))
        assert plain < quote["max_tokens"] < plain + 20_000


async def test_a_small_picture_has_a_small_bound(caller):
    """A picture that states its size has a bound by it, in every API's format; its model decides
    how many tokens it has."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 800, 600)
    data = base64.b64encode(head + b"x" * 300_000).decode()
    url = f"data:image/png;base64,{data}"
    plain = await tokens(caller, TEXT)
    known = await tokens(caller, TEXT, {"type": "image_url", "image_url": {"url": url}})
    assert plain + 7_000 < known < plain + 8_000
    source = {"type": "base64", "media_type": "image/png", "data": data}
    message = {"role": "user", "content": [TEXT, {"type": "image", "source": source}]}
    item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    for path, body in (
        ("/messages", {"model": OPUS, "max_tokens": 100, "messages": [message]}),
        (RESPONSES, body_of(RESPONSES, model=OPUS, input=[item])),
    ):
        assert plain < (await quoted(caller, path, body))["max_tokens"] < plain + 8_500


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "ftp://example.com/a.png"}},
        {"type": "image_url", "image_url": ["https://example.com/a.png"]},
        {"type": "image_url", "image_url": {"url": "https://a.example"}, "file": {"file_id": "a"}},
        {"type": "text", "text": "x", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "input_hologram", "text": "x"},
        {"image_url": {"url": "https://example.com/a.png"}},
        {"type": ["image_url"], "image_url": {"url": "https://example.com/a.png"}},
        {"type": {"a": 1}, "text": "x"},
        {"type": "function_call", "arguments": {"image_url": "https://example.com/a.png"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    ],
    ids=json.dumps,
)
async def test_parts_without_a_bound_count_as_the_window(caller, part):
    """Sound, video, files and unknown parts have the bound of the whole window."""
    assert await tokens(caller, TEXT, part) == WIDE_WINDOW + 100


async def test_structure_decides_rather_than_bytes(caller):
    """A schema may use any member names, and a text may escape any character, without changing the
    bound."""
    schema = {"type": "object", "properties": {"file": {"type": "string"}, "image_url": {}}}
    tool = {"type": "function", "function": {"name": "Read", "parameters": schema}}
    assert await tokens(caller, TEXT, tools=[tool]) < 10_000
    tool_call = {"role": "assistant", "content": None, "tool_calls": []}
    tool_call["tool_calls"] = [
        {"id": "a", "type": "function", "function": {"name": "Read", "arguments": '{"file":"a"}'}}
    ]
    answer = {"role": "tool", "tool_call_id": "a", "content": '{"image_url":"input_audio"}'}
    body = body_of(CHAT, model=OPUS, messages=[*MESSAGES, tool_call, answer, *MESSAGES])
    assert (await quoted(caller, CHAT, body))["max_tokens"] < 10_000


ITEMS = [
    {"type": "apply_patch_call", "call_id": "a", "operation": {"type": "update_file", "diff": "x"}},
    {"type": "shell_call", "call_id": "a", "action": {"commands": ["ls"], "file": "a"}},
    {"type": "local_shell_call", "call_id": "a", "action": {"type": "exec", "media": ["ls"]}},
    {"type": "web_search_call", "id": "a", "action": {"type": "search", "images": ["a"]}},
    {"type": "ghost_snapshot", "ghost_commit": {"preexisting_untracked_files": ["a"]}},
    {"role": "user", "content": "x", "metadata": {"profile": "x", "immediate": True}},
    {"role": "assistant", "content": "x", "images": [], "audio": {}, "files": "", "video": False},
]


@pytest.mark.parametrize("item", ITEMS, ids=json.dumps)
async def test_client_items_are_text(caller, item):
    """Items that report a client's action are bounded as text; names within them and empty members
    do not make them media."""
    quote = await quoted(caller, RESPONSES, body_of(RESPONSES, model=OPUS, input=[item]))
    assert quote["max_tokens"] < 10_000


async def test_a_screenshot_is_a_picture(caller):
    """A screenshot has the bound of a picture, as a computer's output or as part of a message."""
    screen = {"type": "computer_screenshot", "image_url": PICTURE["image_url"]["url"]}
    item = {"type": "computer_call_output", "call_id": "a", "output": screen}
    for conversation in ([item], [{**item, "output": [screen]}]):
        body = body_of(RESPONSES, model=OPUS, input=conversation)
        assert 16_000 < (await quoted(caller, RESPONSES, body))["max_tokens"] < 25_000
    body = body_of(
        RESPONSES, model=OPUS, input=[{**item, "output": {**screen, "file": {"file_id": "a"}}}]
    )
    assert (await quoted(caller, RESPONSES, body))["max_tokens"] == WIDE_WINDOW + 100


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_instructions_have_parts_too(caller, path):
    """Pictures in instructions have the bound of a picture, although a link to one is short."""
    parts = [{"role": "system", "content": [LINK]}]
    quote = await quoted(caller, path, body_of(path, model=OPUS, instructions=parts))
    assert quote["max_tokens"] > 16_000


async def test_escapes_are_decoded(caller):
    """A text has the same bound in every escaped spelling."""
    body = body_of(CHAT, messages=[{"role": "user", "content": "a f\u00f6x \U0001f98a" * 100}])
    plain = json.dumps(body, ensure_ascii=False).encode()
    escaped = json.dumps(body, indent=4).replace("a f", "\\u0061 \\u0066").encode()
    assert await quoted(caller, CHAT, plain) == await quoted(caller, CHAT, escaped)


async def test_claude_code_does_not_need_the_window(caller):
    """Claude Code's tools, whose properties have many names, do not raise the bound to the
    window."""
    tool = {
        "name": "Read",
        "input_schema": {"type": "object", "properties": {"file": {"type": "string"}}},
    }
    body = {"model": OPUS, "max_tokens": 10, "messages": MESSAGES, "tools": [tool]}
    assert (await quoted(caller, "/messages", body))["max_tokens"] < 10_000


NAMED = [
    ({"fallbacks": [{"model": OPUS}]}, 403),
    ({"fallbacks": [{"model": "kimi-k2-6"}, {"model": OPUS}]}, 403),
    ({"fallbacks": [{"model": "gpt-5.2"}, {"model": "no-such-model"}]}, 404),
    ({"fallbacks": [{"model": f"{OPUS}:enable_web_search=on"}]}, 400),
    ({"fallbacks": [{"model": OPUS, "max_tokens": 5}]}, 400),
    ({"fallbacks": [OPUS]}, 400),
    ({"fallbacks": OPUS}, 400),
    ({"fallbacks": [{"model": "kimi-k2-6"}] * 11}, 400),
    ({"models": [OPUS]}, 403),
    ({"Models": {"a": [{"b": OPUS}]}}, 403),
    ({"\uff4dodel": OPUS}, 403),
    ({"fallback_model": OPUS}, 403),
    ({"route": "fallback"}, 404),
    ({"venice_parameters": {"model": OPUS}}, 403),
    ({"venice_parameters": {"router": {"to": OPUS}}}, 403),
    ({"tools": [{"type": "image_generation", "model": OPUS}]}, 403),
    ({"tools": [{"type": "function", "function": {"name": "f"}, "model": OPUS}]}, 403),
    ({"reasoning": {"summary_model": OPUS}}, 403),
]


@pytest.mark.parametrize(("members", "status"), NAMED, ids=json.dumps)
async def test_every_model_in_a_body_must_be_allowed(service, upstream, members, status):
    """Every model that a body names must be allowed for the key."""
    caller = await service.new_caller(models=[MODEL, "kimi-k2-6"])
    for path in (CHAT, RESPONSES):
        answered, answer = await send(caller, path, body_of(path, **members))
        assert answered == status, answer
        assert upstream.calls.to(path) == []


async def test_fallbacks_are_in_the_bound(service, upstream):
    """The bound is that of the dearest fallback, and Venice gets the fallbacks' own names."""
    caller = await service.new_caller(models=[MODEL, "kimi-k2-6", OPUS])
    await set_limit(caller, unit="usd", period="day", ceiling="5")
    alone = {name: await cost(caller, CHAT, model=name) for name in (MODEL, "kimi-k2-6", OPUS)}
    fallbacks = [{"model": "gpt-5.2"}, {"model": "Claude.Opus.4.8"}]
    dear = await cost(caller, CHAT, fallbacks=fallbacks)
    assert alone[MODEL] < alone["kimi-k2-6"] < alone[OPUS] <= dear

    await set_limit(caller, unit="usd", period="day", ceiling=str(dear))
    status, answer = await send(caller, CHAT, body_of(CHAT, n=2, fallbacks=fallbacks))
    assert (status, answer["error"]["code"]) == (402, "limit_exceeded")
    assert (await send(caller, CHAT, body_of(CHAT, fallbacks=fallbacks)))[0] == 200
    (call,) = upstream.calls.to(CHAT)
    assert json.loads(call.body)["fallbacks"] == [{"model": "kimi-k2-6"}, {"model": OPUS}]


async def test_a_limit_of_one_model_is_not_passed_by_naming_another(service, caller):
    """A call that another model may answer is refused under a limit of one model, because it could
    not be counted."""
    await set_limit(caller, unit="requests", period="day", ceiling=0, model=OPUS)
    for members in ({"fallbacks": [{"model": OPUS}]}, {"models": [OPUS]}):
        status, answer = await send(caller, CHAT, body_of(CHAT, **members))
        assert (status, answer["error"]["code"]) == (403, "model_not_allowed")


async def test_defaults_of_a_key_are_in_the_bound(service):
    """A key's defaults, which are spliced into each body, are in the bound."""
    plain = await service.new_caller()
    caller = await service.new_caller(settings={"venice_parameters": {"enable_web_search": "on"}})
    searched = await cost(plain, CHAT, venice_parameters={"enable_web_search": "on"})
    assert await cost(caller, CHAT) == searched
