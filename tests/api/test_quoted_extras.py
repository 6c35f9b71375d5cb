"""A call's hold covers everything that multiplies or adds to its price."""

from decimal import Decimal

import pytest
from paid_bodies import BODIES, payload
from support import MODEL

pytestmark = pytest.mark.shares_service

CHAT = "/chat/completions"
MILLION = 10**6


async def most_usd(caller, path, body):
    """Return the most that the call can cost, by its quote."""
    http = caller.service.http
    url = f"/v1/quote{path}"
    async with http.post(url, headers=caller.headers, **payload(body)) as response:
        quote = await response.json()
        assert response.status == 200, quote
    return Decimal(quote["max_cost_usd"])


async def output_usd(caller, model=MODEL):
    """Return the price of an output token."""
    async with caller.service.http.get(f"/v1/models/{model}", headers=caller.headers) as response:
        pricing = (await response.json())["model_spec"]["pricing"]
    return Decimal(str(pricing["output"]["usd"])) / MILLION


async def test_each_choice_may_be_as_long(caller):
    """Seven choices of 1,000 tokens are held as 7,000 tokens."""
    body = BODIES[CHAT] | {"max_completion_tokens": 1_000}
    one = await most_usd(caller, CHAT, body)
    seven = await most_usd(caller, CHAT, body | {"n": 7})

    assert seven - one >= 6 * 1_000 * await output_usd(caller)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("max_tokens", "max_completion_tokens"),
        ("max_completion_tokens", "max_tokens"),
        ("max_tokens", "max_output_tokens"),
        ("max_output_tokens", "max_completion_tokens"),
    ],
)
async def test_the_highest_maximum_counts(caller, low, high):
    """The highest of several maxima counts, in whatever order they are."""
    least = 5_000 * await output_usd(caller)
    body = {name: value for name, value in BODIES[CHAT].items() if not name.startswith("max_")}

    assert await most_usd(caller, CHAT, body | {low: 10, high: 5_000}) >= least
    assert await most_usd(caller, CHAT, body | {high: 5_000, low: 10}) >= least


@pytest.mark.parametrize(
    ("path", "members", "usd"),
    [
        (CHAT, {"venice_parameters": {"enable_web_search": "on"}}, "0.01"),
        (CHAT, {"venice_parameters": {"enable_web_search": "auto"}}, "0.01"),
        (CHAT, {"venice_parameters": {"enable_x_search": True}}, "0.01"),
        (CHAT, {"venice_parameters": {"enable_web_scraping": True}}, "0.10"),
        (CHAT, {"model": f"{MODEL}:enable_web_scraping=true"}, "0.10"),
        (
            CHAT,
            {
                "model": f"{MODEL}:enable_web_scraping=true",
                "venice_parameters": {"enable_web_scraping": True},
            },
            "0.20",
        ),
        (
            CHAT,
            {
                "venice_parameters": {
                    "enable_web_search": "on",
                    "enable_x_search": True,
                    "enable_web_scraping": True,
                }
            },
            "0.12",
        ),
        ("/image/generate", {"enhance_prompt": True}, "0.04"),
        ("/image/generate", {"enable_web_search": True}, "0.01"),
        ("/image/generate", {"enhance_prompt": True, "enable_web_search": True}, "0.05"),
        ("/image/edit", {"enhance_prompt": True}, "0.04"),
        ("/image/multi-edit", {"enhance_prompt": True}, "0.04"),
    ],
)
async def test_a_paid_extra_is_in_the_bound(caller, path, members, usd):
    """A paid extra is held with everything that Venice may do for it, such as ten scraped pages."""
    # A character adds no fee, but like a search result it may fill the model's window.
    free = {"venice_parameters": {"character_slug": "x"}} if path == CHAT else {}
    plain = await most_usd(caller, path, BODIES[path] | free)
    dearer = await most_usd(caller, path, BODIES[path] | members)

    assert dearer - plain >= Decimal(usd)


@pytest.mark.parametrize(("path", "members", "times"), [("/image/generate", {"variants": 4}, 4)])
async def test_multiple_outputs_multiply_the_price(caller, path, members, times):
    """The hold is the price of one output times their number."""
    one = await most_usd(caller, path, BODIES[path])

    assert await most_usd(caller, path, BODIES[path] | members) == times * one
