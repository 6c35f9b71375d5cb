"""Every route of the service."""

from typing import Final

from aiohttp import web

from service.api import (
    account,
    admin,
    health,
    inference,
    media,
    messages,
    metrics,
    reports,
    upstream_keys,
)
from service.gateway import DECISIONS, ENDPOINTS, FREE_PATHS, TRANSCRIPTIONS

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


def add_routes(app: web.Application) -> None:
    """GET routes answer HEAD too."""
    router = app.router
    router.add_get("/health", health.health)
    router.add_get("/health/full", health.FullHealth().answer)
    router.add_get("/metrics", metrics.show)
    # OpenAI's paths and Venice's own, one handler each.
    for prefix in ("/v1", "/api/v1"):
        for endpoint in ENDPOINTS:
            handler = inference.paid(endpoint)
            if endpoint is TRANSCRIPTIONS:
                handler = media.transcribe
            router.add_post(prefix + endpoint.path, handler)
        router.add_post(f"{prefix}/images/edits", media.edit)
        router.add_post(f"{prefix}/systemone", inference.paid(DECISIONS))
        for path in FREE_PATHS:
            router.add_post(prefix + path, inference.free(path))
        for path in READ_PATHS:
            router.add_get(prefix + path, inference.free(path))
        router.add_post(f"{prefix}/messages", messages.create)
        router.add_post(f"{prefix}/messages/count_tokens", messages.count_tokens)
        router.add_get(f"{prefix}/models", inference.models)
        router.add_get(f"{prefix}/models/{{model:.+}}", inference.model)
        router.add_get(f"{prefix}/api_keys/rate_limits", account.rate_limits)
        router.add_get(f"{prefix}/billing/balance", account.balance)
    router.add_post("/v1/quote", inference.quote)
    router.add_post("/v1/quote/{path:.+}", inference.quote)
    router.add_get("/v1/usage", reports.own_usage)
    router.add_get("/v1/limits", reports.own_limits)
    organizations = "/admin/v1/organizations"
    router.add_post(organizations, admin.create_organization)
    router.add_get(organizations, admin.list_organizations)
    router.add_get(f"{organizations}/{{id}}", admin.find_organization)
    router.add_patch(f"{organizations}/{{id}}", admin.change_organization)
    router.add_post(f"{organizations}/{{id}}/keys", admin.create_key)
    router.add_get(f"{organizations}/{{id}}/keys", admin.list_keys)
    router.add_patch("/admin/v1/keys/{id}", admin.change_key)
    router.add_delete("/admin/v1/keys/{id}", admin.revoke_key)
    router.add_post(f"{organizations}/{{id}}/limits", admin.create_limit)
    router.add_get(f"{organizations}/{{id}}/limits", admin.list_limits)
    router.add_patch("/admin/v1/limits/{id}", admin.change_limit)
    router.add_delete("/admin/v1/limits/{id}", admin.delete_limit)
    router.add_get(f"{organizations}/{{id}}/ledger", admin.list_ledger)
    router.add_get(f"{organizations}/{{id}}/ledger/export", reports.export)
    router.add_get(f"{organizations}/{{id}}/usage", reports.usage)
    router.add_get(f"{organizations}/{{id}}/audit-events", admin.list_audit_events)
    router.add_post("/admin/v1/ledger/{id}/credit", admin.credit)
    router.add_get("/admin/v1/upstream-keys", upstream_keys.list_keys)
    router.add_post("/admin/v1/upstream-keys", upstream_keys.add_key)
    router.add_delete("/admin/v1/upstream-keys/{id}", upstream_keys.disable_key)
    router.add_post("/admin/v1/upstream-keys/{id}/check", upstream_keys.check_key)
    router.add_get("/admin/v1/models", admin.list_models)
    router.add_put("/admin/v1/models/{alias:.+}", admin.set_alias)
    router.add_delete("/admin/v1/models/{alias:.+}", admin.remove_alias)
    # What Venice may have beside all that.
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        router.add_route(method, "/api/v1/{other:.+}", inference.other)
