"""The operator's commands. Each module is imported only when its command is used.

A serving process therefore does not hold the operator's code, and the parent of several processes
does not hold the service.
"""

import gc
import importlib
import signal
from typing import Final

import click

COMMANDS: Final = {
    "audit": "audit.audit_books",
    "keys": "keys.keys",
    "ledger": "ledger.ledger_group",
    "limits": "limits.limits",
    "migrate": "migrate.migrate",
    "models": "models.models",
    "organizations": "organizations.organizations",
    "process": "serving.process",
    "upstream-keys": "upstream_keys.upstream_keys",
    "usage": "ledger.show_usage",
}
"""The module and the attribute of each command."""


class LazyGroup(click.Group):
    """A click group with its own commands and those of ``COMMANDS``."""

    def list_commands(self, context: click.Context) -> list[str]:
        """List all commands by name."""
        return sorted([*super().list_commands(context), *COMMANDS])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, importing it on first use."""
        if name not in COMMANDS:
            return super().get_command(context, name)
        name, _, attribute = COMMANDS[name].partition(".")
        module = importlib.import_module(f"{__name__}.{name}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # __main__ sets the default handler for the duration of the imports. Commands need
            # cleanup.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        command: click.Command = getattr(module, attribute)
        return command
