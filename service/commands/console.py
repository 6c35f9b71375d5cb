"""Reads the settings for every command, and reports mistakes in them."""

import sys
from typing import Any

import structlog

from service.errors import SettingsError
from service.settings import EX_CONFIG, Settings, load, may_color, suspicious_names
from service.telemetry import logs


def read_settings(*, makes_secrets: bool = True, **defaults: Any) -> Settings:
    """Read the settings. If any are wrong, print every mistake and exit."""
    try:
        settings = load(makes_secrets=makes_secrets, **defaults)
    except SettingsError as error:
        errors = logs.Lines(sys.stderr)
        for mistake in error.mistakes:
            errors.put(f"settings: {mistake}")
        for name, meant in suspicious_names().items():
            hint = f" Did you mean {meant}?" if meant else ""
            errors.put(f"settings: {name}: is not a setting.{hint}")
        errors.put("Not started. See docs/settings.md for every setting.")
        sys.exit(EX_CONFIG)
    configure_logs(settings)
    for name, meant in suspicious_names().items():
        structlog.get_logger().warning("unknown setting", name=name, meant=meant)
    return settings


def configure_logs(settings: Settings, process: int | None = None) -> None:
    """Set up the log as the settings state. ``process`` is the number among several processes."""
    logs.configure(settings.log_level, settings.log_format, process=process, may_color=may_color())
    logs.capture_python_output()
