"""The command line, ``rialto`` or ``python -m service``: serving, and the operator's verbs."""

import asyncio
import gc
import os
import signal
import sys

if __name__ == "__main__":
    # A start makes hardly any garbage, and looking for it takes an eighth of the imports' time. A
    # service collects garbage once it listens, and a verb once it is imported.
    gc.disable()
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports ends the process as it would any other, without a traceback. What
    # serves has handlers of its own after that; for a verb Python's is set again.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import click

from service import __version__
from service.commands import LazyGroup
from service.commands.console import read_settings

STANDARD_ERROR = 2


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(__version__, prog_name="rialto")
@click.pass_context
def main(context: click.Context) -> None:
    """Rialto, the gateway for Venice AI. Without a command it serves."""
    _open_standard_streams()
    if context.invoked_subcommand is None:
        context.invoke(serve)


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that this process was started without. Otherwise the
    next connection would get its number, and what libraries print would go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        pass
    os.close(descriptor)


@main.command()
def serve() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = read_settings()
    if settings.processes == 1:
        from service.commands import serving  # noqa: PLC0415 - only the process that serves

        sys.exit(serving.alone(settings))
    from service.process import processes  # noqa: PLC0415 - only the process that starts others

    gc.enable()
    sys.exit(asyncio.run(processes.serve(settings)))


def run() -> None:
    """Run the command line by its name, however it was called."""
    main(prog_name="rialto")


if __name__ == "__main__":
    run()
