"""``GET /metrics``, for Prometheus."""

import asyncio
from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.api.operations import Operation
from service.api.state import DATABASE, GATEWAY, METRICS_DIRECTORY
from service.telemetry import metrics

HEADERS: Final = {"Content-Type": CONTENT_TYPE_LATEST}
REFRESH_S: Final = 1.0


async def show(operation: Operation) -> web.Response:
    """``GET /metrics`` with the operator's key: the instruments of this process, or of all that
    serve on its port, in Prometheus's text format. It asks the database for nothing."""
    await refresh(operation.app)
    # In a thread: of several processes it takes some 100 ms, which calls need not wait for.
    body = await asyncio.to_thread(metrics.exposition, operation.app.get(METRICS_DIRECTORY))
    return web.Response(body=body, headers=HEADERS)


async def refresh(app: web.Application) -> None:
    """Read the gauges that change without an event. A process that shares its port does so every
    ``REFRESH_S``, since another process may answer ``GET /metrics``."""
    metrics.flush_noted()
    metrics.OPEN_CALLS.set(app[GATEWAY].open_calls)
    size, idle = app[DATABASE].connections
    metrics.POOL.labels("idle").set(idle)
    metrics.POOL.labels("used").set(size - idle)
