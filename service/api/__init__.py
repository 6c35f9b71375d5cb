"""The HTTP surface: routes, and nothing that knows how the work is done."""

from service.api.connections import handler_arguments, make_runner
from service.api.intake import Intake
from service.api.metrics import keep_fresh
from service.api.middleware import MIDDLEWARES, prepare_headers
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
    "MIDDLEWARES",
    "OPEN_REQUESTS",
    "SETTINGS",
    "STATUS",
    "VENICE",
    "VENICE_KEY",
    "Intake",
    "Status",
    "add_routes",
    "handler_arguments",
    "keep_fresh",
    "make_runner",
    "prepare_headers",
]
