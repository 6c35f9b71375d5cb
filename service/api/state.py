"""What handlers find in the application."""

from pathlib import Path
from typing import Final

from aiohttp import web

from service.accounts import Callers
from service.api.intake import Intake
from service.catalog import Catalog
from service.crypto import Keyring
from service.database.database import Database
from service.database.lanes import Lanes
from service.derived import Recorder
from service.gateway import Gateway
from service.ledger import Ledger
from service.settings import Settings
from service.shares import Shares
from service.upstream import Venice


class Status:
    """Whether the process is on its way out, and how many requests are inside."""

    def __init__(self) -> None:
        self.is_draining = False
        self.open_requests = 0


SETTINGS: Final = web.AppKey("SETTINGS", Settings)
STATUS: Final = web.AppKey("STATUS", Status)
INTAKE: Final = web.AppKey("INTAKE", Intake)
OPEN_REQUESTS: Final = web.AppKey("OPEN_REQUESTS", Shares)
"""The requests with a key that may be under way at a time."""
DATABASE: Final = web.AppKey("DATABASE", Database)
LANES: Final = web.AppKey("LANES", Lanes)
KEYRING: Final = web.AppKey("KEYRING", Keyring)
BOOKS: Final = web.AppKey("BOOKS", Ledger)
RECORDER: Final = web.AppKey("RECORDER", Recorder)
CALLERS: Final = web.AppKey("CALLERS", Callers)
CATALOG: Final = web.AppKey("CATALOG", Catalog)
VENICE: Final = web.AppKey("VENICE", Venice)
VENICE_KEY: Final = web.AppKey("VENICE_KEY", str)
"""The key at Venice of the settings; the sandbox's own without one."""
GATEWAY: Final = web.AppKey("GATEWAY", Gateway)
METRICS_DIRECTORY: Final = web.AppKey("METRICS_DIRECTORY", Path)
"""Where the processes on one port keep their metrics; not there when this is the only one."""
