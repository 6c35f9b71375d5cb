"""Venice, played by the sandbox, on a port of its own."""

import contextlib
import dataclasses

from aiohttp import web

from service.sandbox import CALLS, FAULTS, LISTING, create_sandbox

KEYS = ("sandbox", "second", "third")
"""The keys that the sandbox accepts; the service is configured with the first."""


@dataclasses.dataclass
class Upstream:
    """A running sandbox. Tests push faults into it and look at the calls that it received."""

    url: str
    app: web.Application

    @property
    def faults(self):
        return self.app[FAULTS]

    @property
    def listing(self):
        return self.app[LISTING]

    @property
    def calls(self):
        return self.app[CALLS]

    @property
    def posts(self):
        """The calls with a body. The service itself sends GET requests at any time."""
        return [call for call in self.calls if call.method == "POST"]


@contextlib.asynccontextmanager
async def running_sandbox():
    """Run the sandbox for the length of the block."""
    app = create_sandbox(KEYS)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}", app)
    finally:
        app[FAULTS].clear()
        await runner.cleanup()
