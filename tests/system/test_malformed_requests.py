"""No byte of a malformed request is in a log line, a table, a metric or an error."""

import asyncio
import gzip
import re

import asyncpg
from odd_venice import head, odd_venice, whole
from process import client_of, database_url, started
from support import MODEL, OPERATOR_KEY

from service.database.connections import connect_arguments

PROMPT = "Zq7-words-of-a-prompt-Zq7"
KEY = "Zq7keyofacaller" * 3
HEADER = "Zq7valueofaheader"
MARKER = re.compile(r"Zq7|TWFya2Vy")
"""Strings that are in all requests and in no other text, and one of them in base64."""
CHAT = "/v1/chat/completions"
JSON_HEAD = "Content-Type: application/json\r\n"
VALID = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"{PROMPT}"}}]}}'
FORM_HEAD = "Content-Type: multipart/form-data; boundary=b\r\n"


def post(body, head=JSON_HEAD, path=CHAT, key="{key}", length=None):
    """Return a request of the caller; ``{key}`` is replaced by a valid key."""
    body = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    length = len(body) if length is None else length
    lines = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{head}"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    return lines.encode("latin-1") + body


def chunked(body, head=JSON_HEAD):
    """Return the request with the test's own chunked body."""
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {{key}}\r\n{head}"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    ).encode() + body


def get(path, *lines):
    """Return a request without a body, with these header lines."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


def part(head, content=PROMPT):
    """Return a multipart body of one part."""
    return f"--b\r\n{head}\r\n\r\n{content}\r\n--b--\r\n"


REQUESTS = {
    "no http": PROMPT.encode() + b"\r\n\r\n",
    "no version": f"GET /{PROMPT}\r\n\r\n".encode(),
    "odd version": f"GET / HTTP/{PROMPT}\r\n\r\n".encode(),
    "odd method": f"{PROMPT} / HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "space in the path": f"GET /a {PROMPT} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "unknown path": get(f"/v1/nothing/{PROMPT}"),
    "unknown path with a key": get(f"/v1/{KEY}", f"Authorization: Bearer {KEY}"),
    "wrong method": f"PUT {CHAT}?{PROMPT} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "path that is not UTF-8": b"GET /\xff%ff" + PROMPT.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long path": get(f"/v1/{PROMPT * 4000}"),
    "header without a colon": get("/health", HEADER),
    "header with a space": get("/health", f"X {HEADER}: x"),
    "header with a control character": get("/health", f"X-A: {HEADER}\x01"),
    "folded header": get("/health", "X-A: x", f" {HEADER}"),
    "long header": get("/health", f"X-A: {HEADER * 4000}"),
    "many headers": get("/health", *(f"X-{number}: {HEADER}" for number in range(500))),
    "bare carriage return in a key": get("/v1/models", f"x-api-key: {KEY}\rx"),
    "key with a carriage return": get("/v1/models", f"x-api-key: {KEY}\r"),
    "key in lower case": get("/v1/models", f"authorization: bearer {KEY}"),
    "key with spaces": get("/v1/models", f"Authorization:   Bearer    {KEY}   x"),
    "key that is not ASCII": get("/v1/models", f"Authorization: Bearer \xe9{KEY}"),
    "key without a scheme": get("/v1/models", f"Authorization: {KEY}"),
    "key in another scheme": get("/v1/models", f"Authorization: Basic {KEY}"),
    "key as a request id": get("/v1/models", f"X-Request-ID: {KEY}", f"x-api-key: {KEY}"),
    "key as an operator's": get("/admin/v1/organizations", f"Authorization: Bearer {KEY}"),
    "two lengths": post(VALID, f"Content-Length: {HEADER}\r\n"),
    "odd length": post(VALID, length=HEADER),
    "negative length": post(VALID, length=-1),
    "both framings": post(VALID, JSON_HEAD + "Transfer-Encoding: chunked\r\n"),
    "odd chunk size": chunked(f"{PROMPT}\r\n{VALID}\r\n0\r\n\r\n".encode()),
    "chunk size too small": chunked(f"3\r\n{VALID}\r\n0\r\n\r\n".encode()),
    "chunk extension": chunked(f"{len(VALID):x};{HEADER * 1000}\r\n{VALID}\r\n0\r\n\r\n".encode()),
    "odd trailer": chunked(f"{len(VALID):x}\r\n{VALID}\r\n0\r\n{HEADER}\r\n\r\n".encode()),
    "no json": post(PROMPT),
    "half a json": post(VALID[:-5]),
    "json of another type": post(f'["{PROMPT}"]'),
    "json that is not UTF-8": post(VALID.encode().replace(b"words", b"w\xffrds")),
    "lone surrogate": post(VALID.replace("words", "\\ud83d")),
    "nul": post(VALID.replace("words", "\\u0000")),
    "number for a text": post(VALID.replace('"user"', "7")),
    "text for a number": post(VALID.replace("}]}", f'}}],"max_tokens":"{PROMPT}"}}')),
    "deep json": post("[" * 5000 + f'"{PROMPT}"' + "]" * 5000),
    "odd content type": post(VALID, f"Content-Type: {HEADER}\r\n"),
    "odd encoding": post(VALID, JSON_HEAD + f"Content-Encoding: {HEADER}\r\n"),
    "no gzip": post(VALID, JSON_HEAD + "Content-Encoding: gzip\r\n"),
    "half a gzip": post(gzip.compress(VALID.encode() * 50)[:60], "Content-Encoding: gzip\r\n"),
    "odd tags": post(VALID, JSON_HEAD + f"x-rialto-tags: {HEADER}\r\n"),
    "key as a tag": post(VALID, JSON_HEAD + f"x-rialto-tags: a=rk_{KEY}\r\n"),
    "odd timeout": post(VALID, JSON_HEAD + f"x-stainless-timeout: {HEADER}\r\n"),
    "no boundary": post(part("x"), "Content-Type: multipart/form-data\r\n", "/v1/images/edits"),
    "part without a name": post(part(f"X-A: {HEADER}"), FORM_HEAD, "/v1/images/edits"),
    "part with an odd head": post(part(HEADER), FORM_HEAD, "/v1/audio/transcriptions"),
    "part without an end": post(f"--b\r\nA: {HEADER}", FORM_HEAD, "/v1/audio/transcriptions"),
    "too large": post(PROMPT * 100, length=1 << 40),
    "websocket": get("/v1/realtime", "Upgrade: websocket", f"Sec-WebSocket-Key: {HEADER}"),
    "odd expectation": post(VALID, JSON_HEAD + f"Expect: {HEADER}\r\n"),
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + PROMPT.encode(),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + PROMPT.encode(),
    "messages without a version": post(f'{{"messages":"{PROMPT}"}}', path="/v1/messages"),
    "embeddings of an object": post(f'{{"input":{{"a":"{PROMPT}"}}}}', path="/v1/embeddings"),
    "hang-up within the body": post(VALID, length=len(VALID) + 1000),
}


async def sent(port, request):
    """Send the bytes; return everything that is sent back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(0.5):
            while received := await reader.read(65536):
                answer += received
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer.decode("latin-1")


async def dump(address):
    """Return every row of every table as text."""
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        tables = await connection.fetch(
            "SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')"
        )
        rows = []
        for table in tables:
            found = await connection.fetch(f"SELECT row::text FROM {table['name']} AS row")
            rows += [f"{table['name']}: {row['row']}" for row in found]
        return rows
    finally:
        await connection.close()


async def test_no_byte_of_a_malformed_request_is_kept(tmp_path, database_address, upstream):
    """No byte of a malformed request is in the log at its lowest level, the database, the metrics
    or a response."""
    async with started(
        tmp_path,
        DATABASE_URL=database_url(database_address),
        VENICE_API_KEY="sandbox",
        VENICE_BASE_URL=f"{upstream.url}/api/v1",
        LOG_LEVEL="debug",
    ) as process:
        port = await process.listening()
        async with client_of(process) as service:
            caller = await service.new_caller()
            answers = {}
            for name, request in REQUESTS.items():
                whole = request.replace(b"{key}", caller.key.encode())
                answers[name] = await sent(port, whole)
            headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
            async with service.http.get("/metrics", headers=headers) as response:
                shown = await response.text()
            rows = await dump(database_address)
        process.send()
        assert await process.ended() == 0

    assert len(rows) > 10
    kept = {"metrics": shown, "log": "".join(process.raw), "database": "\n".join(rows)}
    # A request that is valid after all gets a response, and a completion may quote its prompt.
    refusals = {name: text for name, text in answers.items() if " 200 OK" not in text[:20]}
    assert len(refusals) >= 40
    for place, text in {**kept, **refusals}.items():
        found = MARKER.search(text)
        assert found is None, f"{place}: {text[max(0, found.start() - 300) : found.end() + 300]}"
    assert '"level":"error"' not in kept["log"], "a caller must not be able to cause an error"


async def test_venices_error_texts_are_not_kept(tmp_path, database_address, upstream):
    """Venice's text about a failure may quote the request, so log and ledger have only the kind."""
    async with started(
        tmp_path,
        DATABASE_URL=database_url(database_address),
        VENICE_API_KEY="sandbox",
        VENICE_BASE_URL=f"{upstream.url}/api/v1",
        LOG_LEVEL="debug",
    ) as process:
        async with client_of(process) as service:
            caller = await service.new_caller()
            for kind in ("in_band_error", "inference_failed", "detailed", "invalid_key"):
                upstream.faults.push("/chat/completions", kind, times=1, message=PROMPT)
                async with caller.chat(stream=kind == "in_band_error") as response:
                    await response.read()
            rows = await dump(database_address)
        process.send()
        assert await process.ended() == 0

    assert process.lines_with("venice failed within a stream")
    assert process.lines_with("venice refused our key")
    for text in ("".join(process.raw), "\n".join(rows)):
        assert not MARKER.search(text)


async def test_headers_of_refusals_are_not_kept(tmp_path, database_address):
    """Headers of a refusal by Venice or its network may quote the request and are not kept."""
    headers = {"cf_ray": PROMPT, "x_request_id": PROMPT, "Retry_After": PROMPT}
    json_body = b'{"error": "no", "code": "%b"}' % PROMPT.encode()
    statuses = ("400 Bad", "403 No", "429 Slow", "500 Oh")
    answers = [whole(json_body, status, **headers) for status in statuses]
    answers += [
        whole(b"<html>", status, f"text/html; words={PROMPT}", **headers)
        for status in ("401 No", "403 No", "503 Busy", "502 Oh")
    ]
    answers += [whole(b"x", f"400 {PROMPT}", PROMPT, **headers), head("302 No", Location=PROMPT)]
    answers += [whole(b"x", content_type=PROMPT), head(Content_Encoding=PROMPT) + b"x"]
    async with odd_venice() as venice:
        variables = {
            "DATABASE_URL": database_url(database_address),
            "VENICE_API_KEY": "sandbox",
            "VENICE_BASE_URL": f"{venice.url}/api/v1",
            "LOG_LEVEL": "debug",
        }
        async with started(tmp_path, **variables) as process:
            async with client_of(process) as service:
                await process.wait_for_line("catalogue refreshed")
                for answer in answers:
                    # Each request has its own caller, because some of them cause a cooldown for
                    # their caller.
                    caller = await service.new_caller()
                    venice.answer = answer
                    async with caller.chat(model="m") as response:
                        await response.read()
                rows = await dump(database_address)
            process.send()
            assert await process.ended() == 0

    assert process.lines_with("venice refused")
    for text in ("".join(process.raw), "\n".join(rows)):
        found = MARKER.search(text)
        assert found is None, text[max(0, found.start() - 300) : found.end() + 300]
