"""``GET /metrics``, for Prometheus."""

from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service import metrics
from service.api.auth import authenticate_operator, must_be_operator
from service.api.state import DATABASE, GATEWAY

HEADERS: Final = {"Content-Type": CONTENT_TYPE_LATEST}


async def show(request: web.Request) -> web.Response:
    """``GET /metrics`` with the operator's key: this process's instruments in Prometheus's text
    format. It asks the database for nothing."""
    must_be_operator(await authenticate_operator(request))
    metrics.OPEN_CALLS.set(request.app[GATEWAY].open_calls)
    size, idle = request.app[DATABASE].connections
    metrics.POOL.labels("idle").set(idle)
    metrics.POOL.labels("used").set(size - idle)
    return web.Response(body=generate_latest(metrics.REGISTRY), headers=HEADERS)
