"""What an administrator may let a key do, whichever way the key is made or changed: no more than
its own key may. Also that a key's endpoints are routes."""

import difflib

from aiohttp import web
from msgspec import UNSET

from service import accounts
from service.accounts import ApiKey, Caller, KeyChange, NewKey
from service.api.auth import must_grant_own, must_not_outlive, must_restrict_as_own
from service.errors import ClientError, Forbidden


def must_be_makeable(app: web.Application, caller: Caller, new: NewKey) -> None:
    """The rules for a key that the caller makes.

    :raises ClientError: when an endpoint is no route, or an entry of a list breaks its rule.
    :raises Forbidden: when the key could do more than the caller's own.
    """
    if new.role == "operator" and caller.role != "operator":
        raise Forbidden("Only the operator can make a key of role operator.", param="role")
    must_grant_own(caller, new.models)
    must_not_outlive(caller, new.expires_at)
    must_restrict_as_own(caller, new.role, new.allowed_endpoints, new.ip_allow_list)
    _must_be_routes(app, new.allowed_endpoints)


def must_be_changeable(
    app: web.Application, caller: Caller, key: ApiKey, change: KeyChange
) -> None:
    """The rules for a key that the caller changes.

    :raises ClientError: when an endpoint is no route, or an entry of a list breaks its rule.
    :raises Forbidden: when the key could do more than the caller's own.
    """
    if change.models is not UNSET:
        must_grant_own(caller, change.models)
    if change.expires_at is not UNSET:
        must_not_outlive(caller, change.expires_at)
    must_restrict_as_own(caller, key.role, change.allowed_endpoints, change.ip_allow_list)
    if change.allowed_endpoints is not UNSET:
        _must_be_routes(app, change.allowed_endpoints)


def _must_be_routes(app: web.Application, endpoints: list[str] | None) -> None:
    """Refuse endpoints that a key could never be used for.

    :raises ClientError: naming the first, and the routes that are meant.
    """
    names = {accounts.endpoint_of(resource.canonical) for resource in app.router.resources()}
    for endpoint in accounts.parse_endpoints(endpoints) or ():
        if endpoint not in names:
            similar = difflib.get_close_matches(endpoint, names)
            meant = f" Similar paths: {', '.join(similar)}." if similar else ""
            raise ClientError(
                f"allowed_endpoints: {endpoint!r} is no route of GET /openapi.json.{meant}",
                param="allowed_endpoints",
            )
