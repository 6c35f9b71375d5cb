"""Every route of the service."""

from aiohttp import web

from service.api import admin, health, inference, metrics, reports


def add_routes(app: web.Application) -> None:
    """GET routes answer HEAD too."""
    router = app.router
    router.add_get("/health", health.health)
    router.add_get("/health/full", health.FullHealth().answer)
    router.add_get("/metrics", metrics.show)
    # OpenAI's paths and Venice's own, one handler each.
    for prefix in ("/v1", "/api/v1"):
        router.add_post(f"{prefix}/chat/completions", inference.chat_completions)
        router.add_get(f"{prefix}/models", inference.models)
    router.add_post("/v1/quote", inference.quote)
    router.add_get("/v1/usage", reports.own_usage)
    router.add_get("/v1/limits", reports.own_limits)
    organizations = "/admin/v1/organizations"
    router.add_post(organizations, admin.create_organization)
    router.add_get(organizations, admin.list_organizations)
    router.add_get(f"{organizations}/{{id}}", admin.find_organization)
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
