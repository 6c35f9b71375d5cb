"""What is kept beside the books and can be lost: refusals, and attempts that did not succeed.

It is recorded in the background, within bounds, and removed by age and number.
"""

from service.derived.recorder import WRITE_EVERY_S, Recorder
from service.derived.records import Attempt, Refusal
from service.derived.refusals import (
    CauseCount,
    RefusalFilter,
    RefusalLine,
    RefusalPage,
    count_by_cause,
    list_refusals,
)
from service.derived.retention import trim

__all__ = [
    "WRITE_EVERY_S",
    "Attempt",
    "CauseCount",
    "Recorder",
    "Refusal",
    "RefusalFilter",
    "RefusalLine",
    "RefusalPage",
    "count_by_cause",
    "list_refusals",
    "trim",
]
