"""The HTTP surface: routes, and nothing that knows how the work is done."""

from service.api.middleware import MIDDLEWARES, add_request_id
from service.api.routes import add_routes
from service.api.state import (
    CALLERS,
    CATALOG,
    DATABASE,
    GATEWAY,
    KEYRING,
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
    "MIDDLEWARES",
    "SETTINGS",
    "STATUS",
    "VENICE",
    "VENICE_KEY",
    "Status",
    "add_request_id",
    "add_routes",
]
