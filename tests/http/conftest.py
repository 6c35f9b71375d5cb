"""Every test of the HTTP client runs on both event loops: asyncio's, and the one that serves."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    """Return the loops to run a test on."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
