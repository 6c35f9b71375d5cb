"""The HTTP surface: routes, and nothing that knows how the work is done."""

from service.api.connections import handler_arguments, make_runner
from service.api.description import Routes
from service.api.intake import Intake
from service.api.metrics import REFRESH_S, refresh
from service.api.middleware import answer_preflights, prepare_headers
from service.api.routes import add_routes
from service.api.state import (
    BOOKS,
    CALLERS,
    CATALOG,
    DATABASE,
    GATEWAY,
    INTAKE,
    KEYRING,
    LANES,
    METRICS_DIRECTORY,
    OPEN_REQUESTS,
    RECORDER,
    SETTINGS,
    STATUS,
    VENICE,
    VENICE_KEY,
    Status,
)

__all__ = [
    "BOOKS",
    "CALLERS",
    "CATALOG",
    "DATABASE",
    "GATEWAY",
    "INTAKE",
    "KEYRING",
    "LANES",
    "METRICS_DIRECTORY",
    "OPEN_REQUESTS",
    "RECORDER",
    "REFRESH_S",
    "SETTINGS",
    "STATUS",
    "VENICE",
    "VENICE_KEY",
    "Intake",
    "Routes",
    "Status",
    "add_routes",
    "answer_preflights",
    "handler_arguments",
    "make_runner",
    "prepare_headers",
    "refresh",
]
