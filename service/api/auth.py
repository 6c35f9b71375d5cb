"""Who is asking."""

from datetime import datetime
from typing import Final
from uuid import UUID

from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, crypto
from service.accounts import OPERATOR, ApiKey, Caller, Restrictions, Role
from service.api.requests import Request
from service.api.state import (
    CALLERS,
    DATABASE,
    GATEWAY,
    LANES,
    OPEN_REQUESTS,
    SETTINGS,
)
from service.database.database import Database
from service.errors import Forbidden, RateLimited, Unauthenticated, Unavailable
from service.formats.addresses import Address, client_address, is_within
from service.shares import Share
from service.telemetry import metrics

API_KEY_HEADER: Final = "x-api-key"
"""Where Anthropic's clients have their key."""


def shown_key(request: Request) -> str | None:
    """The key that the request shows, whether or not it is one."""
    try:
        return _bearer(request)
    except Unauthenticated:
        return None


def _bearer(request: Request) -> str:
    header = request.headers.get("Authorization")
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() == "bearer" and (key := key.strip()):
        return key
    if header is None or not header.strip():
        if key := request.headers.get(API_KEY_HEADER, "").strip():
            return key
        if header is None:
            raise Unauthenticated(
                "There is no API key: send it as 'Authorization: Bearer rk_…'.",
                code="missing_api_key",
            )
    raise Unauthenticated(
        "The Authorization header is malformed: it must be 'Bearer rk_…'.",
        code="malformed_api_key",
    )


async def authenticate(request: Request) -> Caller:
    """The caller of an inference route.

    :raises Unauthenticated: with a code for each reason.
    :raises Forbidden: for the operator's key, which is no caller's: nobody could be billed.
    """
    key = _bearer(request)
    # Only keys of callers are found, so the operator's is recognized after that.
    caller = request.app[CALLERS].find(key) or await _identify(request.app, key)
    enter(request, caller)
    return caller


async def _identify(app: web.Application, key: str) -> Caller:
    if crypto.equal(key, app[SETTINGS].operator_key):
        raise Forbidden(
            "The operator's key cannot make calls. Make a key of role inference:"
            " POST /admin/v1/organizations/{id}/keys."
        )
    return await app[CALLERS].identify(key)


def enter(request: Request, caller: Caller) -> None:
    """Note whose request it is, and take a place for it among those that are under way; the
    operator needs none.

    :raises Forbidden: when the key may not be used here, or not from there.
    :raises RateLimited, Unavailable: when the caller has its share of them, or nobody has room.
    """
    request.caller = caller
    request.facts["organization_id"] = str(caller.organization_id)
    if caller.key_prefix is not None:
        request.facts["key_prefix"] = caller.key_prefix
    if caller.restrictions is not None:
        _check_restrictions(request, caller.restrictions)
    if not request.connection.is_known:
        request.connection.show_key(caller)
    if caller is OPERATOR:
        return
    places, key_id = request.app[OPEN_REQUESTS], caller.api_key_id or caller.organization_id
    place = request.place = Share(places, caller.organization_id, key_id)
    if place.grow(1):
        return
    metrics.note(metrics.TURNED_AWAY, 1, "open_requests")
    if not places.held(caller.organization_id):
        raise Unavailable("Too many requests are under way.", retry_after_s=1)
    raise RateLimited(
        "This key or its organization has its share of the requests that can be under way at a"
        " time. Try again when one of them has ended.",
        retry_after_s=1,
    )


def _check_restrictions(request: Request, restrictions: Restrictions) -> None:
    """:raises Forbidden: when the key may not be used for the route, or not from the address."""
    if restrictions.networks is not None:
        address = address_of(request)
        if address is None or not is_within(address, restrictions.networks):
            shown = "an address that is not known" if address is None else address
            raise Forbidden(
                f"This key may not be used from {shown}. Its ip_allow_list has the networks from"
                " which it may.",
                code="address_not_allowed",
            )
    if restrictions.endpoints is not None:
        endpoint = accounts.endpoint_of(_path_of_route(request))
        if endpoint not in restrictions.endpoints:
            raise Forbidden(
                f"This key may not be used for {endpoint}. Its allowed_endpoints has the paths for"
                " which it may.",
                code="endpoint_not_allowed",
            )


def address_of(request: Request) -> Address | None:
    """The address of the client, which trusted proxies state; None if they state none."""
    settings = request.app[SETTINGS]
    forwarded = request.headers.getall(settings.client_address_header, ())
    return client_address(request.remote or "", forwarded, settings.trusted_proxies)


def _path_of_route(request: Request) -> str:
    if request.known_route is not None:
        return request.known_route.path
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


async def authenticate_free(request: Request) -> Caller:
    """The caller of a route that costs nothing, whose limits on requests have room for it.

    :raises RateLimited: when they have none.
    """
    caller = await authenticate(request)
    await request.app[GATEWAY].count_free(caller)
    return caller


async def authenticate_key(request: Request) -> tuple[Caller, UUID]:
    """The same, with the id of the caller's key, for what is asked about the key itself."""
    caller = await authenticate_free(request)
    if caller.api_key_id is None:
        raise Forbidden("Only a caller's own key can ask this.")
    return caller, caller.api_key_id


async def authenticate_administrator(request: Request) -> Caller:
    """The caller of an administrative route: the operator, or a key of role operator or admin.

    :raises Unauthenticated, Forbidden: when it is neither.
    """
    key = _bearer(request)
    if crypto.equal(key, request.app[SETTINGS].operator_key):
        enter(request, OPERATOR)
        return OPERATOR
    caller = await request.app[CALLERS].identify(key)
    enter(request, caller)
    if caller.role == "inference":
        raise Forbidden("A key of role inference cannot administer.")
    return caller


def database_of(request: Request) -> Database:
    """The database, within the share of it that the requests of the caller's organization have."""
    caller = request.caller
    if caller.role == "operator":
        return request.app[DATABASE]
    return request.app[LANES].of(caller.organization_id)


def must_be_operator(caller: Caller) -> None:
    """:raises Forbidden: for anyone else."""
    if caller.role != "operator":
        raise Forbidden("Only the operator can do this.")


def must_administer(caller: Caller, organization_id: UUID) -> None:
    """:raises Forbidden: when the organization is not the caller's to administer."""
    if caller.role != "operator" and caller.organization_id != organization_id:
        raise Forbidden("This key administers its own organization only.")


def must_grant_own(caller: Caller, models: list[str] | None, field: str = "models") -> None:
    """The rule for keys and aliases that an administrator makes or changes: they lead to no more
    than the administrator's own key may use.

    :raises Forbidden: when they would.
    """
    if caller.role != "operator" and caller.allowed_models is not None:
        accounts.must_be_among(models, caller.allowed_models, "your own key may use", field)


def must_be_granted(caller: Caller, key: ApiKey) -> None:
    """The rule for a key whose new secret an administrator gets: it may do no more than the
    administrator's own.

    :raises Forbidden: when it may.
    """
    must_grant_own(caller, key.models)
    must_not_outlive(caller, key.expires_at)
    must_restrict_as_own(caller, key.role, key.allowed_endpoints, key.ip_allow_list)


def must_restrict_as_own(
    caller: Caller,
    role: Role,
    endpoints: list[str] | UnsetType | None,
    networks: list[str] | UnsetType | None,
) -> None:
    """The rule for administrators' keys that an administrator makes or changes: they may be used
    for no more routes, and from no more addresses, than the administrator's own. Keys that make
    calls are used elsewhere.

    :raises ClientError: when an entry of a list breaks its rule.
    :raises Forbidden: when they may be used for or from more.
    """
    own = caller.restrictions
    if caller.role == "operator" or role != "admin" or own is None:
        return
    whose = "your own key may use"
    if own.endpoints is not None and endpoints is not UNSET:
        stated = accounts.parse_endpoints(endpoints)
        accounts.must_be_among(stated, own.endpoints, whose, "allowed_endpoints")
    if own.networks is not None and networks is not UNSET:
        accounts.must_be_within(accounts.parse_networks(networks), own.networks, whose)


def must_not_outlive(caller: Caller, expires_at: datetime | None) -> None:
    """The rule for keys that an administrator makes or changes: they expire no later than the
    administrator's own.

    :raises Forbidden: when they would.
    """
    own = caller.expires_at
    if caller.role == "operator" or own is None:
        return
    if expires_at is not None and expires_at.tzinfo is None:
        # Refused for that, by the rule for all.
        return
    if expires_at is None or expires_at > own:
        raise Forbidden(
            f"expires_at: must be no later than that of your own key, {own.isoformat()}.",
            param="expires_at",
        )
