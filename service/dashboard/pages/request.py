"""One request: what became of it, from its admission or refusal to its corrections."""

from aiohttp import web

from service.dashboard.page import Page
from service.reports import story


async def show(page: Page) -> web.StreamResponse:
    """The story of the request whose id, or that of its entry or refusal, is in the path. It loads
    again by itself while the call is in flight."""
    found = await story.find(page.database, page.path("request_id"), page.viewer.organization_id)
    return await page.render("request.html", story=found)
