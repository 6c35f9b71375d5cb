"""The operator's commands. Each module is imported only when its command is used.

A serving process therefore does not hold the operator's code, and the parent of several processes
does not hold the service. The list of commands, their help and their completion need no module.
"""

import gc
import importlib
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

import click
from click.exceptions import NoSuchCommand

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Listed(NamedTuple):
    """A command in the list: the module and attribute that have it, and its help in short."""

    where: str
    help: str


SECTIONS: Final = {
    "See what happens": {
        "status": Listed("status.show_status", "Show health, money and limits on one screen."),
        "calls": Listed("calls.list_calls", "List the calls in flight."),
        "requests": Listed("requests.requests", "Look at requests, by id or as they come."),
        "refusals": Listed("refusals.list_refused", "List refused calls, or count their causes."),
        "usage": Listed("usage.show_usage", "Sum calls, tokens, costs and times of a period."),
        "quote": Listed("quote.quote", "Compute what a call could cost, without making it."),
    },
    "Manage": {
        "organizations": Listed("organizations.organizations", "Manage organizations."),
        "keys": Listed("keys.keys", "Manage API keys of callers."),
        "limits": Listed("limits.limits", "Manage limits on organizations, keys and end users."),
        "models": Listed("models.models", "List models and manage aliases."),
        "upstream-keys": Listed(
            "upstream_keys.upstream_keys", "Manage the operator's Venice keys."
        ),
    },
    "Keep books": {
        "ledger": Listed("ledger.ledger_group", "Search, export and amend the ledger."),
        "audit": Listed(
            "audit.audit_books", "Prove limits, holds, entries, usage and audit events."
        ),
        "audit-events": Listed("audit_events.list_audit_events", "List who changed what."),
    },
    "Run": {
        "doctor": Listed("doctor.doctor", "Check the installation, and advise what to do."),
        "migrate": Listed("migrate.migrate", "Apply pending migrations and check the tables."),
        "completion": Listed("completion.completion", "Print the completion script of a shell."),
    },
}
"""The commands of the help text, below their headings."""
HIDDEN: Final = {"process": Listed("serving.process", "")}
COMMANDS: Final = {
    **{name: listed for section in SECTIONS.values() for name, listed in section.items()},
    **HIDDEN,
}


class LazyGroup(click.Group):
    """A click group with its own commands and those of ``COMMANDS``."""

    def list_commands(self, context: click.Context) -> list[str]:
        """List all commands by name."""
        return sorted([*super().list_commands(context), *COMMANDS])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, importing it on first use."""
        if name not in COMMANDS:
            return super().get_command(context, name)
        name, _, attribute = COMMANDS[name].where.partition(".")
        module = importlib.import_module(f"{__name__}.{name}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # __main__ sets the default handler for the duration of the imports. Commands need
            # cleanup.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        command: click.Command = getattr(module, attribute)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click. An unknown name is compared with those of all commands."""
        try:
            return super().resolve_command(context, arguments)
        except NoSuchCommand as error:
            names = [name for name, _ in self._listed()]
            raise NoSuchCommand(error.command_name, possibilities=names, ctx=context) from None

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands below their headings."""
        own = {name: Listed("", one.get_short_help_str()) for name, one in self.commands.items()}
        width = max(map(len, [*COMMANDS, *own]))
        for heading, commands in SECTIONS.items():
            listed = commands if heading != "Run" else {**own, **commands}
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), one.help) for name, one in listed.items()])

    def shell_complete(self, context: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete a name or an option."""
        # A serving process needs none of it.
        from click.shell_completion import CompletionItem  # noqa: PLC0415

        return [
            *(
                CompletionItem(name, help=text)
                for name, text in self._listed()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, context, incomplete),
        ]

    def _listed(self) -> list[tuple[str, str]]:
        """The names of all commands for people, each with its help in short."""
        own = {name: one.get_short_help_str() for name, one in self.commands.items()}
        listed = {name: one.help for name, one in COMMANDS.items() if name not in HIDDEN}
        return sorted({**own, **listed}.items())
