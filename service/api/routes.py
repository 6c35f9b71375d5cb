"""Every route of the service, and what it takes and gives."""

from typing import Any, Final

from aiohttp import web

from service import catalog, ledger
from service.accounts import ApiKey, KeyChange, NewKey, Organization, Rotation
from service.anthropic import CountRequest, MessagesRequest
from service.api import (
    account,
    admin,
    audit_events,
    health,
    inference,
    lists,
    lookups,
    media,
    messages,
    metrics,
    reports,
    upstream_keys,
)
from service.api.description import (
    JSON,
    NO_BODY,
    UPSTREAM_ERRORS,
    Routes,
    RouteSpec,
    administrator,
    caller,
    operator,
    public,
)
from service.api.description import messages as anthropic
from service.api.operations import add_operation
from service.api.queries import PageQuery
from service.derived import RefusalPage
from service.errors import ClientError, Conflict, Forbidden, LimitExceeded, NotFound, RateLimited
from service.gateway import CHAT, DECISIONS, ENDPOINTS, FREE_PATHS, TRANSCRIPTIONS, Endpoint
from service.reports.entries import EntryPage
from service.reports.events import EventPage
from service.reports.story import Story

READ_PATHS: Final = (
    "/models/traits",
    "/models/compatibility_mapping",
    "/image/styles",
    "/characters",
    "/characters/{slug}",
    "/characters/{slug}/reviews",
    "/crypto/rpc/networks",
    "/tee/attestation",
    "/tee/signature",
)
"""What can be read at Venice for nothing."""
ANYTHING: Final = ("*/*",)
"""An answer of Venice as it came."""
PAID_ERRORS: Final = (*UPSTREAM_ERRORS, LimitExceeded, RateLimited)
"""The errors of a paid call."""


def add_routes(app: web.Application) -> Routes:
    """Add the routes of the API, and return them. GET routes answer HEAD too."""
    routes = Routes(app)
    checks = health.HealthChecks()
    routes.add("GET /health", checks.brief, public(gives=health.Health, also=(503,)))
    full = public(gives=health.WholeHealth, also=(503,))
    routes.add("GET /health/full", checks.full, full)
    add_operation(routes, "GET /metrics", metrics.show, operator(gives=("text/plain",)))
    document = public(gives=(JSON,), also=(304,))
    routes.add("GET /openapi.json", routes.describe, document)
    # OpenAI's paths and Venice's own, one handler each.
    for prefix in ("/v1", "/api/v1"):
        _add_inference(routes, prefix)
    _add_own(routes)
    _add_organizations(routes, "/admin/v1/organizations")
    _add_keys_and_limits(routes)
    _add_lookups(routes)
    _add_lists(routes)
    _add_models_and_upstream_keys(routes)
    # What Venice may have beside all that.
    prefix = "/api/v1"
    known_paths = {
        resource.canonical.removeprefix(prefix)
        for resource in app.router.resources()
        if resource.canonical.startswith(prefix)
    }
    other = inference.OtherPaths(known_paths)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        takes = Any if method in ("POST", "PUT", "PATCH") else None
        spec = caller(takes=takes, gives=ANYTHING, refuses=(*PAID_ERRORS, ClientError))
        routes.add(f"{method} {prefix}/{{other:.+}}", other.call, spec)
    return routes


def _add_inference(routes: Routes, prefix: str) -> None:
    for endpoint in ENDPOINTS:
        handler = media.transcribe if endpoint is TRANSCRIPTIONS else inference.paid(endpoint)
        routes.add(f"POST {prefix}{endpoint.path}", handler, _paid(endpoint))
    edit = caller(takes=Any, takes_json=False, files=("image",), gives=(JSON,), refuses=PAID_ERRORS)
    routes.add(f"POST {prefix}/images/edits", media.edit, edit)
    routes.add(f"POST {prefix}/systemone", inference.paid(DECISIONS), _paid(DECISIONS))
    for path in FREE_PATHS:
        files = ("audio",) if "voice-changer" in path else ()
        asked = caller(takes=Any, files=files, gives=ANYTHING, refuses=UPSTREAM_ERRORS)
        routes.add(f"POST {prefix}{path}", inference.free(path), asked)
    for path in READ_PATHS:
        read = caller(gives=ANYTHING, refuses=(*UPSTREAM_ERRORS, ClientError))
        routes.add(f"GET {prefix}{path}", inference.free(path), read)
    kinds = (JSON, "text/event-stream")
    message = anthropic(takes=MessagesRequest, gives=kinds, refuses=PAID_ERRORS)
    routes.add(f"POST {prefix}/messages", messages.create, message)
    count = anthropic(takes=CountRequest, gives=messages.TokenCount)
    routes.add(f"POST {prefix}/messages/count_tokens", messages.count_tokens, count)
    models = caller(query=inference.ModelsQuery, gives=(JSON,), refuses=UPSTREAM_ERRORS)
    routes.add(f"GET {prefix}/models", inference.models, models)
    model = caller(gives=(JSON,), refuses=(NotFound, Forbidden))
    routes.add(f"GET {prefix}/models/{{model:.+}}", inference.model, model)
    rates = caller(gives=account.RateLimits)
    routes.add(f"GET {prefix}/api_keys/rate_limits", account.rate_limits, rates)
    balance = caller(gives=account.Balance)
    routes.add(f"GET {prefix}/billing/balance", account.balance, balance)


def _paid(endpoint: Endpoint[Any]) -> RouteSpec:
    return caller(
        takes=endpoint.request_type,
        takes_json=endpoint.takes_json,
        files=endpoint.file_names,
        gives=endpoint.answer_types,
        refuses=PAID_ERRORS,
    )


def _add_own(routes: Routes) -> None:
    quote = caller(takes=CHAT.request_type, gives=inference.QuoteAnswer, refuses=UPSTREAM_ERRORS)
    routes.add("POST /v1/quote", inference.quote, quote)
    quote = caller(takes=Any, gives=inference.QuoteAnswer, refuses=UPSTREAM_ERRORS)
    routes.add("POST /v1/quote/{path:.+}", inference.quote, quote)
    usage = caller(query=reports.OwnUsageQuery, gives=reports.Usage)
    routes.add("GET /v1/usage", reports.own_usage, usage)
    rotated = caller(takes=Rotation, gives=account.OwnKey, refuses=(Conflict,))
    routes.add("POST /v1/key/rotate", account.rotate_key, rotated)
    limits = caller(query=reports.OwnLimitsQuery, gives=reports.OwnLimits)
    routes.add("GET /v1/limits", reports.own_limits, limits)
    refusals = caller(query=lookups.OwnRefusalsQuery, gives=RefusalPage)
    routes.add("GET /v1/refusals", lookups.own_refusals, refusals)


def _add_organizations(routes: Routes, path: str) -> None:
    made = operator(takes=admin.NewOrganization, gives=Organization, status=201)
    add_operation(routes, f"POST {path}", admin.create_organization, made)
    listed = operator(query=PageQuery, gives=admin.Organizations)
    add_operation(routes, f"GET {path}", admin.list_organizations, listed)
    path += "/{id}"
    add_operation(routes, f"GET {path}", admin.find_organization, administrator(gives=Organization))
    changed = administrator(takes=admin.OrganizationChange, gives=Organization, refuses=(Conflict,))
    add_operation(routes, f"PATCH {path}", admin.change_organization, changed)
    gone = operator(gives=NO_BODY, status=204, refuses=(Conflict,))
    add_operation(routes, f"DELETE {path}", admin.delete_organization, gone)
    key = administrator(takes=NewKey, gives=admin.MadeKey, status=201, refuses=(Conflict,))
    add_operation(routes, f"POST {path}/keys", admin.create_key, key)
    keys = administrator(query=PageQuery, gives=admin.Keys)
    add_operation(routes, f"GET {path}/keys", admin.list_keys, keys)
    limit = administrator(
        takes=ledger.NewLimit, gives=ledger.Limit, status=201, refuses=(Conflict,)
    )
    add_operation(routes, f"POST {path}/limits", admin.create_limit, limit)
    limits = administrator(query=admin.LimitsQuery, gives=admin.Limits)
    add_operation(routes, f"GET {path}/limits", admin.list_limits, limits)
    entries = administrator(query=lists.SearchQuery, gives=EntryPage)
    add_operation(routes, f"GET {path}/ledger", lists.list_ledger, entries)
    exported = administrator(query=reports.ExportQuery, gives=tuple(ledger.CONTENT_TYPES.values()))
    add_operation(routes, f"GET {path}/ledger/export", reports.export, exported)
    usage = administrator(query=reports.UsageQuery, gives=reports.Usage)
    add_operation(routes, f"GET {path}/usage", reports.usage, usage)
    all_usage = administrator(query=reports.AllUsageQuery, gives=reports.Usage, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/usage", reports.all_usage, all_usage)
    events = administrator(query=admin.EventsQuery, gives=admin.Events)
    add_operation(routes, f"GET {path}/audit-events", admin.list_audit_events, events)


def _add_keys_and_limits(routes: Routes) -> None:
    key, limit = "/admin/v1/keys/{id}", "/admin/v1/limits/{id}"
    changed_key = administrator(takes=KeyChange, gives=ApiKey, refuses=(Conflict,))
    add_operation(routes, f"PATCH {key}", admin.change_key, changed_key)
    rotated = administrator(takes=Rotation, gives=admin.MadeKey, refuses=(Conflict,))
    add_operation(routes, f"POST {key}/rotate", admin.rotate_key, rotated)
    add_operation(
        routes, f"DELETE {key}", admin.revoke_key, administrator(gives=NO_BODY, status=204)
    )
    changed_limit = administrator(takes=ledger.LimitChange, gives=ledger.Limit, refuses=(Conflict,))
    add_operation(routes, f"PATCH {limit}", admin.change_limit, changed_limit)
    gone = administrator(gives=NO_BODY, status=204, refuses=(Conflict,))
    add_operation(routes, f"DELETE {limit}", admin.delete_limit, gone)
    entry, refuses = ledger.LedgerEntry, (Conflict,)
    credit = operator(takes=ledger.NewCredit, gives=entry, status=201, refuses=refuses)
    add_operation(routes, "POST /admin/v1/ledger/{id}/credit", admin.credit, credit)


def _add_lookups(routes: Routes) -> None:
    found = administrator(gives=Story)
    add_operation(routes, "GET /admin/v1/requests/{request_id}", lookups.find_request, found)
    listed = administrator(query=lookups.RefusalsQuery, gives=RefusalPage, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/refusals", lookups.refusals, listed)


def _add_lists(routes: Routes) -> None:
    found = administrator(query=lists.LedgerQuery, gives=EntryPage, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/ledger", lists.search_ledger, found)
    calls = administrator(query=lists.CallsQuery, gives=lists.Calls, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/calls", lists.list_calls, calls)
    near = administrator(query=lists.NearQuery, gives=lists.Standings, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/limits", lists.list_near_limits, near)
    keys = administrator(query=lists.KeysQuery, gives=lists.FoundKeys, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/keys", lists.search_keys, keys)
    events = administrator(query=audit_events.EventsQuery, gives=EventPage, refuses=(NotFound,))
    add_operation(routes, "GET /admin/v1/audit-events", audit_events.search, events)


def _add_models_and_upstream_keys(routes: Routes) -> None:
    listed = administrator(query=admin.ModelsQuery, gives=admin.Names)
    add_operation(routes, "GET /admin/v1/models", admin.list_models, listed)
    alias = "/admin/v1/models/{alias:.+}"
    made = administrator(takes=catalog.NewAlias, gives=catalog.ListedName, refuses=(Conflict,))
    add_operation(routes, f"PUT {alias}", admin.set_alias, made)
    gone = administrator(query=admin.AliasQuery, gives=NO_BODY, status=204)
    add_operation(routes, f"DELETE {alias}", admin.remove_alias, gone)
    keys = "/admin/v1/upstream-keys"
    add_operation(
        routes, f"GET {keys}", upstream_keys.list_keys, operator(gives=upstream_keys.Keys)
    )
    new, shown = upstream_keys.NewUpstreamKey, upstream_keys.ShownKey
    added = operator(takes=new, gives=shown, status=201, refuses=(Conflict,))
    add_operation(routes, f"POST {keys}", upstream_keys.add_key, added)
    disabled = operator(gives=NO_BODY, status=204)
    add_operation(routes, f"DELETE {keys}/{{id}}", upstream_keys.disable_key, disabled)
    enabled = operator(gives=shown)
    add_operation(routes, f"POST {keys}/{{id}}/enable", upstream_keys.enable_key, enabled)
    checked = operator(gives=upstream_keys.CheckedKey, refuses=(Conflict,))
    add_operation(routes, f"POST {keys}/{{id}}/check", upstream_keys.check_key, checked)
