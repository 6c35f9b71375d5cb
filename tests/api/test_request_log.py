"""The log line of a request states who made it and what became of it."""

import io
import json

import pytest
from paid_bodies import BODIES, payload
from structlog.testing import capture_logs
from support import MODEL, OPERATOR_KEY, configured_logs, set_limit

OTHER_PATH = "/api/v1/new/thing"
"""A path that the operator of the tests has opened."""
CALL_FIELDS = {
    *("key_prefix", "organization_id", "model", "outcome"),
    *("input_tokens", "output_tokens", "cost_usd"),
}


def request_line(lines):
    """Return the last line of a request of a caller."""
    return [line for line in lines if line["event"] == "request"][-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_line_of_a_call(caller, stream):
    """It has the key's prefix, the organization, and the model, tokens, cost and outcome of the
    ledger entry."""
    with capture_logs() as lines:
        async with caller.chat(stream=stream) as response:
            await response.read()
            assert response.status == 200
    entry = await caller.only_entry()

    line = request_line(lines)
    assert line.keys() >= CALL_FIELDS
    assert (line["key_prefix"], line["organization_id"]) == (
        caller.key[:10],
        caller.organization_id,
    )
    assert (line["model"], line["outcome"], line["status"]) == (MODEL, "ok", 200)
    assert line["input_tokens"] == entry["input_tokens"]
    assert line["output_tokens"] == entry["output_tokens"]
    assert line["cost_usd"] == entry["cost_usd"]
    assert "code" not in line


@pytest.mark.parametrize("path", [*BODIES, OTHER_PATH])
async def test_the_line_of_each_kind_of_call(service, caller, path):
    """Whatever the endpoint, the line of a call has what its ledger entry has."""
    url = f"/v1{path}".format(network="base-mainnet") if path in BODIES else path
    arguments = payload(BODIES.get(path, {}))
    with capture_logs() as lines:
        async with service.http.post(url, headers=caller.headers, **arguments) as response:
            await response.read()
    entry = await caller.only_entry()

    line = request_line(lines)
    assert line.keys() >= {"key_prefix", "organization_id", "model", "outcome"}
    assert (line["model"], line["outcome"]) == (entry["model"], entry["outcome"])
    assert line.get("cost_usd") == entry["cost_usd"]


async def test_the_line_of_a_failed_call(caller, upstream):
    """It has the error's code and the outcome."""
    upstream.faults.push("/chat/completions", "inference_failed", times=1)
    with capture_logs() as lines:
        async with caller.chat() as response:
            await response.read()

    line = request_line(lines)
    assert (line["code"], line["outcome"]) == ("upstream_error", "upstream_error")
    assert line["model"] == MODEL


async def test_the_line_of_a_refusal(caller):
    """It has the code, the key and the model, and neither tokens nor a cost."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.0000001")
    with capture_logs() as lines:
        async with caller.chat() as response:
            assert response.status == 402

    line = request_line(lines)
    assert (line["code"], line["model"]) == ("limit_exceeded", MODEL)
    assert line["key_prefix"] == caller.key[:10]
    assert not {"cost_usd", "input_tokens"} & line.keys()


async def test_the_line_of_a_request_without_a_key(service):
    """It has the code, and nobody's name."""
    with capture_logs() as lines:
        async with service.http.get("/v1/models") as response:
            assert response.status == 401

    line = request_line(lines)
    assert line["code"] == "missing_api_key"
    assert not {"key_prefix", "organization_id", "model"} & line.keys()


async def test_the_line_of_the_operator(service):
    """The operator's key has no prefix to show."""
    with capture_logs() as lines:
        await service.operate("GET", "/admin/v1/organizations")

    line = request_line(lines)
    assert "key_prefix" not in line
    assert OPERATOR_KEY not in str(line)


@pytest.mark.parametrize("form", ["json", "console"])
async def test_the_prefix_is_shown_and_the_key_is_not(caller, form):
    """Both formats of the log have the visible prefix as it is; a whole key would be redacted."""
    stream = io.StringIO()
    with configured_logs("info", form, stream):
        async with caller.chat() as response:
            await response.read()
        from service.telemetry import logs  # noqa: PLC0415 - after it is configured

        logs.flush(2)
    lines = [line for line in stream.getvalue().splitlines() if "/v1/chat/completions" in line]

    assert caller.key[:10] in lines[-1]
    assert caller.key[:14] not in stream.getvalue()
    assert "[redacted]" not in lines[-1]
    if form == "json":
        fields = json.loads(lines[-1])
        assert fields.keys() >= CALL_FIELDS
        assert fields["outcome"] == "ok"
