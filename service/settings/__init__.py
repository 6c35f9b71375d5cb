"""The settings: environment variables and `.env`, read once and checked together."""

from service.settings.reading import EX_CONFIG, inherited, load, may_color, suspicious_names
from service.settings.settings import REQUIRED, SURROUNDINGS, Settings, variables

__all__ = [
    "EX_CONFIG",
    "REQUIRED",
    "SURROUNDINGS",
    "Settings",
    "inherited",
    "load",
    "may_color",
    "suspicious_names",
    "variables",
]
