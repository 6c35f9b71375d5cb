"""The minimal aiohttp gateway: receives a call, forwards it, and forwards the response.

``python scripts/bench/proxy.py PORT UPSTREAM_URL``
"""

import sys

import aiohttp
import uvloop
from aiohttp import web

BODY_MAX_BYTES = 36_700_160
UPSTREAM = web.AppKey("UPSTREAM", aiohttp.ClientSession)
PASSED = ("Content-Type", "Authorization")


async def forward(request):
    """Forward a call; streams are forwarded as they arrive."""
    headers = {name: request.headers[name] for name in PASSED if name in request.headers}
    body = await request.read()
    url = f"{sys.argv[2]}{request.path_qs}"
    async with request.app[UPSTREAM].post(url, data=body, headers=headers) as answer:
        kind = {"Content-Type": answer.headers["Content-Type"]}
        if answer.content_type != "text/event-stream":
            return web.Response(status=answer.status, headers=kind, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=kind)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        return response


async def session(app):
    """Connections to the upstream, without a maximum."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as app[UPSTREAM]:
        yield


async def main():
    """Run the application."""
    app = web.Application(client_max_size=BODY_MAX_BYTES)
    app.cleanup_ctx.append(session)
    app.router.add_post("/{path:.*}", forward)
    return app


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    web.run_app(main(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, loop=loop)
