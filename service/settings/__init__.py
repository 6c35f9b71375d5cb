"""The settings: environment variables and `.env`, read once and checked together."""

from service.settings.settings import (
    EX_CONFIG,
    REQUIRED,
    SURROUNDINGS,
    Settings,
    inherited,
    load,
    suspicious_names,
    variables,
)

__all__ = [
    "EX_CONFIG",
    "REQUIRED",
    "SURROUNDINGS",
    "Settings",
    "inherited",
    "load",
    "suspicious_names",
    "variables",
]
