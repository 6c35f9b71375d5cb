"""How long the balance at Venice lasts."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from service.reports.funds import funds_of
from service.upstream import StoredKey


def key(usd, diem=None, status="active"):
    """Return a key at Venice with this balance."""
    return StoredKey(
        id=uuid4(),
        name="key",
        organization_id=None,
        source="database",
        status=status,
        balance_usd=usd,
        balance_diem=diem,
        tier=None,
        last_check=None,
        last_checked_at=None,
        created_at=datetime.now(UTC),
    )


def test_the_largest_balance_counts():
    """Keys may share an account, so their balances are not added; a disabled key has none."""
    funds = funds_of([key("10", "2"), key("7"), key("99", status="disabled"), key(None)], "6")

    assert funds.largest_usd == 12
    assert funds.burn_an_hour_usd == Decimal("0.25")
    assert funds.hours_left == 48


@pytest.mark.parametrize(
    ("keys", "spent_usd"), [([key(None)], "6"), ([key("10")], "0"), ([key("10")], None)]
)
def test_nobody_knows_how_long(keys, spent_usd):
    """Without a balance, or without spending, there is no end to tell."""
    assert funds_of(keys, spent_usd).hours_left is None
