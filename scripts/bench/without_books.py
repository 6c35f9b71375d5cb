"""Rialto whose books admit everything and write nothing, to see what they cost. The service has no
such mode: it is made here, for the bench alone."""

import asyncio
import runpy

from service.ledger import Admission, Ledger, Rates


async def admit(_, hold):
    """As it was asked."""
    rates = Rates(requests=None, tokens=None)
    return Admission(bound_nanos=hold.bound_nanos, bound_tokens=hold.bound_tokens, rates=rates)


def settle(*_):
    """Done at once."""
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


if __name__ == "__main__":
    Ledger.admit, Ledger.settle = admit, settle
    runpy.run_module("service", run_name="__main__", alter_sys=True)
