"""What there is only so much of is shared."""

from uuid import UUID

import pytest

from service.shares import Shares

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
KEYS = [UUID(int=number) for number in range(10, 20)]


def taken(shares, organization, key):
    """How much they get, one by one."""
    count = 0
    while shares.take(organization, key, 1):
        count += 1
    return count


def test_a_key_gets_a_third_and_an_organization_half():
    """When nobody else wants anything."""
    shares = Shares(1200)

    assert taken(shares, A, KEYS[0]) == 400
    assert [taken(shares, A, key) for key in KEYS[1:]] == [200, 0, 0, 0, 0, 0, 0, 0, 0]


def test_there_is_always_something_left_for_others():
    """However many have taken all that they may."""
    shares = Shares(1200)
    for key in KEYS[:2]:
        taken(shares, A, key)
    for key in KEYS[2:4]:
        taken(shares, B, key)

    assert taken(shares, C, KEYS[4]) == 100


def test_what_is_given_back_is_free_again():
    """Once, however often a share is closed."""
    shares = Shares(9)
    with shares.open(A, KEYS[0]) as share:
        assert share.grow(3)
        assert not share.grow(1)
        share.close()
        assert share.grow(3)
    share.close()

    assert (shares.held(A), shares.held(KEYS[0])) == (0, 0)
    assert taken(shares, B, KEYS[1]) == 3


@pytest.mark.parametrize("amount", [4, 10, 10**12])
def test_too_much_at_once_is_nothing(amount):
    """It is all or nothing."""
    shares = Shares(9)

    assert not shares.take(A, KEYS[0], amount)
    assert shares.take(A, KEYS[0], 3)
