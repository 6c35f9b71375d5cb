"""A mistake is answered with what was meant and what to do."""

import pytest
from command_line import RIALTO, rialto, run


@pytest.fixture
async def acme(command, service):
    """An organization, with a service that knows Venice's models."""
    (organization,) = await rialto("organizations", "create", "acme", **command)
    await rialto("keys", "create", "--organization", "acme", "--name", "app", **command)
    return organization


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("organisations",), "Did you mean 'organizations'?"),
        (("keys", "lst"), "Did you mean 'list'?"),
        (("keys", "list", "--organisation", "acme"), "Did you mean --organization?"),
        (("usage", "--group-by", "modell"), "'model'"),
    ],
)
async def test_a_misspelt_word(tmp_path, arguments, meant):
    """A misspelt command, option or choice is answered with those that are meant."""
    status, out, err = await run(*RIALTO, *arguments, directory=tmp_path)

    assert (status, out) == (2, "")
    assert meant in err or meant.replace("--organization", "'--organization'") in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "list", "--organization", "acmee"),
        ("keys", "create", "--organization", "acmee", "--name", "x"),
        ("limits", "list", "--organization", "acmee"),
        ("limits", "create", "--organization", "acmee", "--usd", "5/month"),
        ("ledger", "list", "--organization", "acmee"),
        ("ledger", "export", "--organization", "acmee"),
        ("usage", "--organization", "acmee"),
        ("calls", "--organization", "acmee"),
        ("refusals", "--organization", "acmee"),
        ("audit", "--organization", "acmee"),
        ("audit-events", "--organization", "acmee"),
        ("models", "list", "--organization", "acmee"),
        ("organizations", "show", "acmee"),
    ],
    ids=" ".join,
)
async def test_an_unknown_organization_is_an_error(command, acme, arguments):
    """Every command refuses an organization that is not there, and names a similar one."""
    status, out, err = await run(*RIALTO, *arguments, **command)

    assert (status, out) == (1, "")
    assert err == 'not_found: There is no organization "acmee". Did you mean "acme"?\n'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("keys", "show", "ap"), 'There is no API key "ap". Did you mean "app"?'),
        (
            ("keys", "create", "--organization", "acme", "--name", "x", "--model", "nosuch"),
            "models: ",
        ),
        (
            ("limits", "create", "--organization", "acme", "--usd", "5"),
            "as 5/month",
        ),
        (("usage", "--from", "yesterday"), "must be a day, as 2026-11-01"),
        (("usage", "--from", "2026-11-02", "--to", "2026-11-01"), "must be before --to"),
        (("usage", "--end-user", "alice"), "Give --organization too"),
        (("upstream-keys", "disable", "enviroment"), "There is no such upstream key."),
        (("requests", "show", "nothing"), "There is no call or refusal with this id."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_a_wrong_value(command, acme, arguments, text):
    """A wrong value is one clear error, without a traceback, and nothing is made."""
    status, out, err = await run(*RIALTO, *arguments, **command)

    assert status in (1, 2)
    assert out == ""
    assert text in err
    assert "Traceback" not in err
    assert "internal_error" not in err
    assert len(await rialto("keys", "list", **command)) == 1


async def test_days_and_times_are_both_accepted(command, acme):
    """A period is of days or of times, and a key may expire on a day."""
    for start in ("2026-11-01", "2026-11-01T08:00:00Z"):
        (report,) = await rialto("usage", "--from", start, **command)
        assert report["start"].startswith(start.removesuffix("Z"))
    one = ("--organization", "acme", "--name", "until")
    (key,) = await rialto("keys", "create", *one, "--expires-at", "2030-01-01", **command)
    assert key["expires_at"] == "2030-01-01T00:00:00Z"


async def test_a_limit_is_raised_for_a_time(command, acme):
    """--raise-to with --until raises the ceiling, and --end-raise takes it back."""
    one = ("--organization", "acme")
    (limit,) = await rialto("limits", "create", *one, "--usd", "5/month", **command)
    raised = ("--raise-to", "9", "--until", "2030-01-01")
    (changed,) = await rialto("limits", "update", limit["id"], *raised, **command)
    assert (changed["ceiling"], changed["raised_until"]) == ("9.00", "2030-01-01T00:00:00Z")
    (changed,) = await rialto("limits", "update", limit["id"], "--end-raise", **command)
    assert (changed["ceiling"], changed["raised_until"]) == ("5.00", None)
    status, _, err = await run(
        *RIALTO, "limits", "update", limit["id"], "--raise-to", "9", **command
    )
    assert (status, "Give --raise-to and --until together" in err) == (2, True)


async def test_names_and_prefixes_stand_for_ids(command, acme):
    """An organization is found by its name, and a key by its name or prefix."""
    (by_name,) = await rialto("keys", "show", "app", **command)
    (by_prefix,) = await rialto("keys", "show", by_name["prefix"], **command)
    (by_id,) = await rialto("keys", "show", by_name["id"], **command)
    assert by_name == by_prefix == by_id
    (found,) = await rialto("organizations", "show", "acme", **command)
    assert found["id"] == acme["id"]


async def test_an_empty_directory_stays_empty(tmp_path):
    """Before the first start a command states what to run, and makes nothing."""
    for arguments in (("organizations", "list"), ("status",), ("upstream-keys", "list")):
        status, out, err = await run(
            *RIALTO, *arguments, directory=tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None
        )
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "scripts/run.sh" in err
    assert list(tmp_path.iterdir()) == []


async def test_causes_are_counted_without_filters(tmp_path):
    """Causes are those of all refusals, so a filter that would change nothing is refused."""
    arguments = ("refusals", "--causes", "--status", "402")
    status, out, err = await run(*RIALTO, *arguments, directory=tmp_path)

    assert (status, out) == (2, "")
    assert "leave out" in err
