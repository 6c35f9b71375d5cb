"""Compares what Venice charged for numbered calls with what the ledger recorded."""

import asyncio
from collections import Counter, defaultdict

WATCH_EVERY_S = 2


def number_tag(number):
    """Return the tag that carries the number in a call's content."""
    return f"#{number}#"


def request_id(number):
    """Return the request id that the call must have."""
    return f"call-{number}"


class Charges:
    """Venice's charges for any number of calls. The sandbox itself keeps the last 10,000 calls."""

    def __init__(self, upstream):
        self._upstream = upstream
        self._noted = {}
        self.attempts = 0
        self.keys = Counter()
        self.of = defaultdict(list)
        """Nano-dollars of each charged attempt, by the number of the call."""

    async def watch(self):
        """Collect charges until cancelled."""
        while True:
            self.collect()
            await asyncio.sleep(WATCH_EVERY_S)

    def collect(self):
        """Collect the charges of calls that have ended since the last time."""
        noted = {}
        for call in self._upstream.calls.to("/chat/completions"):
            if call.finished_at is None:
                continue
            noted[id(call)] = call
            if id(call) not in self._noted:
                self._take(call)
        # Keep these calls until the next time, so that no new call can get the id() of one of them.
        self._noted = noted

    def _take(self, call):
        self.attempts += 1
        if call.charged_nanos:
            _, number, _ = call.body.decode().split("#", 2)
            self.of[int(number)].append(call.charged_nanos)
            self.keys[call.headers["Authorization"].removeprefix("Bearer ")] += 1

    @property
    def charged_twice(self):
        """The numbers of calls that Venice charged for more than once."""
        return [number for number, nanos in self.of.items() if len(nanos) > 1]

    async def disagreements(self, database, answered):
        """Return a line for each call that was charged twice or does not have exactly one entry,
        and for each answered call (given by number) whose recorded cost is not what Venice
        charged."""
        self.collect()
        rows = await database.fetch(
            "SELECT request_id, kind, cost_nanos FROM public.ledger_entries"
        )
        entries, net = Counter(), Counter()
        for row in rows:
            entries[row["request_id"]] += row["kind"] == "call"
            net[row["request_id"]] += row["cost_nanos"] or 0
        problems = [f"{name}: {count} entries" for name, count in entries.items() if count != 1]
        problems += [f"{request_id(number)}: charged twice" for number in self.charged_twice]
        problems += [
            f"{request_id(number)}: charged, and in no entry"
            for number in self.of
            if not entries[request_id(number)]
        ]
        for number in answered:
            charged, booked = sum(self.of.get(number, ())), net[request_id(number)]
            if charged != booked:
                problems.append(f"{request_id(number)}: answered for {charged}, booked at {booked}")
        return problems
