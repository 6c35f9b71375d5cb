"""Sends odd requests to every operation that /openapi.json describes.

There are four kinds: well-formed requests, requests that the description allows, requests that it
forbids, and inputs that no description covers (broken JSON, NULs, lone surrogates, endless numbers,
endless nesting). The response must never be a 500, and always one that the description has.
"""

import dataclasses
import json
import uuid
from collections import Counter

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from paid_bodies import BODIES
from requests.adapters import HTTPAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks
from support import MODEL, OPERATOR_KEY
from urllib3 import Retry

TIMEOUT_S = 30
MAX_URL_BYTES = 8_000
"""aiohttp rejects a longer request line before any handler of the service runs."""
DUPLICATE_PATHS = r"^/api/v1/(?!\{other\})"
"""Matches routes that repeat another route under a second prefix."""
DESCRIBED = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
VIDEO = {"model": "wan-2.5-preview-text-to-video", "duration": "5s"}
MUSIC = {"model": "elevenlabs-music", "duration_seconds": 10}
LIMIT = {"unit": "requests", "period": "day", "ceiling": 10**9}
GOOD = {
    **{f"POST /v1{path}": body for path, body in BODIES.items()},
    "POST /v1/messages/count_tokens": BODIES["/messages"],
    "POST /v1/video/quote": VIDEO,
    "POST /v1/audio/quote": MUSIC,
    "POST /v1/audio/voice-changer/quote": {"model": "x", "duration_seconds": 10},
    "POST /v1/quote": BODIES["/chat/completions"],
    "POST /v1/quote/{path}": BODIES["/embeddings"],
    "POST /admin/v1/organizations": {"name": "fuzz"},
    "PATCH /admin/v1/organizations/{id}": {
        "settings": {"venice_parameters": {"enable_web_search": "off"}}
    },
    "POST /admin/v1/organizations/{id}/keys": {
        "name": "fuzz",
        "expires_at": "2100-01-01T00:00:00Z",
    },
    "POST /admin/v1/organizations/{id}/limits": LIMIT,
    "PATCH /admin/v1/keys/{id}": {"settings": {"default_max_output_tokens": 10}},
    "PUT /admin/v1/models/{alias}": {"targets": [MODEL]},
    "POST /admin/v1/upstream-keys": {"name": "fuzz", "key": "fuzz"},
    "PATCH /admin/v1/limits/{id}": {"ceiling": 5},
    "POST /admin/v1/ledger/{id}/credit": {"usd": "0.000000001", "note": "fuzz"},
}
"""A valid body for each operation that has one."""
REQUEST_ID = uuid.UUID(int=2).hex
"""Of a call that is in the ledger."""
PATHS = {
    "id": str(uuid.UUID(int=1)),
    "network": "base-mainnet",
    "slug": "simulated-sage",
    "path": "embeddings",
    "other": "x",
    "alias": "fuzz",
    "model": MODEL,
    "request_id": REQUEST_ID,
}
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\u0663",
    "-1",
    "1e400",
    "nan",
    "9" * 5000,
    "9" * 20,
    "a" * 300,
    "2026-13-45",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "a=b",
    "=",
    "..",
    "../..",
    "%00",
    "{id}",
    "null",
    str(uuid.UUID(int=0)),
    uuid.UUID(int=2**128 - 1).hex,
    "\U0001f600",
    "'; DROP TABLE limits; --",
)
DEEP = "\0deep"
ODD_VALUES = (
    *ODD_TEXTS,
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    2**64,
    10**400,
    float("inf"),
    float("nan"),
    1e308,
    -0.0,
    [],
    [None],
    {},
    {"": {}},
    {"\x00": "\x00"},
    DEEP,
)
ODD_BODIES = (
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b"0",
    b'"',
    b'"\\ud800"',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"\x00",
    b'{"a":1,}',
    b"{'a':1}",
    b'{"model":"a","model":2}',
    b'{"name":"\\ud800"}',
    b'{"\\ud800":1}',
    b'{"model":"\xff"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 10_000,
    b"1e999999999",
    b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="\xff"; filename="\x00"\r\n\r\na\r\n--x--\r\n',
    b"--x\r\n\r\n--x--",
    b"--x",
)
ODD_HEADERS = (
    {"Content-Type": "multipart/form-data"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {"Content-Type": 'multipart/form-data; boundary="'},
    {"Content-Type": "multipart/form-data; boundary=" + "x" * 500},
    {"Content-Type": "multipart/form-data; boundary=\xff"},
    {"Content-Type": "text/plain; charset=nonsense"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": ""},
    {"Content-Type": "\xff"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "nonsense"},
    {"x-rialto-tags": "a=b,,"},
    {"x-rialto-tags": "\xe9=\xe9"},
    {"X-Request-ID": "\xff" * 300},
    {"Accept": "\xff"},
    {"If-None-Match": '"'},
    {"If-None-Match": "*"},
    {"Range": "bytes=5-1"},
    {"Expect": "nonsense"},
    {"Authorization": "Bearer \xff"},
    {"Authorization": "Basic"},
    {"x-api-key": "\xff"},
    {"x-venice-tee-client-pub-key": "\xff"},
)


@dataclasses.dataclass
class Report:
    """The requests that were sent and the responses to them."""

    statuses: dict[str, Counter] = dataclasses.field(default_factory=dict)
    """How often each operation returned which status."""
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    """The first problem of each kind, with the response and how to reproduce it."""

    @property
    def calls(self):
        return sum(counts.total() for counts in self.statuses.values())

    @property
    def never_succeeded(self):
        """The operations that never returned a 2xx."""
        return sorted(
            name
            for name, counts in self.statuses.items()
            if not any(200 <= status < 300 for status in counts)
        )


def run(url, caller_key, number, examples, is_wanted=lambda label: True):
    """Test every operation of the service at ``url`` with so many examples of each kind."""
    return _Fuzz(url, caller_key, number, examples).run(is_wanted)


class _Fuzz:
    def __init__(self, url, caller_key, number, examples):
        self.url = url
        self.report = Report()
        self._session = requests.Session()
        self._session.trust_env = False
        # aiohttp closes a connection after a body that it could not decode and that no handler
        # read, so the next request on that connection is retried.
        # next on that connection is sent again.
        again = Retry(total=1, allowed_methods=None, respect_retry_after_header=False)
        self._session.mount(url, HTTPAdapter(max_retries=again))
        self._caller = {"Authorization": f"Bearer {caller_key}"}
        self._operator = {"Authorization": f"Bearer {OPERATOR_KEY}"}
        self._settings = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        self._seed = seed(number)
        self._organization_id = self._made("/admin/v1/organizations", {"name": "fuzz"})
        self._own = f"/admin/v1/organizations/{self._organization_id}"
        # An organization of its own would have no entry that can be credited.
        payer_id = self._made(f"{self._own}/keys", {"name": "payer"}, of="key")
        payer = {"Authorization": f"Bearer {payer_id}", "x-request-id": REQUEST_ID}
        self._session.post(f"{url}/v1/chat/completions", json=GOOD["POST /v1/quote"], headers=payer)

    def run(self, is_wanted):
        document = self._session.get(f"{self.url}/openapi.json", timeout=TIMEOUT_S).json()
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=self.url)
        for found in schema.exclude(path_regex=DUPLICATE_PATHS).get_all_operations():
            operation = found.ok()
            if is_wanted(operation.label):
                self.report.statuses[operation.label] = Counter()
                self._try(operation)
        return self.report

    def _try(self, operation):
        self._send_good(operation)
        for mode in schemathesis.GenerationMode:
            if mode.is_positive or operation.body or operation.query:
                cases = operation.as_strategy(generation_mode=mode)
                self._run_examples(cases, lambda case: self._send(operation, case))
        self._run_examples(_odd(operation), lambda odd: self._send_odd(operation, odd), 4)

    def _run_examples(self, strategy, send, times=1):
        so_many = settings(self._settings, max_examples=self._settings.max_examples * times)
        self._seed(so_many(given(strategy)(send)))()

    def _send(self, operation, case):
        """Send a request that the description allows or forbids; allowed ids are of existing
        objects."""
        is_negative = case.meta.generation.mode.is_negative
        if "id" in (case.path_parameters or {}) and not is_negative:
            case.path_parameters["id"] = self._id_for(operation)
        looked_at = [*DESCRIBED, checks.negative_data_rejection] if is_negative else DESCRIBED
        answer = case.call(
            headers=self._headers(operation), session=self._session, timeout=TIMEOUT_S
        )
        self._check_response(operation, case, answer, looked_at)

    def _send_good(self, operation):
        body = GOOD.get(operation.label)
        is_form = body is not None and any(isinstance(value, bytes) for value in body.values())
        arguments = {"json": body} if body is not None else {}
        if is_form:
            is_file = {name: isinstance(value, bytes) for name, value in body.items()}
            arguments = {
                "files": {name: ("x.bin", body[name]) for name in body if is_file[name]},
                "data": {name: body[name] for name in body if not is_file[name]},
            }
        answer = self._session.request(
            operation.method,
            self.url + self._path(operation, {}),
            headers=self._headers(operation),
            timeout=TIMEOUT_S,
            **arguments,
        )
        self._check_response(operation, operation.Case(path_parameters=PATHS), answer, DESCRIBED)

    def _send_odd(self, operation, odd):
        body, query, path, headers = odd
        content_type = {"Content-Type": "application/json"} if body is not None else {}
        request = requests.Request(
            operation.method,
            self.url + self._path(operation, path),
            params=query,
            data=body,
        ).prepare()
        if len(request.url) > MAX_URL_BYTES:
            return
        request.headers.update({**self._headers(operation), **content_type, **headers})
        try:
            answer = self._session.send(request, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            name = f"{operation.label}: {type(error).__name__}"
            self.report.problems.setdefault(name, f"{request.url!r} {odd!r}"[:2000])
            return
        self._check_response(
            operation,
            operation.Case(path_parameters=PATHS),
            answer,
            DESCRIBED,
            is_odd_path=bool(path),
        )

    def _check_response(self, operation, case, answer, looked_at, *, is_odd_path=False):
        self.report.statuses[operation.label][answer.status_code] += 1
        if is_odd_path and answer.status_code in (404, 405, 417):
            # The odd path may match another route or none; for no route, aiohttp itself may return
            # 417.
            looked_at = []
            if answer.status_code != 417 and set(answer.json()) not in (
                {"error"},
                {"type", "error", "request_id"},
            ):
                self.report.problems.setdefault(operation.label, answer.text[:500])
        if answer.status_code == 500:
            # A 500 is described, but is still a fault.
            looked_at = [not_a_server_error]
        if not looked_at:
            return
        try:
            case.validate_response(answer, checks=looked_at)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                name = f"{operation.label}: {failure.title}"
                self.report.problems.setdefault(name, str(failures)[:3000])

    def _headers(self, operation):
        is_callers = "/v1/" in operation.path and not operation.path.startswith("/admin/")
        return self._caller if is_callers else self._operator

    def _path(self, operation, odd):
        values = dict(PATHS)
        if "{id}" in operation.path and "id" not in odd:
            values["id"] = self._id_for(operation)
        return operation.path.format(**{**values, **odd})

    def _id_for(self, operation):
        """Return the id of an existing object that may be deleted."""
        _, _, _, kind, *_ = operation.path.split("/")
        if kind == "organizations":
            if operation.method.upper() == "DELETE":
                return self._made("/admin/v1/organizations", {"name": "spare"})
            return self._organization_id
        if kind == "ledger":
            entries = self._session.get(
                f"{self.url}{self._own}/ledger", headers=self._operator, timeout=TIMEOUT_S
            ).json()["entries"]
            return next(entry["id"] for entry in entries if entry["kind"] == "call")
        if kind == "upstream-keys":
            # Each name can be taken only once.
            spare = {"name": f"spare {uuid.uuid4()}", "key": "spare"}
            return self._made("/admin/v1/upstream-keys", spare)
        return self._made(f"{self._own}/{kind}", {"keys": {"name": "spare"}, "limits": LIMIT}[kind])

    def _made(self, path, body, of="id"):
        answer = self._session.post(
            self.url + path, json=body, headers=self._operator, timeout=TIMEOUT_S
        )
        assert answer.status_code == 201, answer.text
        return answer.json()[of]


def _odd(operation):
    """Generate body, query, path and headers of which at least one is odd."""
    good = GOOD.get(operation.label)
    texts = st.sampled_from(ODD_TEXTS)
    bodies = st.none()
    if operation.body:
        bodies = st.sampled_from(ODD_BODIES) | _odd_members(good)
    names = [parameter.name for parameter in operation.query]
    queries = st.dictionaries(st.sampled_from([*names, "x"]), texts.map(_quotable), max_size=2)
    places = [parameter.name for parameter in operation.path_parameters]
    paths = st.just({})
    if places:
        odd = texts.filter(bool).map(lambda text: requests.utils.quote(_quotable(text), safe=""))
        paths |= st.fixed_dictionaries(dict.fromkeys(places, odd))
    headers = st.just({}) | st.sampled_from(ODD_HEADERS).map(
        lambda header: {name: value.encode("latin-1") for name, value in header.items()}
    )
    return st.tuples(bodies, queries, paths, headers)


def _odd_members(good):
    """Generate a valid body in which one or two members, at any depth, are replaced or added."""
    flat = {name: value for name, value in (good or {}).items() if not isinstance(value, bytes)}
    places = [(name,) for name in [*flat, "x", "user", "settings", "id", "stream", "tools"]]
    for name, value in flat.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            places += [(name, key) for key in inner]
    changes = st.lists(
        st.tuples(st.sampled_from(places), st.sampled_from(ODD_VALUES)), min_size=1, max_size=2
    )
    return changes.map(lambda chosen: _changed(flat, chosen))


def _changed(body, changes):
    body = json.loads(json.dumps(body))
    for (name, *rest), value in changes:
        inner = body.get(name)
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if rest and isinstance(inner, dict):
            inner[rest[0]] = value
        else:
            body[name] = value
    deep = "[" * 5000 + "]" * 5000
    return json.dumps(body).replace(json.dumps(DEEP), deep).encode()


def _quotable(text):
    """Encode text as UTF-8, including lone surrogates, which no decoder accepts."""
    return text.encode("utf-8", "surrogatepass")
