"""What every command begins with: settings, or what is wrong with them."""

import sys
from typing import Any

import structlog

from service.errors import SettingsError
from service.settings import EX_CONFIG, Settings, load, suspicious_names
from service.telemetry import logs


def read_settings(**defaults: Any) -> Settings:
    """The settings; if they are wrong every mistake is printed and the process ends."""
    try:
        settings = load(**defaults)
    except SettingsError as error:
        errors = logs.Lines(sys.stderr)
        for mistake in error.mistakes:
            errors.put(f"settings: {mistake}")
        for name, meant in suspicious_names().items():
            hint = f" Did you mean {meant}?" if meant else ""
            errors.put(f"settings: {name}: is no setting.{hint}")
        errors.put("Nothing was started. docs/settings.md lists every setting.")
        sys.exit(EX_CONFIG)
    logs.configure(settings.log_level, settings.log_format)
    logs.take_over()
    for name, meant in suspicious_names().items():
        structlog.get_logger().warning("unknown setting", name=name, meant=meant)
    return settings
