"""The verbs of the command line, each in a module that is imported when it is used.

So a process that serves does not hold what only the operator needs, and the one that starts several
of them does not hold the service.
"""

import importlib
import signal
from typing import Final

import click

VERBS: Final = {
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
"""The module and the name in it."""


class Verbs(click.Group):
    """The commands of its own, and those of ``VERBS``."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All of them by name."""
        return sorted([*super().list_commands(context), *VERBS])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """One, imported if it is not of its own."""
        if name not in VERBS:
            return super().get_command(context, name)
        name, _, attribute = VERBS[name].partition(".")
        module = importlib.import_module(f"{__name__}.{name}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # As __main__ has set it for the imports: a verb has things to put in order.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command: click.Command = getattr(module, attribute)
        return command
