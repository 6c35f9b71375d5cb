"""Bodies that Venice could read differently from the service."""

import json

import pytest
from paid_bodies import BODIES, payload
from support import MODEL

ALLOWED, OTHER = "nvidia/parakeet-tdt-0.6b-v3", MODEL
TYPE = "multipart/form-data; boundary=b"

pytestmark = pytest.mark.shares_service


@pytest.fixture
async def caller(service):
    """A caller whose key may use one speech-to-text model."""
    return await service.new_caller(models=[ALLOWED])


def part(head, value):
    """Return a part of a form with boundary b."""
    return f"--b\r\n{head}\r\n\r\n{value}\r\n".encode()


def named(name, more=""):
    """Return the Content-Disposition header with this name."""
    return f'Content-Disposition: form-data; name="{name}"{more}'


FILE = part(named("file", '; filename="a.wav"'), "x" * 1000)
END = b"--b--\r\n"
FIELD = part(named("model"), OTHER)
HIDDEN = FIELD.replace(b"--b", b"--aaa") + FILE.replace(b"--b", b"--aaa") + b"--aaa--\r\n"
TRICKS = {
    "another parameter before the boundary": (
        f"{TYPE[:19]}; xboundary=aaa; boundary=b",
        HIDDEN.replace(OTHER.encode(), ALLOWED.encode()) + FIELD + FILE + END,
    ),
    "two boundaries": (f"{TYPE}; boundary=aaa", HIDDEN + FIELD + FILE + END),
    "another header with a name": (
        TYPE,
        part(f'X-A: a; name="foo"\r\n{named("model")}', OTHER) + FILE + END,
    ),
    "another header with a filename": (
        TYPE,
        part(f"X-A: a; filename=foo\r\n{named('model')}", OTHER) + FILE + END,
    ),
    "two dispositions": (
        TYPE,
        part(f"{named('foo')}\r\n{named('model')}", OTHER) + FILE + END,
    ),
    "a boundary that goes on": (
        TYPE,
        part(named("foo"), "x\r\n--bc") + FIELD.replace(b"--b\r", b"--bc\r") + FILE + END,
    ),
    "a boundary after a line feed alone": (
        TYPE,
        part(named("foo"), "x\n" + FIELD.decode().rstrip()) + FILE + END,
    ),
    "a quote that is escaped": (
        TYPE,
        part('Content-Disposition: form-data; filename="x\\"; name="model"; y="', OTHER)
        + FILE
        + END,
    ),
    "letters that are escaped": (TYPE, part(named("%6Dodel"), OTHER) + FILE + END),
    "a name in another charset": (
        TYPE,
        part("Content-Disposition: form-data; name=\"x\"; name*=utf-8''model", OTHER) + FILE + END,
    ),
    "a file for a text": (TYPE, part(named("model", '; filename="x"'), OTHER) + FILE + END),
    "a text in base64": (
        TYPE,
        part(f"{named('model')}\r\nContent-Transfer-Encoding: base64", ALLOWED) + FILE + END,
    ),
}


async def refused(service, caller, path, content_type, content):
    """Post the body; return the status and the field in the error."""
    headers = {**caller.headers, "Content-Type": content_type}
    async with service.http.post(f"/v1{path}", data=content, headers=headers) as response:
        answer = await response.json()
        return response.status, answer["error"]["param"]


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_form_hides_a_model(service, upstream, caller, trick):
    """No trick in a form hides a model from the key's list."""
    status, _ = await refused(service, caller, "/audio/transcriptions", *TRICKS[trick])

    assert status in (400, 403)
    assert not upstream.calls.to("/audio/transcriptions")


async def test_a_plain_form_passes(service, caller):
    """A well-formed form passes with an allowed model, and is refused with another one."""
    headers = {**caller.headers, "Content-Type": TYPE}
    statuses = {}
    for model in (ALLOWED, OTHER):
        content = part(named("model"), model) + FILE + END
        async with service.http.post(
            "/v1/audio/transcriptions", data=content, headers=headers
        ) as response:
            statuses[model] = response.status

    assert statuses == {ALLOWED: 200, OTHER: 403}


READ_AS_JSON = {
    "/image/edit": {"prompt": "a&modelId=other&x=", "image": "http://x/y.png"},
    "/image/multi-edit": {"prompt": "x", "images": ["http://x/y.png"]},
    "/image/upscale": {"image": "iVBORw0KGgo=", "scale": 2},
    "/augment/search": {"query": "x"},
    "/augment/scrape": {"url": "https://example.com"},
    "/video/retrieve": {"model": "x", "queue_id": "x"},
    "/audio/voice-changer/complete": {"model": "x", "queue_id": "x"},
}
"""JSON bodies of paths whose content type is sent to Venice."""


@pytest.mark.parametrize("path", READ_AS_JSON)
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "application/jsonx", "json"]
)
async def test_json_under_another_content_type_is_refused(service, upstream, path, content_type):
    """A JSON body with another content type is refused, because Venice could read something else in
    it, such as another model."""
    caller = await service.new_caller()
    content = json.dumps(READ_AS_JSON[path]).encode()

    assert await refused(service, caller, path, content_type, content) == (400, "Content-Type")
    assert not upstream.calls.to(path)


@pytest.mark.parametrize("path", READ_AS_JSON)
@pytest.mark.parametrize(
    "content_type",
    [None, "application/json; charset=utf-7", "Application/JSON", "application/vnd.x.v1+json"],
)
async def test_venice_gets_a_json_content_type(service, upstream, path, content_type):
    """Venice gets a JSON content type, whatever the caller's header is: nothing in it changes how
    the bytes are read."""
    caller = await service.new_caller()
    stated = {"Content-Type": content_type} if content_type else {}
    body = READ_AS_JSON[path]
    if "queue_id" in body:
        queue = path.rpartition("/")[0] + "/queue"
        async with service.http.post(
            f"/v1{queue}", headers=caller.headers, **payload(BODIES[queue])
        ) as response:
            body = body | {"queue_id": (await response.json())["queue_id"]}
    async with service.http.post(
        f"/v1{path}",
        data=json.dumps(body).encode(),
        headers={**caller.headers, **stated},
        skip_auto_headers=["Content-Type"],
    ):
        pass

    (call,) = upstream.calls.to(path)
    assert call.headers["Content-Type"] == "application/json"
