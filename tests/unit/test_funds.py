"""How long the balance at Venice lasts."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from service.reports.funds import funds_of
from service.upstream import StoredKey


def key(usd, diem=None, status="active", organization_id=None):
    """Return a key at Venice with this balance."""
    return StoredKey(
        id=uuid4(),
        name="key",
        organization_id=organization_id,
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
    """Keys may share an account, so their balances are not added. Those of a disabled key and of a
    key of one organization do not count."""
    others = [key("99", status="disabled"), key("50", organization_id=uuid4())]
    funds = funds_of([key("10", "2"), key("7"), key(None), *others], "6")

    assert funds.largest_usd == 12
    assert funds.burn_an_hour_usd == Decimal("0.25")
    assert funds.hours_left == 48


@pytest.mark.parametrize(
    ("keys", "spent_usd"), [([key(None)], "6"), ([key("10")], "0"), ([key("10")], None)]
)
def test_nobody_knows_how_long(keys, spent_usd):
    """Without a balance, or without spending, there is no end to tell."""
    assert funds_of(keys, spent_usd).hours_left is None
