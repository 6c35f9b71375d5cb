"""The service between a real PostgreSQL and a real HTTP server that plays Venice."""

import pytest
from support import make_settings, running


@pytest.fixture
async def service(database_address, upstream):
    """The service, listening."""
    async with running(make_settings(database_address, upstream.url)) as service:
        yield service


@pytest.fixture
async def caller(service):
    """Somebody with a key of role inference."""
    return await service.new_caller()
