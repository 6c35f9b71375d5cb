"""Who changed what, in one organization or in all."""

import msgspec
from msgspec import UNSET, UnsetType

from service.api.operations import Operation
from service.api.queries import PAGE, PageLimit, Text
from service.reports import events
from service.reports.events import EventFilter, EventPage


class EventsQuery(msgspec.Struct, kw_only=True):
    """The events to find, and the page of them. ``before`` is the ``next`` of the page before;
    ``actor`` is ``operator``, ``command-line``, ``retention``, ``rialto`` or a key; ``action`` is
    the beginning of one."""

    limit: PageLimit = PAGE
    before: Text | UnsetType = UNSET
    organization: Text | UnsetType = UNSET
    actor: Text | UnsetType = UNSET
    action: Text | UnsetType = UNSET
    target: Text | UnsetType = UNSET


async def search(operation: Operation) -> EventPage:
    """``GET /admin/v1/audit-events?organization=&actor=&action=&target=&limit=&before=``: find
    audit events, newest first, each with whether it is unaltered and in its place. A search reads
    the newest 100,000 events of one organization, or 500 of each."""
    query, database = operation.read_query(EventsQuery), operation.database
    organization_id = await operation.stated_organization(query.organization)
    actor, target = query.actor or None, query.target or None
    if actor is not None:
        actor = await events.find_actor(database, actor, organization_id)
    if target is not None:
        target = await events.find_target(database, target, organization_id)
    wanted = EventFilter(
        has_operators=operation.own_organization is None,
        organization_id=organization_id,
        actor=actor,
        action=query.action or None,
        target=target,
    )
    return await events.search(database, wanted, query.before or None, query.limit)
