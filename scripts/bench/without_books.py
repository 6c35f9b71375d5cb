"""Runs Rialto with a ledger that admits everything and writes nothing, to measure what the ledger
costs.

The service has no such mode; the bench makes it.
"""

import asyncio
import runpy

from service.ledger import Admission, Ledger, Rates


async def admit(_, hold, **__):
    """Admit the call with its bound. What is sent is kept by nobody."""
    rates = Rates(requests=None, tokens=None)
    return Admission(bound_nanos=hold.bound_nanos, bound_tokens=hold.bound_tokens, rates=rates)


def settle(*_):
    """Settle at once, without writing."""
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


if __name__ == "__main__":
    Ledger.admit, Ledger.settle = admit, settle
    runpy.run_module("service", run_name="__main__", alter_sys=True)
