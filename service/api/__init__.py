"""The HTTP surface: routes, and nothing that knows how the work is done."""

from service.api.metrics import keep_fresh
from service.api.middleware import MIDDLEWARES, add_request_id
from service.api.routes import add_routes
from service.api.state import (
    CALLERS,
    CATALOG,
    DATABASE,
    GATEWAY,
    KEYRING,
    METRICS_DIRECTORY,
    SETTINGS,
    STATUS,
    VENICE,
    VENICE_KEY,
    Status,
)

__all__ = [
    "CALLERS",
    "CATALOG",
    "DATABASE",
    "GATEWAY",
    "KEYRING",
    "METRICS_DIRECTORY",
    "MIDDLEWARES",
    "SETTINGS",
    "STATUS",
    "VENICE",
    "VENICE_KEY",
    "Status",
    "add_request_id",
    "add_routes",
    "keep_fresh",
]
