"""Requests every route with a key of every role and with another organization's ids: nothing is
read or changed, and the status is that of the table."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from paid_bodies import BODIES, payload
from support import MODELS, OPERATOR_KEY, ORGANIZATIONS, set_alias, set_limit

from service.api import DATABASE
from service.dashboard import assets
from service.dashboard.routes import ROUTES

PUBLIC = ["GET /health", "GET /health/full", "GET /openapi.json"]
OPERATORS = [
    "GET /metrics",
    f"POST {ORGANIZATIONS}",
    f"GET {ORGANIZATIONS}",
    f"DELETE {ORGANIZATIONS}/{{id}}",
    "POST /admin/v1/ledger/{id}/credit",
    "GET /admin/v1/upstream-keys",
    "POST /admin/v1/upstream-keys",
    "DELETE /admin/v1/upstream-keys/{id}",
    "POST /admin/v1/upstream-keys/{id}/enable",
    "POST /admin/v1/upstream-keys/{id}/check",
]
ORGANIZATIONS_OWN = [
    f"GET {ORGANIZATIONS}/{{id}}",
    f"PATCH {ORGANIZATIONS}/{{id}}",
    f"POST {ORGANIZATIONS}/{{id}}/keys",
    f"GET {ORGANIZATIONS}/{{id}}/keys",
    f"POST {ORGANIZATIONS}/{{id}}/limits",
    f"GET {ORGANIZATIONS}/{{id}}/limits",
    f"GET {ORGANIZATIONS}/{{id}}/ledger",
    f"GET {ORGANIZATIONS}/{{id}}/ledger/export",
    f"GET {ORGANIZATIONS}/{{id}}/usage",
    f"GET {ORGANIZATIONS}/{{id}}/audit-events",
    "PATCH /admin/v1/keys/{id}",
    "DELETE /admin/v1/keys/{id}",
    "POST /admin/v1/keys/{id}/rotate",
    "PATCH /admin/v1/limits/{id}",
    "DELETE /admin/v1/limits/{id}",
    f"PUT {MODELS}/{{alias}}",
    f"DELETE {MODELS}/{{alias}}",
]
"""Routes that the operator may use for any organization, and an administrator for its own."""
ADMINISTRATORS = [
    f"GET {MODELS}",
    "GET /admin/v1/requests/{request_id}",
    "GET /admin/v1/refusals",
    "GET /admin/v1/ledger",
    "GET /admin/v1/calls",
    "GET /admin/v1/limits",
    "GET /admin/v1/keys",
    "GET /admin/v1/usage",
    "GET /admin/v1/audit-events",
]
"""Routes that show an administrator its own organization without naming it."""
FREE = [
    *(
        f"POST /v1/{family}/{step}"
        for family in ("video", "audio", "audio/voice-changer")
        for step in ("quote", "retrieve", "complete")
    ),
    "GET /v1/models/traits",
    "GET /v1/models/compatibility_mapping",
    "GET /v1/image/styles",
    "GET /v1/characters",
    "GET /v1/characters/{slug}",
    "GET /v1/characters/{slug}/reviews",
    "GET /v1/crypto/rpc/networks",
    "GET /v1/tee/attestation",
    "GET /v1/tee/signature",
    "POST /v1/messages/count_tokens",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/api_keys/rate_limits",
    "GET /v1/billing/balance",
    "GET /v1/usage",
    "GET /v1/limits",
    "GET /v1/refusals",
    "POST /v1/key/rotate",
]
"""Free routes for any key of an organization."""
PAID = [
    *(f"POST /v1{path}" for path in BODIES),
    "POST /v1/quote",
    "POST /v1/quote/{path}",
    *(f"{method} /api/v1/{{other}}" for method in ("GET", "POST", "PUT", "PATCH", "DELETE")),
]
"""Routes for a key of role inference."""
TABLE = {
    route: kind
    for kind, routes in {
        "public": PUBLIC,
        "operator": OPERATORS,
        "organization": ORGANIZATIONS_OWN,
        "administrator": ADMINISTRATORS,
        "free": FREE,
        "paid": PAID,
    }.items()
    for route in routes
}
REFUSED = {
    "nobody": (401, "missing_api_key"),
    "malformed": (401, "malformed_api_key"),
    "unknown": (401, "invalid_api_key"),
    "revoked": (401, "revoked_api_key"),
    "expired": (401, "expired_api_key"),
    "suspended": (403, "organization_inactive"),
}
"""Keys that every route refuses, with the status and code."""


def twin(route):
    """Return the same route under the other of its two prefixes."""
    return route.replace(" /api/v1/", " /v1/") if "{other}" not in route else route


def routes_of(service):
    """Return method and path of each route of the API. Pages have tests of their own."""
    pages = {"* /", f"GET {assets.PATH}", *(f"{page.method} {page.path}" for page in ROUTES)}
    pages = {path.replace(":.*}", "}") for path in pages}
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in service.app.router.routes()
        if route.method != "HEAD"
    }
    return sorted(routes - pages)


def test_every_route_has_its_place(service):
    """A new route must be added to the table."""
    assert {twin(route) for route in routes_of(service)} == set(TABLE)


class Victim:
    """An organization with one of everything, whose ids others use."""

    MARK = "victims-own"

    def __init__(self, service, caller):
        self.service = service
        self.caller = caller

    @classmethod
    async def make(cls, service):
        victim = cls(service, await service.new_caller(cls.MARK))
        caller = victim.caller
        victim.limit = await set_limit(caller, unit="usd", period="month", ceiling="50")
        path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
        _, victim.admin = await service.operate(
            "POST", path, json={"name": cls.MARK, "role": "admin"}
        )
        async with caller.chat(user=cls.MARK) as response:
            assert response.status == 200
        (victim.entry,) = await caller.entries()
        async with service.http.post(
            "/v1/video/queue", json=BODIES["/video/queue"], headers=caller.headers
        ) as response:
            victim.queue_id = (await response.json())["queue_id"]
        await set_alias(service, cls.MARK, ["kimi-k2-6"], caller.organization_id)
        return victim

    @property
    def marks(self):
        """Texts that no other organization may see."""
        caller = self.caller
        ids = (caller.key_id, self.admin["id"], self.limit["id"], self.entry["id"], self.queue_id)
        return (*ids, self.admin["prefix"], caller.organization_id)

    async def state(self):
        """Return all rows that the database has of the organization."""
        database, state = self.service.app[DATABASE], []
        organization_id = UUID(self.caller.organization_id)
        for table, column in (
            ("organizations", "id"),
            ("api_keys", "organization_id"),
            ("limits", "organization_id"),
            ("holds", "organization_id"),
            ("ledger_entries", "organization_id"),
            ("audit_events", "organization_id"),
            ("models", "organization_id"),
        ):
            rows = await database.fetch(
                # The names come from the test's own table.
                f"SELECT to_jsonb(t) - 'last_used_at' AS row FROM public.{table} t"
                f" WHERE {column} = $1 ORDER BY 1",
                organization_id,
            )
            state.append([row["row"] for row in rows])
        rows = await database.fetch("SELECT count(*) FROM public.upstream_keys")
        organizations = await database.fetch("SELECT count(*) FROM public.organizations")
        return [*state, rows[0][0], organizations[0][0]]

    def request(self, route):
        """Return URL and arguments of a request with the victim's ids in path, query and body."""
        method, path = route.split()
        caller = self.caller
        ids = {
            "keys": caller.key_id,
            "limits": self.limit["id"],
            "ledger": self.entry["id"],
            "organizations": caller.organization_id,
            "upstream-keys": str(UUID(int=1)),
        }
        family = path.split("/")[3] if path.startswith("/admin/") else ""
        names = {
            "id": ids.get(family, ""),
            "alias": self.MARK,
            "model": self.MARK,
            "slug": "venice",
            "request_id": self.entry["request_id"],
            "network": "base-mainnet",
            "path": "chat/completions",
            "other": "new/thing",
        }
        url = path.format(**names)
        query = {}
        if family == "models" and method == "DELETE":
            query = {"organization_id": caller.organization_id}
        if path in ("/v1/usage", "/v1/limits", "/v1/refusals"):
            query = {"api_key_id": caller.key_id, "organization_id": caller.organization_id}
        return url, {"params": query, **self.body(method, path)}

    def body(self, method, path):
        if method not in ("POST", "PUT", "PATCH"):
            return {}
        known = path.removeprefix("/api").removeprefix("/v1")
        if known in BODIES:
            return payload(BODIES[known])
        if path.startswith("/v1/quote") or path.endswith("/count_tokens"):
            return {"json": BODIES["/chat/completions"]}
        if path.endswith(("/retrieve", "/complete")):
            model = BODIES["/video/queue"]["model"]
            return {"json": {"model": model, "queue_id": self.queue_id}}
        bodies = {
            f"POST {ORGANIZATIONS}": {"name": "x"},
            f"PATCH {ORGANIZATIONS}/{{id}}": {"settings": {}},
            f"POST {ORGANIZATIONS}/{{id}}/keys": {"name": "x"},
            f"POST {ORGANIZATIONS}/{{id}}/limits": {
                "unit": "usd",
                "period": "day",
                "ceiling": "1",
                "api_key_id": self.caller.key_id,
            },
            "PATCH /admin/v1/keys/{id}": {"models": None},
            "PATCH /admin/v1/limits/{id}": {"ceiling": "60"},
            f"PUT {MODELS}/{{alias}}": {
                "targets": ["llama-3.3-70b"],
                "organization_id": self.caller.organization_id,
            },
            "POST /admin/v1/ledger/{id}/credit": {"usd": "0.000001", "note": "x"},
            "POST /admin/v1/upstream-keys": {"name": "x", "key": "x"},
        }
        return {"json": bodies.get(f"{method} {path}", {})}


async def key_of(service, who):
    """Return the key of the given role, in an organization other than the victim's."""
    if who == "nobody":
        return None
    if who in ("malformed", "unknown"):
        return "sk-x" if who == "malformed" else "rk_" + "x" * 43
    if who == "the operator":
        return OPERATOR_KEY
    other = await service.new_caller("other")
    if who == "inference":
        return other.key
    organization_id = other.organization_id
    new = {"name": who, "role": "admin" if who == "administrator" else "inference"}
    if who == "operator":
        new["role"], organization_id = "operator", str(UUID(int=0))
    _, made = await service.operate("POST", f"{ORGANIZATIONS}/{organization_id}/keys", json=new)
    database = service.app[DATABASE]
    if who == "revoked":
        assert (await service.operate("DELETE", f"/admin/v1/keys/{made['id']}"))[0] == 204
    if who == "expired":
        past = datetime.now(UTC) - timedelta(seconds=1)
        change = "UPDATE public.api_keys SET expires_at = $2 WHERE id = $1"
        await database.fetch(change, UUID(made["id"]), past)
    if who == "suspended":
        change = "UPDATE public.organizations SET status = 'suspended' WHERE id = $1"
        await database.fetch(change, UUID(organization_id))
    return made["key"]


FORBIDDEN = (403, "forbidden")
MAY = {
    "inference": {"free", "paid"},
    "administrator": {"free", "administrator"},
    "operator": {"free", "administrator", "operator", "organization"},
    "the operator": {"administrator", "operator", "organization"},
}
"""The kinds of route that each role may use."""


def expected(who, route):
    """Return status and code of the expected refusal, else None."""
    kind = TABLE[twin(route)]
    if kind == "public":
        return None
    if who in REFUSED:
        return REFUSED[who]
    if who == "the operator" and kind == "free":
        return FORBIDDEN
    if route.endswith(("/retrieve", "/complete")):
        return (404, "not_found")
    if route.endswith("/v1/models/{model}"):
        return (404, "model_not_found")
    return None if kind in MAY[who] else FORBIDDEN


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
@pytest.mark.parametrize("who", [*REFUSED, "inference", "administrator"])
async def test_nothing_of_another_organization(service, upstream, who, header):
    """No key reads or changes anything of another organization at any route, and the statuses are
    those of the table."""
    victim = await Victim.make(service)
    key = await key_of(service, who)
    headers = {}
    if key is not None:
        headers[header] = f"Bearer {key}" if header == "Authorization" else key
    before = await victim.state()
    upstream.calls.clear()

    for route in routes_of(service):
        url, arguments = victim.request(route)
        async with service.http.request(
            route.split()[0], url, headers=headers, **arguments
        ) as response:
            content = (await response.read()).decode(errors="replace")
        refusal = expected(who, route)
        if refusal is None:
            assert response.status not in (401, 403), (route, content)
        else:
            error = json.loads(content)["error"]
            code = error.get("code") or error.get("type")
            if "/messages" not in route:
                assert (response.status, code) == refusal, (route, content)
            assert response.status == refusal[0], (route, content)
        shown = [mark for mark in victim.marks if mark in content and mark not in url]
        assert shown == [], (route, content)

    after = await victim.state()
    assert after == before
    if who in REFUSED:
        lists = {"/models", "/models/traits", "/models/compatibility_mapping"}
        free_checks = {"/api_keys/rate_limits"}
        assert {call.path for call in upstream.calls} <= lists | free_checks


@pytest.mark.parametrize("who", ["operator", "the operator"])
async def test_the_operator(service, who):
    """The operator makes no calls and may use every admin route."""
    headers = {"Authorization": f"Bearer {await key_of(service, who)}"}
    victim = await Victim.make(service)
    # Routes of upstream keys come last, because the victim's call needs a key.
    for route in sorted(routes_of(service), key=lambda route: "upstream-keys" in route):
        if TABLE[twin(route)] == "organization":
            victim = await Victim.make(service)
        url, arguments = victim.request(route)
        async with service.http.request(
            route.split()[0], url, headers=headers, **arguments
        ) as response:
            content = await response.text(errors="replace")
        refusal = expected(who, route)
        if refusal is not None:
            assert response.status == refusal[0], (route, content)
        elif TABLE[twin(route)] in ("free", "paid"):
            assert response.status not in (401, 403), (route, content)
        else:
            assert response.status in (200, 201, 204, 409), (route, content)


IDS_OF_OTHERS = [
    ("POST", "{own}/limits", {"unit": "requests", "period": "day", "ceiling": 1}, 404),
    ("GET", "{own}/usage?api_key_id={key}", None, 200),
    ("GET", "{own}/usage?organization_id={organization}", None, 200),
    ("GET", "{own}/ledger?after={entry}", None, 200),
    ("GET", "{own}/keys?after={key}", None, 200),
    ("GET", "{own}/limits?after={limit}", None, 200),
    ("GET", "{own}/limits?end_user=victims-own", None, 200),
    ("GET", "{own}/ledger/export?organization_id={organization}", None, 200),
    ("GET", f"{MODELS}?organization_id={{organization}}", None, 200),
    ("GET", f"{ORGANIZATIONS}/{{own_id}}%2F..%2F{{organization}}", None, 404),
    ("GET", f"{ORGANIZATIONS}/victims-own", None, 404),
    ("GET", f"{ORGANIZATIONS}/victims-own/ledger", None, 404),
    ("GET", "{own}/ledger?key={key}", None, 403),
    ("GET", "{own}/ledger?key=victims-own", None, 404),
    ("GET", "{own}/ledger?request_id={request}", None, 200),
    ("GET", "/admin/v1/ledger?request_id={request}", None, 200),
    ("GET", "/admin/v1/ledger?organization={organization}", None, 403),
    ("GET", "/admin/v1/ledger?after={entry}", None, 200),
    ("GET", "/admin/v1/calls?organization=victims-own", None, 404),
    ("GET", "/admin/v1/limits?near=0", None, 200),
    ("GET", "/admin/v1/keys?q=victims-own", None, 200),
    ("GET", "/admin/v1/keys?after={key}", None, 200),
    ("GET", "/admin/v1/audit-events?target={key}", None, 200),
    ("GET", "/admin/v1/audit-events?actor={key}", None, 200),
    ("GET", "/admin/v1/audit-events?organization=victims-own", None, 404),
    ("DELETE", "/admin/v1/keys/victims-own", None, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), IDS_OF_OTHERS)
async def test_ids_of_others_in_requests_for_ones_own(service, method, path, body, status):
    """A request for one's own organization with another's ids returns nothing of theirs."""
    victim = await Victim.make(service)
    other = await service.new_caller("other")
    own = f"{ORGANIZATIONS}/{other.organization_id}"
    _, admin = await service.operate("POST", f"{own}/keys", json={"name": "a", "role": "admin"})
    caller = victim.caller
    url = path.format(
        own=own,
        own_id=other.organization_id,
        key=caller.key_id,
        entry=victim.entry["id"],
        limit=victim.limit["id"],
        organization=caller.organization_id,
        request=victim.entry["request_id"],
    )
    arguments = {"json": {**body, "api_key_id": caller.key_id}} if body else {}
    before = await victim.state()
    headers = {"Authorization": f"Bearer {admin['key']}"}
    async with service.http.request(method, url, headers=headers, **arguments) as response:
        content = await response.text()
        assert response.status == status, content
    assert [mark for mark in victim.marks if mark in content and mark not in url] == []
    assert await victim.state() == before
