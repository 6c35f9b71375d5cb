"""One request of the holder's: what was asked for, which limits counted it, and what it cost."""

from uuid import UUID

import msgspec
from aiohttp import web

from service.dashboard.page import Page
from service.dashboard.pages.own import own_entries, own_key_id, own_refusals
from service.derived import list_refusals
from service.errors import NotFound
from service.reports import entries, story


async def show(page: Page) -> web.StreamResponse:
    """The story of a request of the viewer's key. Those of other keys are not found, even if they
    have the same id."""
    found_id = await _own_id(page, page.path("request_id"))
    organization_id = page.viewer.caller.organization_id
    try:
        found = await story.find(page.database, str(found_id), organization_id)
    except NotFound:
        raise _unknown() from None
    if found.api_key_id != own_key_id(page):
        raise _unknown()
    return await page.render("own_request.html", story=found)


async def _own_id(page: Page, text: str) -> UUID:
    """The id of the entry or refusal that the text is, or whose request has it as its id.

    :raises NotFound: when the key has no such request.
    """
    wanted = msgspec.structs.replace(own_entries(page), request_id=text)
    found = await entries.search(page.database, wanted, None, 1)
    if found.entries:
        entry = found.entries[0]
        return entry.amends_id or entry.id
    refused = msgspec.structs.replace(own_refusals(page), request_id=text)
    refusals = (await list_refusals(page.database, refused, None, 1)).refusals
    if refusals:
        return refusals[0].id
    try:
        return UUID(text)
    except ValueError:
        raise _unknown() from None


def _unknown() -> NotFound:
    return NotFound("This key has no such request. Calls in flight appear here when they end.")
