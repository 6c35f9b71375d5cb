"""The dashboard: pages for people, rendered here from the same functions as the API."""

from service.dashboard.routes import add_routes

__all__ = ["add_routes"]
