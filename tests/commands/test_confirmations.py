"""What cannot be undone is asked for, or confirmed with --yes."""

import pytest
from command_line import RIALTO, on_terminal, open_terminal, rialto, run


@pytest.fixture
async def acme(command):
    """An organization with a key and a limit."""
    (organization,) = await rialto("organizations", "create", "acme", **command)
    one = ("--organization", "acme")
    (key,) = await rialto("keys", "create", *one, "--name", "app", **command)
    (limit,) = await rialto("limits", "create", *one, "--usd", "5/month", **command)
    return {"organization": organization["id"], "key": key["id"], "limit": limit["id"]}


DANGEROUS = [
    ("keys", "revoke", "app"),
    ("keys", "rotate", "app", "--overlap", "0s"),
    ("organizations", "suspend", "acme"),
    ("organizations", "delete", "acme"),
    ("limits", "delete", "{limit}"),
]


def filled(arguments, acme):
    """The arguments with the ids of what there is."""
    return [argument.format(**acme) for argument in arguments]


async def state(command):
    """What the commands could have changed."""
    organizations = await rialto("organizations", "list", **command)
    keys = await rialto("keys", "list", **command)
    limits = await rialto("limits", "list", "--organization", organizations[0]["id"], **command)
    return organizations, keys, limits


@pytest.mark.parametrize("arguments", DANGEROUS, ids=" ".join)
async def test_without_a_terminal_it_is_refused(command, acme, arguments):
    """Without a terminal and without --yes nothing is changed, and the error names --yes; with it
    the command works."""
    before = await state(command)
    status, out, err = await run(*RIALTO, *filled(arguments, acme), **command)
    assert (status, out) == (2, "")
    assert "repeat it with --yes" in err
    assert await state(command) == before

    assert await rialto(*filled(arguments, acme), "--yes", **command)
    assert await state(command) != before


@pytest.mark.parametrize("answer", ["n\n", "\n"])
async def test_a_no_changes_nothing(command, acme, answer):
    """The question names what would happen; no is the default."""
    before = await state(command)
    terminal = await open_terminal(*RIALTO, "keys", "revoke", "app", **command)
    await terminal.shows("[y/N]")
    terminal.type(answer)
    shown = await terminal.ended()

    assert shown.status == 1
    assert "Revoke key 'app' (rk_" in shown.text
    assert "cannot be undone" in shown.text
    assert await state(command) == before


async def test_ctrl_c_is_a_no(command, acme):
    """Ctrl-C at the question ends the command at once, and nothing is changed."""
    before = await state(command)
    terminal = await open_terminal(*RIALTO, "keys", "revoke", "app", **command)
    await terminal.shows("[y/N]")
    terminal.type("\x03")
    shown = await terminal.ended()

    assert shown.status == 1
    assert "Traceback" not in shown.text
    assert await state(command) == before


async def test_a_yes_does_it(command, acme):
    """After a yes it is done and shown."""
    shown = await on_terminal("keys", "revoke", "app", types="y\n", **command)

    assert shown.status == 0, shown.text
    (key,) = await rialto("keys", "list", **command)
    assert key["revoked_at"]
