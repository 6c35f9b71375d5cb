"""What Venice charged for calls that have a number, and whether the ledger says the same."""

import asyncio
from collections import Counter, defaultdict

WATCH_EVERY_S = 2


def marked(number):
    """The number, as it stands in what a call says."""
    return f"#{number}#"


def request_id(number):
    """The request id that the call has to have."""
    return f"call-{number}"


class Charges:
    """What Venice charged, however many calls there are: the sandbox keeps the last 10,000."""

    def __init__(self, upstream):
        self._upstream = upstream
        self._noted = {}
        self.attempts = 0
        self.keys = Counter()
        self.of = defaultdict(list)
        """By number: nano-dollars of each attempt that was charged."""

    async def watch(self):
        """For as long as there are calls."""
        while True:
            self.note()
            await asyncio.sleep(WATCH_EVERY_S)

    def note(self):
        """Take in what has ended since the last time."""
        noted = {}
        for call in self._upstream.calls.to("/chat/completions"):
            if call.finished_at is None:
                continue
            noted[id(call)] = call
            if id(call) not in self._noted:
                self._take(call)
        # Kept until the next time, so that no other call has the id of one of these.
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
        """A line for each call that is charged twice, or has no entry or several; and for each of
        those that were answered, by their numbers, that is not booked at what Venice charged."""
        self.note()
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
