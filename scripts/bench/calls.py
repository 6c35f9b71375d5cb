"""Admits and settles calls with Rialto's ledger, without HTTP and without Venice.

It reads two lines of JSON: the organization and the key of each call that is to be in flight at
the same time, and when to begin and how long to measure. After the first line it prints
``"ready"``, and after the calls its report. Settings come from the environment, as for the service.
"""

import asyncio
import json
import sys
import time
from uuid import UUID

import uvloop

from service.database.pool import open_pool
from service.ids import uuid7
from service.ledger import CostSource, Entry, Hold, Ledger, Outcome
from service.settings import load
from service.telemetry import metrics

MODEL = "llama-3.3-70b"


def hold_of(organization_id, api_key_id):
    """Return the hold of a usual chat completion."""
    call_id = uuid7()
    return Hold(
        organization_id=organization_id,
        id=call_id,
        api_key_id=api_key_id,
        request_id=str(call_id),
        endpoint="/chat/completions",
        model=MODEL,
        is_stream=False,
        bound_nanos=857_500,
        bound_tokens=325,
        price_version=1,
    )


def entry_of(hold):
    """Return the entry of a call that Venice answered and charged for."""
    return Entry(
        hold=hold,
        model=MODEL,
        outcome=Outcome.OK,
        status=200,
        input_tokens=25,
        cached_input_tokens=0,
        output_tokens=100,
        cost_nanos=297_500,
        cost_source=CostSource.REPORTED,
        upstream_request_id="8d3f0a2b4c5e6f70-FRA",
        first_byte_ms=350,
        duration_ms=1200,
        upstream_key_id=hold.id,
    )


async def keep_calling(ledger, organization_id, api_key_id, end_s, ended):
    """Admit and settle one call after the other; append when each began and ended."""
    while (start_s := time.monotonic()) < end_s:
        hold = hold_of(organization_id, api_key_id)
        await ledger.admit(hold)
        await ledger.settle(entry_of(hold))
        ended.append((start_s, time.monotonic()))


async def run(calls):
    """Run the calls by the plan that the second line has; return the report."""
    settings = load()
    async with open_pool(settings, settings.database) as database:
        ledger = Ledger(database, uuid7(), settings.max_end_users)
        print('"ready"', flush=True)
        plan = json.loads(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.sleep(plan["start_s"] - time.monotonic())
        from_s = plan["start_s"] + plan["warmup_s"]
        end_s = from_s + plan["seconds"]
        ended, cpu_s = [], time.process_time()
        await asyncio.gather(
            *(keep_calling(ledger, UUID(one), UUID(key), end_s, ended) for one, key in calls)
        )
        cpu_s = time.process_time() - cpu_s
    metrics.flush_noted()
    return {
        "completed": len(ended),
        "latencies_ms": [(end - start) * 1000 for start, end in ended if from_s <= end < end_s],
        "cpu_s": cpu_s,
        "metrics": metrics.exposition().decode(),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.stdin.readline())))))
