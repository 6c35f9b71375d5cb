"""What is computed once for each caller."""

import uuid

import msgspec

from service.accounts import Caller


def test_the_pseudonym_of_unnamed_end_users_follows_the_key():
    """All end users whom a caller does not name share the pseudonym of its key, which changes with
    the key and with its secret."""
    caller = Caller(
        organization_id=uuid.UUID(int=1),
        api_key_id=uuid.UUID(int=2),
        role="inference",
        pseudonym_key=b"a" * 32,
    )
    other_key = msgspec.structs.replace(caller, api_key_id=uuid.UUID(int=3))
    other_secret = msgspec.structs.replace(caller, pseudonym_key=b"b" * 32)

    callers = (caller, other_key, other_secret)
    assert [it.unnamed_pseudonym for it in callers] == [it.pseudonym("") for it in callers]
    assert len({it.unnamed_pseudonym for it in callers}) == 3
