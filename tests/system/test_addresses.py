"""The addresses where the service listens, and which of them its image's health check uses."""

import asyncio
import errno
import json
import re
import socket
import sys

import aiohttp
import pytest
from process import ROOT, database_url, started
from support import make_settings

from service.errors import StartupError
from service.process import lifecycle

HAS_IPV6 = lifecycle.has_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="needs IPv6")
BOTH = ("127.0.0.1", "[::1]")


async def check_health(port, host):
    """Return the exit status of the image's health check."""
    text = re.search(
        r"HEALTHCHECK .*?CMD (\[.*?\])\n", (ROOT / "Dockerfile").read_text(), re.DOTALL
    )[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *json.loads(text)[1:]), env={"PORT": str(port), "HOST": host}
    )
    return await process.wait()


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        pytest.param("::", BOTH, marks=needs_ipv6),
        pytest.param("0::0", BOTH, marks=needs_ipv6),
        pytest.param("", BOTH if HAS_IPV6 else BOTH[:1]),
        pytest.param("::1", BOTH[1:], marks=needs_ipv6),
        ("0.0.0.0", BOTH[:1]),
        ("127.0.0.2", ("127.0.0.2",)),
    ],
)
@pytest.mark.parametrize("processes", ["1", "2"])
async def test_every_address_of_the_host_is_answered(
    tmp_path, database_address, upstream, host, answered, processes
):
    """A host that means every interface answers on IPv4 and IPv6 at one port, and the image's
    health check finds the service."""
    environment = {
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        "HOST": host,
        "WEB_CONCURRENCY": processes,
    }
    async with started(tmp_path, **environment) as service:
        port = await service.listening()
        async with aiohttp.ClientSession() as http:
            for address in BOTH:
                if address in answered:
                    async with http.get(f"http://{address}:{port}/health") as response:
                        assert response.status == 200
                else:
                    with pytest.raises(aiohttp.ClientConnectorError):
                        await http.get(f"http://{address}:{port}/health")
        assert await check_health(port, host) == 0
        assert await check_health(port, f" {host} ") == 0


@pytest.fixture
def no_ipv6(monkeypatch):
    """A machine without IPv6."""
    make = socket.socket

    class Socket(make):
        def __init__(self, family=-1, *arguments, **more):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **more)

    monkeypatch.setattr(socket, "socket", Socket)


@pytest.mark.parametrize("host", ["::", "::1", "fd00::5"])
async def test_a_machine_without_ipv6_is_reported(database_address, no_ipv6, host):
    """An IPv6 host on a machine without IPv6 is an error that names the setting to change."""
    with pytest.raises(StartupError, match="this machine has no IPv6") as refused:
        await lifecycle.bind(make_settings(database_address, "http://x", host=host))
    assert "Set HOST to 0.0.0.0, or leave it empty" in refused.value.hint


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1"])
async def test_without_ipv6_there_is_ipv4(database_address, no_ipv6, host):
    """A host that is no IPv6 address works on IPv4 on a machine without IPv6."""
    sockets = await lifecycle.bind(make_settings(database_address, "http://x", host=host))
    try:
        assert {one.family for one in sockets} == {socket.AF_INET}
    finally:
        for one in sockets:
            one.close()
