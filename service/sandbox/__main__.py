"""``python -m service.sandbox``: serves the sandbox alone."""

import argparse
import asyncio
import signal

from aiohttp import web

from service.sandbox import create_sandbox


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m service.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="Use 0 for any free port.")
    parser.add_argument("--key", action="append", help="Accept this API key. Repeat for more.")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.host, arguments.port, arguments.key or ["sandbox"]))


async def _serve(host: str, port: int, keys: list[str]) -> None:
    runner = web.AppRunner(
        create_sandbox(keys), access_log=None, handler_cancellation=True, shutdown_timeout=2.0
    )
    await runner.setup()
    stopped = asyncio.Event()
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, stopped.set)
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        url = f"http://{host}:{bound[1]}/api/v1"
        print(f"Rialto's sandbox simulates Venice at {url} (API key: {keys[0]})", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    main()
