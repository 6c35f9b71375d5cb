"""A process of the service that stops itself in a transaction; the tests run it.

It locks an organization's limits, as a change of a limit does, then sends itself SIGSTOP.
"""

import asyncio
import os
import signal
import sys
from uuid import UUID

from support import make_settings

from service.database.pool import open_pool
from service.errors import Unavailable
from service.settings.address import parse_database_url

LOCK_LIMITS = "SELECT FROM public.limits WHERE organization_id = $1 FOR NO KEY UPDATE"
USE = "UPDATE public.limits SET ceiling = 0 WHERE organization_id = $1"


async def main(url, organization_id):
    address = parse_database_url(url, production=False)
    async with open_pool(make_settings(address, "http://x"), address) as database:
        try:
            async with database.transaction() as conn:
                await conn.fetch(LOCK_LIMITS, organization_id)
                await conn.execute(USE, organization_id)
                print("stopping", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
                await conn.execute(USE, organization_id)
        except Unavailable:
            print("lost", flush=True)
        else:
            print("committed", flush=True)


asyncio.run(main(sys.argv[1], UUID(sys.argv[2])))
