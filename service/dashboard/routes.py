"""Every route of the dashboard. A page is added here, and its path in ``paths.py``."""

from pathlib import Path
from typing import Final

import aiohttp_jinja2
import jinja2
from aiohttp import web

from service import __version__
from service.api import Routes
from service.api.requests import Request
from service.api.state import SETTINGS
from service.dashboard import assets
from service.dashboard.assets import Assets
from service.dashboard.attempts import SignInAttempts
from service.dashboard.counted import counted_url
from service.dashboard.formats import FILTERS, NEAR_SHARE
from service.dashboard.page import Page, see_other
from service.dashboard.pages import (
    api_reference,
    audit,
    key,
    limit,
    models,
    operations,
    organization,
    organization_keys,
    organization_limits,
    organization_usage,
    organizations,
    overview,
    own,
    own_key,
    own_quote,
    own_request,
    refusals,
    request,
    requests,
    sign_in,
    venice_keys,
)
from service.dashboard.paths import url
from service.dashboard.reference import with_code
from service.dashboard.serving import (
    ADMINISTRATORS,
    EVERYBODY,
    HOLDERS,
    INFERENCE,
    OPERATORS,
    SIGNED_IN,
    Route,
    served,
)
from service.dashboard.sessions import Sessions
from service.dashboard.state import API_ROUTES, ASSETS, ATTEMPTS, REFERENCE, SESSIONS
from service.errors import NotFound

TEMPLATES: Final = Path(__file__).with_name("templates")

NAVIGATION: Final = (
    ("overview", "Overview", ADMINISTRATORS),
    ("own", "Your key", HOLDERS),
    ("requests", "Requests", ADMINISTRATORS),
    ("refusals", "Refusals", ADMINISTRATORS),
    ("organizations", "Organizations", ADMINISTRATORS),
    ("models", "Models", ADMINISTRATORS),
    ("venice_keys", "Venice keys", OPERATORS),
    ("audit", "Audit", ADMINISTRATORS),
    ("operations", "Operations", OPERATORS),
)
"""The pages that every page leads to: name, label, and who sees them."""


async def missing(page: Page) -> web.StreamResponse:
    """There is no such page."""
    if not page.path("other"):
        return page.redirect("overview")
    raise NotFound("There is no such page.")


ROUTES: Final = (
    Route(page="sign_in", handler=sign_in.show, roles=EVERYBODY),
    Route(
        method="POST",
        page="sign_in",
        handler=sign_in.sign_in,
        roles=EVERYBODY,
        shown_by=sign_in.show,
    ),
    Route(method="POST", page="sign_out", handler=sign_in.sign_out, roles=SIGNED_IN),
    Route(page="overview", handler=overview.show, roles=SIGNED_IN),
    Route(page="requests", handler=requests.show, roles=ADMINISTRATORS),
    Route(page="request", handler=request.show, roles=ADMINISTRATORS, section="requests"),
    Route(page="calls", handler=requests.show_calls, roles=ADMINISTRATORS, section="requests"),
    Route(page="refusals", handler=refusals.show, roles=ADMINISTRATORS),
    Route(page="organizations", handler=organizations.show, roles=ADMINISTRATORS),
    Route(
        method="POST",
        page="organizations",
        form="create",
        handler=organizations.create,
        roles=OPERATORS,
        shown_by=organizations.show,
    ),
    *(
        Route(page=page, handler=handler, roles=ADMINISTRATORS, section="organizations")
        for page, handler in (
            ("organization", organization.show),
            ("organization_keys", organization_keys.show),
            ("organization_limits", organization_limits.show),
            ("organization_usage", organization_usage.show),
            ("organization_end_users", organization_usage.show_end_users),
            ("key", key.show),
            ("limit", limit.show),
        )
    ),
    *(
        Route(
            method="POST",
            page=page,
            form=form,
            handler=handler,
            roles=ADMINISTRATORS,
            section="organizations",
            shown_by=shown_by,
        )
        for page, form, handler, shown_by in (
            ("organization_keys", "create", organization_keys.create, organization_keys.show),
            ("organization_limits", "create", organization_limits.create, organization_limits.show),
            ("key", "change", key.change, key.show),
            ("key", "rotate", key.rotate, key.show),
            ("key", "revoke", key.revoke, key.show),
            ("limit", "change", limit.change, limit.show),
            ("limit", "raise", limit.raise_until, limit.show),
            ("limit", "end-raise", limit.end_raise, limit.show),
            ("limit", "delete", limit.delete, limit.show),
        )
    ),
    Route(
        page="organization_settings",
        handler=organization.show_settings,
        roles=OPERATORS,
        section="organizations",
    ),
    *(
        Route(
            method="POST",
            page="organization_settings",
            form=form,
            handler=handler,
            roles=OPERATORS,
            section="organizations",
            shown_by=organization.show_settings,
        )
        for form, handler in (
            ("rename", organization.rename),
            ("suspend", organization.suspend),
            ("resume", organization.resume),
            ("delete", organization.delete),
        )
    ),
    Route(page="operations", handler=operations.show, roles=OPERATORS),
    Route(page="docs", handler=api_reference.show, roles=EVERYBODY),
    Route(page="operation", handler=api_reference.show_operation, roles=EVERYBODY, section="docs"),
    Route(page="models", handler=models.show, roles=ADMINISTRATORS),
    Route(
        method="POST",
        page="models",
        form=models.ALIAS_FORM,
        handler=models.set_alias,
        roles=ADMINISTRATORS,
        shown_by=models.show,
    ),
    Route(
        method="POST",
        page="models",
        form=models.REMOVE_FORM,
        handler=models.remove_alias,
        roles=ADMINISTRATORS,
    ),
    Route(page="venice_keys", handler=venice_keys.show, roles=OPERATORS),
    *(
        Route(
            method="POST",
            page="venice_keys",
            form=form,
            handler=handler,
            roles=OPERATORS,
            shown_by=venice_keys.show,
        )
        for form, handler in venice_keys.FORMS.items()
    ),
    Route(page="audit", handler=audit.show, roles=ADMINISTRATORS),
    Route(page="own", handler=own.show, roles=HOLDERS),
    Route(page="own_calls", handler=own.calls, roles=INFERENCE, section="own"),
    Route(page="own_refusals", handler=own.refusals, roles=INFERENCE, section="own"),
    Route(page="own_request", handler=own_request.show, roles=INFERENCE, section="own"),
    Route(page="own_key", handler=own_key.show, roles=HOLDERS, section="own"),
    Route(
        method="POST",
        page="own_key",
        form="rotate",
        handler=own_key.rotate,
        roles=HOLDERS,
        section="own",
        shown_by=own_key.show,
    ),
    Route(page="own_quote", handler=own_quote.show, roles=INFERENCE, section="own"),
    Route(
        method="POST",
        page="own_quote",
        form="ask",
        handler=own_quote.quote,
        roles=INFERENCE,
        section="own",
        shown_by=own_quote.show,
    ),
    # The last: it is for every path that none of the others has.
    Route(page="missing", handler=missing, roles=SIGNED_IN),
)


def add_routes(app: web.Application, api_routes: Routes) -> None:
    """Add all pages, and what they need, to the application."""
    settings = app[SETTINGS]
    app[SESSIONS] = Sessions(settings.encryption_keys, is_secure=settings.is_production)
    app[ATTEMPTS] = SignInAttempts()
    app[ASSETS] = Assets()
    app[API_ROUTES], app[REFERENCE] = api_routes, []
    environment = aiohttp_jinja2.setup(
        app,
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # The templates of a running service do not change.
        auto_reload=not settings.is_production,
        default_helpers=False,
        filters={**FILTERS, "with_code": with_code},
    )
    environment.globals.update(
        url=url,
        counted_url=counted_url,
        asset=app[ASSETS].url,
        navigation=NAVIGATION,
        version=__version__,
        near_share=NEAR_SHARE,
    )
    # Handlers and templates have the application by the page.
    environment.globals.pop("app", None)
    api_routes.add_page("*", "/", home)
    api_routes.add_page("GET", assets.PATH, app[ASSETS].show)
    for route in ROUTES:
        api_routes.add_page(route.method, route.path, served(route))


async def home(request: Request) -> web.Response:
    """Send browsers to the dashboard. For programs there is nothing at this path."""
    if request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", ""):
        return see_other(url("overview"))
    raise NotFound("There is nothing at this path. GET /openapi.json describes every route.")
