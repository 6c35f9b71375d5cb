"""Audio: a length that Venice states is recorded in full; without one, the call is recorded at its
bound."""

from decimal import Decimal

import aiohttp
import pytest
from odd_venice import odd_venice, serving, whole
from support import cost_of

pytestmark = pytest.mark.shares_service


@pytest.fixture
async def venice():
    async with odd_venice() as venice:
        yield venice


@pytest.fixture
async def caller(database_address, venice):
    async with serving(database_address, venice) as service:
        yield await service.new_caller()


async def transcribed(caller):
    """Transcribe 100 KB, which are 200 seconds at most; return the entry."""
    form = aiohttp.FormData()
    form.add_field("file", b"x" * 100_000, filename="x.wav")
    form.add_field("model", "ears")
    url = "/v1/audio/transcriptions"
    async with caller.service.http.post(url, data=form, headers=caller.headers) as response:
        await response.read()
        assert response.status == 200
    return await caller.only_entry()


@pytest.mark.parametrize("seconds", ["100000", "0.5", '"100000.25"', "1e5", "9999999"])
async def test_a_length_that_is_stated(caller, venice, seconds):
    """A stated length is recorded in full, even above the bound."""
    venice.answer = whole(b'{"text":"a","duration":%b}' % seconds.encode())
    entry = await transcribed(caller)

    assert entry["cost_source"] == "computed"
    assert cost_of(entry) == Decimal(seconds.strip('"')) / 10_000


@pytest.mark.parametrize("seconds", ["0", "null", "-5", '"long"', '"NaN"', "{}", "1e99"])
async def test_an_invalid_length(caller, venice, seconds):
    """An invalid length is ignored, because no audio takes no time."""
    venice.answer = whole(b'{"text":"a","duration":%b}' % seconds.encode())
    entry = await transcribed(caller)

    assert entry["cost_source"] == "bound"
    assert cost_of(entry) == Decimal(entry["bound_usd"]) == Decimal(200) / 10_000


@pytest.mark.parametrize("text", ["abc", "ä" * 10, "😀" * 100, "a😀\u200d\U0001f9d1"])
async def test_speech_is_counted_as_venice_does(caller, venice, text):
    """Characters of speech are counted in UTF-16 units, of which an emoji has two."""
    venice.answer = whole(b"sound", content_type="audio/mpeg")
    body = {"model": "voice", "input": text}
    url = "/v1/audio/speech"
    async with caller.service.http.post(url, json=body, headers=caller.headers) as response:
        await response.read()
        assert response.status == 200
    entry = await caller.only_entry()

    units = len(text.encode("utf-16-le")) // 2
    assert cost_of(entry) == Decimal(entry["bound_usd"]) == Decimal(units) * 35 / 10**7


@pytest.mark.parametrize(("is_refunded", "source"), [("false", "bound"), ("true", "not_charged")])
@pytest.mark.parametrize("status", [422, 400])
async def test_a_refusal_that_keeps_its_charge(caller, venice, status, is_refunded, source):
    """A refusal that Venice states to be charged is recorded at its cost."""
    refusal = b'{"error":{"message":"no","credits_refunded":%b}}' % is_refunded.encode()
    venice.answer = whole(refusal, f"{status} No")
    body = {"model": "brush", "prompt": "x"}
    url = "/v1/image/generate"
    async with caller.service.http.post(url, json=body, headers=caller.headers) as response:
        assert response.status == status
    entry = await caller.only_entry()

    assert (entry["outcome"], entry["cost_source"]) == ("upstream_rejected", source)
    assert cost_of(entry) == (0 if is_refunded == "true" else Decimal("0.04"))
