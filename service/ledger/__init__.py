"""The books: a hold for each admitted call, and one insert-only entry when it is settled.

``admit`` before the call, ``settle`` on every exit. An entry's id is its hold's id, so a call that
is settled twice still has one entry.
"""

from service.ledger.calls import CostSource, Entry, Hold, Ledger, Outcome
from service.ledger.entries import LedgerEntry, list_entries
from service.ledger.partitions import make_partitions

__all__ = [
    "CostSource",
    "Entry",
    "Hold",
    "Ledger",
    "LedgerEntry",
    "Outcome",
    "list_entries",
    "make_partitions",
]
