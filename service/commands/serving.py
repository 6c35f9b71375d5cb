"""Commands that serve, as the only process or as one of several."""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Final

import click
from aiohttp import web

from service.commands.console import configure_logs, read_settings
from service.process import demo, server
from service.settings import Settings
from service.telemetry import logs

FLUSH_S: Final = 1.0
"""How long the welcome waits for the lines before it."""


def alone(settings: Settings) -> int:
    """Serve as the only process, and return the exit status."""
    return server.run(settings, _welcome(settings))


def _welcome(settings: Settings) -> server.OnListening | None:
    """Return the callback that prints the quick start, in development only."""

    async def welcome(app: web.Application, port: int) -> None:
        if sys.stdout is not None and sys.stdout.isatty():
            # For people the start ends with the check of the key, whose result the welcome states.
            await demo.wait_for_key_check(app)
        text = await demo.welcome(app, port)
        # The lines of the start come first. A reader that stalls must not delay the service.
        await asyncio.to_thread(logs.flush, FLUSH_S)
        logs.Lines(sys.stdout).put(text)

    return None if settings.is_production else welcome


@click.command(hidden=True)
@click.argument("number", type=int)
@click.option("--channel", type=int, required=True)
@click.option("--socket", "sockets", type=int, required=True, multiple=True)
@click.option("--metrics", "metrics_directory", type=Path, required=True)
@click.option("--sandbox", "sandbox_url")
def process(
    number: int,
    channel: int,
    sockets: tuple[int, ...],
    metrics_directory: Path,
    sandbox_url: str | None,
) -> None:
    """Serve as one of several processes. Started by ``serve`` with inherited descriptors."""
    settings = read_settings()
    configure_logs(settings, process=number)
    parent = server.Parent(
        channel=socket.socket(fileno=channel),
        sockets=[socket.socket(fileno=one) for one in sockets],
        metrics_directory=metrics_directory,
        sandbox_url=sandbox_url,
    )
    sys.exit(server.run(settings, _welcome(settings) if number == 1 else None, parent))
