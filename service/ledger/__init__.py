"""The ledger: limits, a hold for each admitted call, and one insert-only entry when it is settled.

``admit`` runs before the call and ``settle`` on every exit, both in batches. An entry has its
hold's id, so a call that is settled twice still has one entry. ``sweep`` settles the calls of
processes that died.
"""

from service.ledger.alerts import Alert, announce
from service.ledger.calls import Ledger
from service.ledger.credits import NewCredit, credit, refund
from service.ledger.end_users import sweep_end_users
from service.ledger.entries import (
    EntryKind,
    Job,
    LedgerEntry,
    QueuedJob,
    find_entry,
    find_job,
    find_owner,
    list_jobs,
)
from service.ledger.exports import CONTENT_TYPES, ExportFormat, count_entries, export
from service.ledger.leases import count_in_flight, sweep
from service.ledger.limits import (
    HAS_LIMITS,
    MAX_CEILING_COUNT,
    MAX_CEILING_NANOS,
    Limit,
    LimitChange,
    NewLimit,
    Unit,
    change_limit,
    create_limit,
    delete_limit,
    end_limits,
    find_limit,
    left_of,
    list_binding,
    list_limits,
    read_limits,
)
from service.ledger.partitions import make_partitions
from service.ledger.proofs import Fault, prove, repair
from service.ledger.records import (
    Admission,
    CostSource,
    Entry,
    Hold,
    Outcome,
    Rate,
    Rates,
    Sent,
)
from service.ledger.refusals import has_room_for, is_too_large
from service.ledger.retention import expired, retain

__all__ = [
    "CONTENT_TYPES",
    "HAS_LIMITS",
    "MAX_CEILING_COUNT",
    "MAX_CEILING_NANOS",
    "Admission",
    "Alert",
    "CostSource",
    "Entry",
    "EntryKind",
    "ExportFormat",
    "Fault",
    "Hold",
    "Job",
    "Ledger",
    "LedgerEntry",
    "Limit",
    "LimitChange",
    "NewCredit",
    "NewLimit",
    "Outcome",
    "QueuedJob",
    "Rate",
    "Rates",
    "Sent",
    "Unit",
    "announce",
    "change_limit",
    "count_entries",
    "count_in_flight",
    "create_limit",
    "credit",
    "delete_limit",
    "end_limits",
    "expired",
    "export",
    "find_entry",
    "find_job",
    "find_limit",
    "find_owner",
    "has_room_for",
    "is_too_large",
    "left_of",
    "list_binding",
    "list_jobs",
    "list_limits",
    "make_partitions",
    "prove",
    "read_limits",
    "refund",
    "repair",
    "retain",
    "sweep",
    "sweep_end_users",
]
