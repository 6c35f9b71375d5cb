"""Following requests, and quoting calls before they are made."""

import json

from command_line import RIALTO, open_terminal, rialto, run
from support import MODEL, set_limit


async def test_requests_are_followed(service, command):
    """requests tail shows each call and refusal once, as the service's log does, with its id."""
    caller = await service.new_caller()
    terminal = await open_terminal(*RIALTO, "requests", "tail", columns=200, **command)
    await terminal.shows("Ctrl-C stops.", timeout_s=60)
    ids = []
    for body, shown in (({}, "200"), ({"model": "nosuch"}, "404 model_not_found")):
        async with caller.chat(**body) as response:
            ids.append(response.headers["x-request-id"])
        await terminal.shows(ids[-1], timeout_s=60)
        assert shown in terminal.raw
    terminal.type("\x03")
    shown = await terminal.ended()

    assert shown.status == 0
    _, *lines = [line for line in shown.lines if line.strip(" ^C")]
    assert [line.split()[-1] for line in lines] == ids
    assert MODEL in lines[0]
    assert f"${(await caller.entries())[0]['cost_usd']}" in lines[0]


async def test_a_call_is_quoted(service, command):
    """quote has the most that a call can cost and whether it would pass, as the API has; nothing
    is held and no entry is written."""
    caller = await service.new_caller()
    await set_limit(caller, unit="usd", period="month", ceiling="0.0001")
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 500,
    }
    async with service.http.post("/v1/quote", json=body, headers=caller.headers) as response:
        expected = await response.json()

    chat = ("--model", MODEL, "--max-tokens", "500", "Hello")
    (quoted,) = await rialto("quote", "--key", "acme", *chat, **command)

    assert quoted["max_cost_usd"] == expected["max_cost_usd"]
    assert (quoted["would_pass"], quoted["refusal"]["code"]) == (False, "limit_exceeded")
    assert await caller.entries() == []
    path = command["directory"] / "body.json"
    path.write_text(json.dumps(body))
    (of_file,) = await rialto("quote", "--key", "acme", "--body", str(path), **command)
    assert of_file["max_cost_usd"] == quoted["max_cost_usd"]
    status, _, err = await run(*RIALTO, "quote", "--key", "acme", **command)
    assert (status, "Give --model" in err) == (2, True)


async def test_a_key_is_changed_and_rotated(service, command):
    """keys update replaces what is stated and keeps the rest; keys rotate gives another secret that
    works beside the old one."""
    caller = await service.new_caller()
    narrow = ("--name", "renamed", "--model", MODEL, "--address", "127.0.0.0/8")
    (changed,) = await rialto("keys", "update", "acme", *narrow, **command)
    assert (changed["name"], changed["models"]) == ("renamed", [MODEL])
    assert changed["ip_allow_list"] == ["127.0.0.0/8"]
    (changed,) = await rialto("keys", "update", "renamed", "--all-models", **command)
    assert (changed["models"], changed["ip_allow_list"]) == (None, ["127.0.0.0/8"])
    status, _, err = await run(*RIALTO, "keys", "update", "renamed", **command)
    assert (status, "at least one option" in err) == (2, True)

    (rotated,) = await rialto("keys", "rotate", "renamed", "--overlap", "1h", **command)
    assert (rotated["id"], rotated["key"] != caller.key) == (caller.key_id, True)
    for key in (caller.key, rotated["key"]):
        async with service.http.get(
            "/v1/models", headers={"Authorization": f"Bearer {key}"}
        ) as response:
            assert response.status == 200
