"""What the dashboard keeps in the application."""

from typing import Final

from aiohttp import web

from service.api import Routes
from service.dashboard.assets import Assets
from service.dashboard.attempts import SignInAttempts
from service.dashboard.reference import Reference
from service.dashboard.sessions import Sessions

SESSIONS: Final = web.AppKey("SESSIONS", Sessions)
ATTEMPTS: Final = web.AppKey("ATTEMPTS", SignInAttempts)
ASSETS: Final = web.AppKey("ASSETS", Assets)
API_ROUTES: Final = web.AppKey("API_ROUTES", Routes)
"""The routes of the API, which describe themselves."""
REFERENCE: Final = web.AppKey("REFERENCE", list[Reference])
"""The reference of the API, once it was asked for."""
