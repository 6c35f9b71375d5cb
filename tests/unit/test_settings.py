"""Settings: each rule, all mistakes in one report, and no secret in any output."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import settings
from service.errors import SettingsError
from service.settings.address import AddressError, is_loopback, parse_database_url
from service.settings.page import markdown

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Pa55-w0rd-nobody-may-see"
PRODUCTION = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": f"postgresql://rialto:{SECRET}@postgres.internal:5432/rialto",
    "OPERATOR_KEY": "o" * 32,
    "ENCRYPTION_KEY": "e" * 32,
    "VENICE_API_KEY": "v" * 40,
}


@pytest.fixture
def environ(monkeypatch, tmp_path):
    """An empty environment, and a directory without a .env file."""
    values = {}
    monkeypatch.setattr(os, "environ", values)
    monkeypatch.chdir(tmp_path)
    return values


def mistakes(environ, **values):
    """Return the mistakes that load() reports for an environment."""
    environ.update(values)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    return caught.value.mistakes


def test_production_takes_its_required_settings(environ):
    """Production starts with the five required variables."""
    environ.update(PRODUCTION)

    loaded = settings.load()

    assert loaded.is_production
    assert loaded.database.host == "postgres.internal"
    assert (loaded.database_pool_min_size, loaded.database_pool_max_size) == (5, 5)
    assert loaded.startup_database_timeout_s == 600
    assert loaded.host == ""


def test_railway_means_production(environ):
    """RAILWAY_ENVIRONMENT_NAME means production, whatever ENVIRONMENT is."""
    environ.update(PRODUCTION, ENVIRONMENT="development", RAILWAY_ENVIRONMENT_NAME="staging")

    assert settings.load().is_production


def test_production_names_every_missing_setting(environ):
    """Production reports all missing variables at once, one per line."""
    errors = mistakes(environ, ENVIRONMENT="production")

    names = [line.partition(":")[0] for line in errors]
    assert names == ["DATABASE_URL", "OPERATOR_KEY", "ENCRYPTION_KEY", "VENICE_API_KEY"]


def test_an_empty_variable_is_a_missing_one(environ):
    """An empty variable counts as missing."""
    errors = mistakes(environ, **{**PRODUCTION, "VENICE_API_KEY": ""})

    assert [line.partition(":")[0] for line in errors] == ["VENICE_API_KEY"]


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{} \r\n", "\u00a0{}"])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("VENICE_API_KEY", "venice_api_key"),
        ("OPERATOR_KEY", "operator_key"),
        ("VENICE_BASE_URL", "venice_base_url"),
    ],
)
def test_surrounding_white_space_is_stripped(environ, name, field, around):
    """White space around a value is stripped, so that a trailing line break from a form or a file
    breaks no call."""
    value = PRODUCTION.get(name, "https://venice.example/api/v1")
    environ.update(PRODUCTION, **{name: around.format(value)})

    assert getattr(settings.load(), field) == value


def test_white_space_around_parsed_values_is_stripped(environ):
    """White space around addresses and lists is stripped before they are parsed."""
    environ.update(PRODUCTION)
    plain = settings.load()
    for name in ("DATABASE_URL", "ENCRYPTION_KEY", "LOG_LEVEL", "HOST", "PORT"):
        environ[name] = f" {PRODUCTION.get(name, settings_default(name))} \n"
    environ["ENCRYPTION_KEY"] = f" {'e' * 32} ,\n{'f' * 32}\n"

    loaded = settings.load()

    assert loaded.database == plain.database
    assert loaded.encryption_keys == ("e" * 32, "f" * 32)
    assert (loaded.log_level, loaded.host, loaded.port) == ("info", "", 8080)


def settings_default(name):
    """Return the default of a setting in production."""
    (found,) = (one for one in settings.variables() if one.name == name)
    return found.production


@pytest.mark.parametrize("odd", ["\x00", "\n", "\r", "\x7f", " ", "\u00e9", "\u200b", "\ufeff"])
@pytest.mark.parametrize("name", ["VENICE_API_KEY", "OPERATOR_KEY", "ENCRYPTION_KEY"])
def test_a_secret_that_no_header_can_carry_is_refused(environ, name, odd):
    """A secret that no header can carry is reported at the start by the variable's name, without
    its value."""
    value = PRODUCTION[name]
    errors = mistakes(environ, **{**PRODUCTION, name: f"{value[:20]}{odd}{value[20:]}"})

    assert errors == [f"{name}: must be printable ASCII characters without spaces"]


@pytest.mark.parametrize("odd", ["\x00", "\n", "\r", "\x7f", " ", "\u200b", "\ufeff"])
@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_UNPOOLED_URL", "VENICE_BASE_URL"])
def test_a_broken_address_is_refused(environ, name, odd):
    """An address with a line break inside is refused, because parsers differ in how they treat
    it."""
    value = PRODUCTION.get(name, "https://venice.example/api/v1")
    errors = mistakes(environ, **{**PRODUCTION, name: f"{value[:20]}{odd}{value[20:]}"})

    assert errors == [f"{name}: must not have spaces or control characters"]


def test_dotenv_values_are_stripped(environ, tmp_path):
    """Quoted values in .env are stripped, and checked for characters that no header can carry."""
    environ.update({name: PRODUCTION[name] for name in PRODUCTION if name != "VENICE_API_KEY"})
    (tmp_path / ".env").write_text('VENICE_API_KEY="abc\\n"\n')
    assert settings.load().venice_api_key == "abc"

    del environ["VENICE_API_KEY"]
    (tmp_path / ".env").write_text('VENICE_API_KEY="a\\nc"\n')
    assert [line.partition(":")[0] for line in mistakes(environ)] == ["VENICE_API_KEY"]


@pytest.mark.parametrize("name", ["VENICE_API_KEY", "OPERATOR_KEY", "DATABASE_URL"])
def test_white_space_alone_is_no_value(environ, name):
    """White space alone counts as a missing value."""
    errors = mistakes(environ, **{**PRODUCTION, name: " \n"})

    assert [line.partition(":")[0] for line in errors] == [name]
    assert "required" in errors[0]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"a" * 20 + b" " + b"a" * 20])
def test_a_kept_secret_that_is_damaged_is_refused(environ, tmp_path, content):
    """A kept secret that a full disk truncated is refused instead of being used."""
    (tmp_path / ".rialto").mkdir()
    (tmp_path / ".rialto" / "encryption_key").write_bytes(content)

    (errors,) = mistakes(environ)

    assert errors.startswith("DATA_DIRECTORY: .rialto/encryption_key is damaged")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("VENICE_APIKEY", "VENICE_API_KEY"),
        ("VENICE_KEY", "VENICE_API_KEY"),
        ("VENICE_TOKEN", None),
        ("Database_Url", "DATABASE_URL"),
        ("ENCRYPTION_KEYS", "ENCRYPTION_KEY"),
        ("WEB_CONCURENCY", "WEB_CONCURRENCY"),
        ("LOG_LEVLE", "LOG_LEVEL"),
        ("ENVIROMENT", "ENVIRONMENT"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_misspelled_name_is_reported(environ, tmp_path, name, meant, place):
    """A misspelled name in the environment or in .env is reported without its value."""
    environ.update(PRODUCTION)
    if place == "environment":
        environ[name] = SECRET
    else:
        (tmp_path / ".env").write_text(f"{name}={SECRET}\n")
    settings.load()

    assert list(settings.suspicious_names()) == [name]
    assert settings.suspicious_names()[name] in (meant, None)


def test_other_names_are_ignored(environ):
    """Variables of the platform, the shell and other programs are ignored."""
    environ.update(PRODUCTION)
    for name in (
        "PATH",
        "HOME",
        "HOSTNAME",
        "PYTHONPATH",
        "TMPDIR",
        "DATABASE_PUBLIC_URL",
        "RAILWAY_ENVIRONMENT",
        "RAILWAY_ENVIRONMENT_ID",
        "RAILWAY_DEPLOYMENT_OVERLAP_SECONDS",
        "PROMETHEUS_MULTIPROC_DIR",
        "PGHOST",
    ):
        environ[name] = "x"

    assert settings.suspicious_names() == {}


def test_mistakes_of_all_kinds_are_reported_together(environ):
    """Missing, malformed and contradictory settings are one report."""
    errors = mistakes(
        environ,
        ENVIRONMENT="production",
        DATABASE_URL="postgresql://u:p@localhost/x",
        PORT="http",
        LOG_LEVEL="loud",
        DATABASE_POOL_MIN_SIZE="6",
        OPERATOR_KEY="short",
    )

    names = {line.partition(":")[0] for line in errors}
    assert names == {
        "DATABASE_URL",
        "PORT",
        "LOG_LEVEL",
        "DATABASE_POOL_MIN_SIZE",
        "OPERATOR_KEY",
        "ENCRYPTION_KEY",
        "VENICE_API_KEY",
    }


def test_the_repr_has_no_secrets(environ):
    """The repr of the settings and of their parts has no secret."""
    environ.update(PRODUCTION)

    shown = repr(settings.load()) + str(settings.load().database)

    for name in ("OPERATOR_KEY", "ENCRYPTION_KEY", "VENICE_API_KEY"):
        assert PRODUCTION[name] not in shown
    assert SECRET not in shown


def test_settings_are_frozen(environ):
    """A setting cannot be changed."""
    loaded = settings.load()

    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.port = 1


def test_development_keeps_the_secrets_it_makes(environ, tmp_path):
    """Development creates its keys once, readable by the owner only."""
    first, second = settings.load(), settings.load()

    assert (first.operator_key, first.encryption_keys) == (
        second.operator_key,
        second.encryption_keys,
    )
    assert (tmp_path / ".rialto" / "operator_key").stat().st_mode & 0o777 == 0o600


def test_the_environment_overrides_dotenv(environ, tmp_path):
    """A value of .env is used where the environment has none."""
    (tmp_path / ".env").write_text("PORT=9001\nLOG_LEVEL=debug\n")
    environ["LOG_LEVEL"] = "error"

    loaded = settings.load()

    assert (loaded.port, loaded.log_level) == (9001, "error")


def test_unreadable_lines_of_dotenv(environ, tmp_path):
    """Lines of .env that cannot be parsed are reported by number, without their content."""
    (tmp_path / ".env").write_text(f"PORT=http\n\n# why\n\n{SECRET} 1\nLOG_LEVEL=info\nHOST:x\n")

    errors = mistakes(environ)

    form = "cannot be read; the form is NAME=value"
    assert errors[:2] == [f".env: line 5 {form}", f".env: line 7 {form}"]
    assert [line.partition(":")[0] for line in errors[2:]] == ["PORT"]
    assert SECRET not in str(errors)


@pytest.mark.parametrize("content", [None, b"PORT=\xff\n"], ids=["directory", "not UTF-8"])
def test_an_unreadable_dotenv(environ, tmp_path, content):
    """A .env that is not a text file is a mistake of its own."""
    if content is None:
        (tmp_path / ".env").mkdir()
    else:
        (tmp_path / ".env").write_bytes(content)

    (errors,) = mistakes(environ)

    assert errors.startswith(".env: cannot be read: ")


def test_an_unknown_environment_is_one_mistake(environ):
    """An unknown environment is one mistake: production's requirements are not reported, all other
    mistakes are."""
    url = "postgresql://u:p@localhost/x"

    errors = mistakes(environ, ENVIRONMENT="prod", PORT="http", DATABASE_URL=url)

    assert {line.partition(":")[0] for line in errors} == {"ENVIRONMENT", "PORT"}


def test_a_data_directory_that_is_a_file(environ, tmp_path):
    """A data directory that is a file, or lies below one, is a mistake in the report."""
    (tmp_path / "file").touch()
    for directory in ("file", "file/below"):
        errors = mistakes(environ, DATA_DIRECTORY=directory, PORT="http")
        assert [line.partition(":")[0] for line in errors] == ["PORT", "DATA_DIRECTORY"]
        assert errors[1].endswith("file is not a directory")


def test_a_data_directory_that_cannot_be_written(environ):
    """A data directory that cannot be written is a mistake of DATA_DIRECTORY, also for root."""
    (errors,) = mistakes(environ, DATA_DIRECTORY="/proc/rialto")

    assert errors.startswith("DATA_DIRECTORY: ")


def test_production_ignores_the_data_directory(environ, tmp_path):
    """Production writes no files and does not check the data directory."""
    (tmp_path / "file").touch()
    environ.update(PRODUCTION, DATA_DIRECTORY="file")

    assert settings.load().is_production


@pytest.mark.parametrize("count", ["0", "65", "two"])
def test_processes_are_1_to_64(environ, count):
    """Any number of processes outside 1 to 64 is a mistake that names the variable."""
    (errors,) = mistakes(environ, WEB_CONCURRENCY=count)

    assert errors.startswith("WEB_CONCURRENCY: ")


def test_the_page_has_each_rule(environ):
    """docs/settings.md has the range of each number and every other variable that is read."""
    page = markdown()

    assert "| `PORT` | integer: 0 to 65535 |" in page
    for name in ("ENVIRONMENT", "RAILWAY_ENVIRONMENT_NAME", "RAILWAY_DEPLOYMENT_DRAINING_SECONDS"):
        assert f"| `{name}` |" in page


def test_shutdown_fits_the_platforms_draining_time(environ):
    """On Railway the shutdown's grace period is the draining time less the steps before and after
    it."""
    environ.update(PRODUCTION, RAILWAY_DEPLOYMENT_DRAINING_SECONDS="120")

    assert settings.load().shutdown_timeout_s == 105


def test_encryption_keys_are_a_list(environ):
    """ENCRYPTION_KEY is a list, newest first."""
    environ.update(PRODUCTION, ENCRYPTION_KEY=f"{'n' * 32}, {'o' * 32}")

    assert settings.load().encryption_keys == ("n" * 32, "o" * 32)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
        "localhost.localdomain",
        "ip6-localhost",
        "127.0.0.1",
        "127.1",
        "127.255.255.254",
        "0177.0.0.1",
        "0x7f000001",
        "2130706433",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1]",
        "１２７.0.0.1",
        "%6cocalhost",
        "",
        "%2Fvar%2Frun%2Fpostgresql",
    ],
)
def test_production_refuses_this_machine_in_every_spelling(environ, host):
    """A database URL of this machine is refused in production, without showing a password."""
    url = f"postgresql://rialto:{SECRET}@{host}:5432/rialto"

    (errors,) = mistakes(environ, **{**PRODUCTION, "DATABASE_URL": url})

    assert errors.startswith("DATABASE_URL: points at this machine")
    assert "postgresql://USER:PASSWORD@HOST" in errors
    assert SECRET not in errors


@pytest.mark.parametrize(
    "query",
    ["host=localhost", "host=127.0.0.1", "host=/var/run/postgresql", "host=%3A%3A1", "host=@x"],
)
def test_production_checks_the_host_parameter(environ, query):
    """The host parameter overrides the URL's host, so it must follow the same rule."""
    url = f"postgresql://rialto:{SECRET}@postgres.internal/rialto?{query}"

    (errors,) = mistakes(environ, **{**PRODUCTION, "DATABASE_URL": url})

    assert "points at this machine" in errors
    assert SECRET not in errors


@pytest.mark.parametrize("host", ["postgres.internal,localhost", "localhost,postgres.internal"])
def test_a_list_of_hosts_is_refused(environ, host):
    """A list of hosts, which could hide a loopback host, is refused."""
    url = f"postgresql://rialto:{SECRET}@{host}/rialto"

    (errors,) = mistakes(environ, **{**PRODUCTION, "DATABASE_URL": url})

    assert "list of hosts" in errors
    assert SECRET not in errors


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_UNPOOLED_URL"])
def test_both_urls_follow_the_rule(environ, name):
    """The rule applies to DATABASE_URL and DATABASE_UNPOOLED_URL."""
    (errors,) = mistakes(environ, **{**PRODUCTION, name: "postgresql://u:p@127.1/x"})

    assert errors.startswith(f"{name}: points at this machine")


@pytest.mark.parametrize(
    "host", ["postgres.railway.internal", "10.0.0.7", "fd12::1", "localhost.example.com"]
)
def test_other_hosts_pass(host):
    """The rule accepts every host that is another machine."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("sqlite:///rialto.db", "SQLite is not supported"),
        ("mysql://u:p@h/x", "must start with postgresql://"),
        (f"postgresql://u:{SECRET}@h:port/x", "cannot be read as a URL"),
        (f"postgresql://u:{SECRET}@h/x?pg_bouncer=1", "is not supported"),
        (f"postgresql://u:{SECRET}@h/x?sslmode=maybe", "must be one of disable"),
        (f"postgresql://u:{SECRET}@h/x?sslmode=require&sslmode=disable", "repeats"),
        (f"postgresql://u:{SECRET}@h", "must name a user and a database"),
        ("postgresql://h/x", "must name a user and a database"),
    ],
)
def test_a_bad_url_is_reported_with_its_rule(url, rule):
    """The error names the rule and shows neither the URL nor the password."""
    with pytest.raises(AddressError) as caught:
        parse_database_url(url, production=True)

    assert rule in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "password", ["p@ss", "a/b", "c:d", "50%", "e?f", "g#h", "i j", "k[l]", "ü"]
)
def test_a_password_may_hold_anything(password):
    """Special characters in a password, percent-encoded, arrive unchanged."""
    from urllib.parse import quote  # noqa: PLC0415

    url = f"postgres://user:{quote(password, safe='')}@db.internal/x?sslmode=require"

    assert parse_database_url(url, production=True).password == password


def test_harmless_parameters_are_dropped():
    """Parameters that libpq knows and the server would reject are removed."""
    address = parse_database_url(
        "postgresql://u:p@[fd12::1]:6432/x?connect_timeout=10&channel_binding=prefer",
        production=True,
    )

    assert (address.host, address.port) == ("fd12::1", 6432)


def test_a_socket_is_fine_in_development():
    """Development may use a database's socket directory."""
    address = parse_database_url("postgresql://u@/x?host=/tmp/pg", production=False)

    assert address.host == "/tmp/pg"


def started_badly(directory, **variables):
    """A production start in an empty environment but for the variables."""
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "ENVIRONMENT": "production"}
    return subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=directory,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("dotenv", [None, b"DATABSE_UR=x\n", b"\xff"])
def test_a_missing_setting_that_is_misspelt_is_named(tmp_path, dotenv):
    """Where the name stands makes no difference; a file that cannot be read hides nothing else."""
    if dotenv is not None:
        (tmp_path / ".env").write_bytes(dotenv)

    run = started_badly(tmp_path, DATABSE_URL="postgresql://nobody@nowhere/x")

    assert run.returncode == 78
    assert "settings: DATABASE_URL: " in run.stderr
    assert "settings: DATABSE_URL: is not a setting. Did you mean DATABASE_URL?" in run.stderr
    assert ("DATABSE_UR: is not a setting" in run.stderr) == (dotenv == b"DATABSE_UR=x\n")
    assert "nowhere" not in run.stderr


def test_bad_settings_end_the_process_before_anything_opens(tmp_path):
    """With wrong settings python -m service prints each mistake on a line, exits with 78 and
    creates no file."""
    run = started_badly(tmp_path)

    assert run.returncode == 78
    lines = run.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines[:4]] == [
        "DATABASE_URL",
        "OPERATOR_KEY",
        "ENCRYPTION_KEY",
        "VENICE_API_KEY",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["PORT", "WATCHDOG_POOL_SECONDS"])
@pytest.mark.parametrize("text", ["8_080", "8 0", "+80", "８０", "1e3", "inf", "nan", "0x50"])
def test_numbers_are_digits(environ, name, text):
    """Numbers that only Python would accept are a mistake that names the variable."""
    assert mistakes(environ, **{name: text})[0].startswith(f"{name}: must be a")


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "/*",
        "new",
        "/new/",
        "/new//x",
        "/new/*/x",
        "/new*",
        "/..",
        "/new/../billing",
        "/new?x",
        "/n\u00e9w",
        "/billing",
        "/billing/*",
        "/BILLING/*",
        "/api_keys",
        "/new/api_keys",
        "/user",
        "/keys/*",
        "/x402/top-up",
        "/new,,/other",
    ],
)
def test_invalid_open_paths(environ, text):
    """An invalid path is a mistake that names the variable."""
    (errors,) = mistakes(environ, VENICE_OTHER_PATHS=text)
    assert errors.startswith("VENICE_OTHER_PATHS: must")


def test_open_paths_keep_their_order(environ):
    """Opened paths keep their order, each once."""
    assert settings.load().venice_other_paths == ()
    environ["VENICE_OTHER_PATHS"] = " /new/*, /x/y.z ,/new/*"
    assert settings.load().venice_other_paths == ("/new/*", "/x/y.z")


@pytest.mark.parametrize(
    "url",
    [
        "https://[::1",
        "https://",
        "https://a b/api/v1",
        "https://api.venice.ai:port/api/v1",
        "https://api.venice.ai:99999/api/v1",
        "https://user:pass@api.venice.ai/api/v1",
        "https://api.venice.ai@evil.example/api/v1",
        "https://api.venice.ai/api/v1?x=",
        "https://api.venice.ai/api/v1#x",
        "https://api..venice.ai/api/v1",
        "https://b\u00fccher.example/api/v1",
        "https://api.venice.ai/\u00e9",
        "api.venice.ai",
    ],
)
def test_venices_address_is_a_plain_url(environ, url):
    """An address of Venice that another parser would read differently is refused."""
    (errors,) = mistakes(environ, VENICE_BASE_URL=url)
    assert errors.startswith("VENICE_BASE_URL: must")
    assert "pass" not in errors
