"""Shares of resources that are limited in a process."""

from uuid import UUID

import pytest

from service.shares import Share, Shares

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
KEYS = [UUID(int=number) for number in range(10, 20)]


def taken(shares, organization, key):
    """Take amounts one by one; return how many were granted."""
    count = 0
    while Share(shares, organization, key).grow(1):
        count += 1
    return count


def test_a_key_gets_a_third_and_an_organization_half():
    """Alone, a key gets a third and an organization half of the whole."""
    shares = Shares(1200)

    assert taken(shares, A, KEYS[0]) == 400
    assert [taken(shares, A, key) for key in KEYS[1:]] == [200, 0, 0, 0, 0, 0, 0, 0, 0]


def test_something_is_always_left_for_others():
    """A newcomer gets something although many others have taken their full shares."""
    shares = Shares(1200)
    for key in KEYS[:2]:
        taken(shares, A, key)
    for key in KEYS[2:4]:
        taken(shares, B, key)

    assert taken(shares, C, KEYS[4]) == 100


def test_a_closed_share_is_free_again():
    """Closing a share frees it once, however often it is closed."""
    shares = Shares(9)
    with Share(shares, A, KEYS[0]) as share:
        assert share.grow(3)
        assert not share.grow(1)
        share.close()
        assert share.grow(3)
    share.close()

    assert (shares.held(A), shares.held(KEYS[0])) == (0, 0)
    assert taken(shares, B, KEYS[1]) == 3


@pytest.mark.parametrize("amount", [4, 10, 10**12])
def test_an_amount_that_does_not_fit_takes_nothing(amount):
    """An amount is granted as a whole or not at all."""
    shares = Shares(9)

    assert not Share(shares, A, KEYS[0]).grow(amount)
    assert Share(shares, A, KEYS[0]).grow(3)


def test_nothing_is_kept_of_those_who_hold_nothing():
    """Holders are forgotten when they have returned everything, or took an amount of zero."""
    shares = Shares(9)
    with Share(shares, A, KEYS[0]) as one, Share(shares, A, KEYS[1]) as other:
        assert one.grow(1)
        assert other.grow(0)
        assert shares.amounts == {A: 1, KEYS[0]: 1}

    assert (shares.amounts, shares.free) == ({}, 9)


def test_an_organization_that_is_its_own_key_returns_what_it_took():
    """The operator has no key of its own: its organization stands for one."""
    shares = Shares(9)
    with Share(shares, A, A) as share:
        assert share.grow(1)
        assert share.grow(1)

    assert (shares.amounts, shares.free) == ({}, 9)
