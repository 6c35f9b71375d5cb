"""What callers learn when a limit refuses their call."""

from collections.abc import Mapping
from typing import Any, Final

from service import money
from service.errors import CallTooLarge, LimitExceeded, RateLimited, ServiceError
from service.ledger.records import Rates

MINUTE_S: Final = 60
SCOPES: Final = {"organization": "organization", "api_key": "API key", "end_user": "end user"}
UNITS: Final = {"usd": "USD", "concurrency": "concurrent calls"}
"""The names of units that are not their own names."""
PERIODS: Final = {None: "", "hour": " an hour", "lifetime": " in total"}
"""The words for periods that are not "a" and their own names."""


def refusal(row: Any) -> LimitExceeded | RateLimited:
    """Build the error for a refused call, with the numbers that prove it."""
    verdict = row["verdict"]
    limit = {
        "id": str(row["limit_id"]),
        **{name: row[name] for name in ("scope", "unit", "period", "model")},
        **{name: amount(row["unit"], row[name]) for name in ("ceiling", "used", "held", "needed")},
        "resets_at": row["resets_at"],
    }
    name = f"the {SCOPES[row['scope']]}'s limit of {describe(row)}"
    if verdict == "price_unknown":
        return LimitExceeded(
            f"The model has no known price, so {name} cannot admit the call.",
            code=verdict,
            limit=limit,
        )
    text = (
        f"This call needs {_need(row)}, but {name} has {limit['used']} used and {limit['held']}"
        " held."
    )
    rates = Rates.of(row)
    if verdict == "limit_exceeded":
        return LimitExceeded(text, limit=limit, rates=rates)
    if row["unit"] != "usd" and row["needed"] > row["ceiling"]:
        return CallTooLarge(text, limit=limit, rates=rates)
    retry_after_s = room_in_s = row["retry_after_s"]
    if retry_after_s is not None and row["period"] == "minute":
        # Claude Code gives up above a minute. A caller that retries then waits for the remainder in
        # Ledger.wait_for_room().
        retry_after_s = min(retry_after_s, MINUTE_S)
    error = RateLimited(text, code=verdict, retry_after_s=retry_after_s, limit=limit, rates=rates)
    error.room_in_s = room_in_s
    return error


def has_room_within(error: ServiceError, wait_s: float) -> bool:
    """Return whether a per-minute limit refused the call but has room within this time."""
    if not isinstance(error, RateLimited) or error.room_in_s is None:
        return False
    return error.room_in_s <= wait_s and (error.limit or {}).get("period") == "minute"


def is_too_large(error: ServiceError) -> bool:
    """Return whether a smaller call may pass the limit: a money limit, or tokens above the
    ceiling."""
    if error.limit is None or error.code == "price_unknown":
        return False
    return isinstance(error, LimitExceeded) or (
        isinstance(error, CallTooLarge) and error.limit["unit"] == "tokens"
    )


def has_room_for(error: ServiceError, nanos: int | None, tokens: int | None) -> bool:
    """Return whether the limit that refused a call for good has room for this bound, at least once
    other calls end."""
    limit = error.limit
    if limit is None or not error.is_final:
        return False
    needed = {"usd": nanos, "tokens": tokens}.get(str(limit["unit"]))
    if needed is None:
        return False
    ceiling, used = (_count(limit, name) for name in ("ceiling", "used"))
    # A call above the ceiling is refused whatever is used, which may be free again in a minute.
    return needed <= ceiling - (0 if isinstance(error, CallTooLarge) else used)


def _count(limit: Mapping[str, Any], name: str) -> int:
    """The number of a refusal, in nano-dollars or tokens."""
    return money.parse_usd(limit[name]) if limit["unit"] == "usd" else int(limit[name])


def amount(unit: str, count: int | None) -> str | int | None:
    """Format money as a decimal string of US dollars; return other units unchanged."""
    return money.format_usd(count) if unit == "usd" and count is not None else count


def _need(row: Any) -> str:
    """Describe what a call needs of a limit: ``up to 0.25 USD``, ``1 request``."""
    unit, needed = UNITS.get(row["unit"], row["unit"]), amount(row["unit"], row["needed"])
    return f"1 {unit.removesuffix('s')}" if needed == 1 else f"up to {needed} {unit}"


def describe(row: Any) -> str:
    """Describe a limit: ``5.00 USD a month for llama-3.3-70b``."""
    unit = UNITS.get(row["unit"], row["unit"])
    period = PERIODS.get(row["period"], f" a {row['period']}")
    model = f" for {row['model']}" if row["model"] else ""
    return f"{amount(row['unit'], row['ceiling'])} {unit}{period}{model}"
