"""The reference of the API, for everybody: a list of operations, and a page for each."""

import asyncio

from aiohttp import web

from service.api import Routes
from service.dashboard.page import Page
from service.dashboard.reference import Reference
from service.dashboard.state import API_ROUTES, REFERENCE
from service.errors import NotFound


async def _reference(page: Page) -> Reference:
    """Made when it is first asked for, in a thread, since that takes a while."""
    kept = page.app[REFERENCE]
    if not kept:
        kept.append(await asyncio.to_thread(_make, page.app[API_ROUTES]))
    return kept[0]


def _make(routes: Routes) -> Reference:
    return Reference(routes.document())


async def show(page: Page) -> web.StreamResponse:
    """Every operation."""
    return await page.render("api_reference.html", groups=(await _reference(page)).groups())


async def show_operation(page: Page) -> web.StreamResponse:
    """One operation, with all that it takes and gives."""
    operation = (await _reference(page)).operations.get(page.path("operation"))
    if operation is None:
        raise NotFound("There is no such operation.")
    return await page.render("api_operation.html", operation=operation)
