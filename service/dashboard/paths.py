"""The paths of all pages, by name. Handlers and templates link to a page by its name only."""

import re
from typing import Any, Final
from urllib.parse import quote, urlencode

PATHS: Final = {
    "overview": "/dashboard",
    "sign_in": "/dashboard/sign-in",
    "sign_out": "/dashboard/sign-out",
    "operations": "/dashboard/operations",
    "requests": "/dashboard/requests",
    "request": "/dashboard/requests/{request_id}",
    "calls": "/dashboard/calls",
    "refusals": "/dashboard/refusals",
    "organizations": "/dashboard/organizations",
    "organization": "/dashboard/organizations/{id}",
    "organization_keys": "/dashboard/organizations/{id}/keys",
    "organization_limits": "/dashboard/organizations/{id}/limits",
    "organization_usage": "/dashboard/organizations/{id}/usage",
    "organization_end_users": "/dashboard/organizations/{id}/end-users",
    "organization_settings": "/dashboard/organizations/{id}/settings",
    "key": "/dashboard/keys/{id}",
    "limit": "/dashboard/limits/{id}",
    "models": "/dashboard/models",
    "venice_keys": "/dashboard/venice-keys",
    "audit": "/dashboard/audit",
    "own": "/dashboard/own",
    "own_calls": "/dashboard/own/calls",
    "own_refusals": "/dashboard/own/refusals",
    "own_request": "/dashboard/own/requests/{request_id}",
    "own_quote": "/dashboard/own/quote",
    "own_key": "/dashboard/own/key",
    "docs": "/docs",
    "operation": "/docs/{operation}",
    "missing": "/dashboard/{other:.*}",
}
"""A form has a path of its own, below that of the page that shows it.

Links to ``requests`` filter it by ``request_id``, ``organization``, ``key``, ``model``,
``outcome``, ``endpoint``, ``end_user`` (``digest:<hex>``), ``tag``, ``cost_over``, ``kind``,
``from`` and ``to``; links to ``refusals`` by ``organization``, ``key``, ``code``, ``status``,
``model``, ``from`` and ``to``.
"""
_NAME: Final = re.compile(r"{(\w+)}")


def url(name: str, **values: Any) -> str:
    """The URL of a page. ``values`` fill the names in its path, and the others become its query;
    those that are None or empty are left out. A trailing underscore is dropped from a name, so that
    ``from_`` can be written.

    :raises KeyError: when there is no page of this name, or a name of its path has no value.
    """
    path = PATHS[name]
    stated = {key.removesuffix("_"): value for key, value in values.items()}
    filled = _NAME.sub(lambda match: quote(str(stated.pop(match[1])), safe=""), path)
    query = urlencode([(key, value) for key, value in stated.items() if value not in (None, "")])
    return f"{filled}?{query}" if query else filled
