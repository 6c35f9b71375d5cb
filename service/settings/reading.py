"""Reads the settings from the environment and `.env`, and checks them together.

Mistakes are collected, each as one line, and no line shows a secret.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Final, cast

from environs import Env, EnvValidationError

from service.errors import SettingsError
from service.settings import data_directory, dotenv_file
from service.settings.data_directory import (
    ENCRYPTION_KEY_FILE,
    OPERATOR_KEY_FILE,
    SECRET_TEXT,
    kept_secret,
)
from service.settings.rules import Environment, add_database_parser
from service.settings.settings import REQUIRED, SURROUNDINGS, Settings, Variable, variables

EX_CONFIG: Final = 78
"""Exit status of a configuration error, from sysexits.h."""


def load(dotenv: Path = Path(".env"), *, makes_secrets: bool = True, **defaults: Any) -> Settings:
    """The settings of this process, from the environment and, below it, a ``.env`` file.
    ``defaults`` replace those of fields of :class:`Settings`. Without ``makes_secrets``, secrets
    that development would make stay None where it has no database of its own to use them with.

    :raises SettingsError: with every mistake found, one line each.
    """
    env = Env(eager=False)
    mistakes = dotenv_file.read(env, dotenv)
    environment = _environment(env, mistakes)
    values = _values(env, environment, defaults, mistakes)
    mistakes += _joint_mistakes(values, environment)
    if mistakes or environment is None:
        raise SettingsError(mistakes)
    if environment is Environment.DEVELOPMENT and (makes_secrets or _has_database(values)):
        _add_kept_secrets(values)
    return Settings(environment=environment, **values)


def _values(
    env: Env, environment: Environment | None, defaults: dict[str, Any], mistakes: list[str]
) -> dict[str, Any]:
    """The value of each field but the environment; None where it is a mistake."""
    add_database_parser(env, environment)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        if "variable" in field.metadata:
            variable = field.metadata["variable"]
            if field.name in defaults:
                default = defaults[field.name]
                variable = dataclasses.replace(variable, development=default, production=default)
            values[field.name] = _read(env, variable, environment, mistakes)
    _use_platform_draining_time(env, values)
    try:
        env.seal()
    except EnvValidationError as error:
        by_name = cast("dict[str, list[str]]", error.error_messages)
        for name, messages in by_name.items():
            mistakes += [f"{name}: {message}" for message in messages]
    return values


def _joint_mistakes(values: dict[str, Any], environment: Environment | None) -> list[str]:
    """Mistakes in what several settings mean together, or in the files that they name."""
    mistakes = []
    low, high = values["database_pool_min_size"], values["database_pool_max_size"]
    if isinstance(low, int) and isinstance(high, int) and low > high:
        mistakes.append("DATABASE_POOL_MIN_SIZE: must not be above DATABASE_POOL_MAX_SIZE")
    if environment is Environment.DEVELOPMENT:
        mistakes += data_directory.mistakes(Path(values["data_directory"]))
    return mistakes


def _has_database(values: dict[str, Any]) -> bool:
    """Whether there is a database to use the secrets with."""
    return values["database"] is not None or data_directory.has_database(
        Path(values["data_directory"])
    )


def _add_kept_secrets(values: dict[str, Any]) -> None:
    """Development makes the secrets that are not set, and keeps them in files."""
    directory = Path(values["data_directory"])
    values["operator_key"] = values["operator_key"] or kept_secret(directory / OPERATOR_KEY_FILE)
    values["encryption_keys"] = values["encryption_keys"] or (
        kept_secret(directory / ENCRYPTION_KEY_FILE),
    )


def suspicious_names(dotenv: Path = Path(".env")) -> dict[str, str | None]:
    """Variables that look like a misspelt setting, with the name that may be meant."""
    # Railway has many names that are like each other.
    surroundings = {name for name in SURROUNDINGS if not name.startswith("RAILWAY_")}
    known = {variable.name for variable in variables()} | surroundings
    return dotenv_file.misspelt({*os.environ, *dotenv_file.names(dotenv)}, known)


def _environment(env: Env, mistakes: list[str]) -> Environment | None:
    name = env.str("ENVIRONMENT", "").strip() or "development"
    if env.str("RAILWAY_ENVIRONMENT_NAME", ""):
        return Environment.PRODUCTION
    try:
        return Environment(name)
    except ValueError:
        mistakes.append("ENVIRONMENT: must be production or development")
        return None


def _read(
    env: Env, variable: Variable, environment: Environment | None, mistakes: list[str]
) -> Any:
    if mistake := _tidied(env, variable):
        mistakes.append(mistake)
        return None
    in_production = environment is Environment.PRODUCTION
    default = variable.production if in_production else variable.development
    # A variable that is set and empty is what a deployment form leaves behind: not set.
    if variable.name != "HOST" and env.str(variable.name, "") == "":
        if default == REQUIRED:
            mistakes.append(f"{variable.name}: required in production. {variable.text}")
            return None
        return default
    return variable.rule.read(env, variable.name, default, environment)


def _tidied(env: Env, variable: Variable) -> str | None:
    """Take white space off the ends of a value, where forms and files leave it. Returns the mistake
    in the rest, if a secret or a URL has a character that would break every call."""
    given = env.str(variable.name, None)
    if given is None:
        return None
    value = given.strip()
    if value != given:
        os.environ[variable.name] = value
    if variable.kind == "URL" and not (value.isprintable() and " " not in value):
        return f"{variable.name}: must not have spaces or control characters"
    parts = value.split(",") if variable.kind == "secret list" else [value]
    if variable.kind.startswith("secret") and not all(
        SECRET_TEXT.fullmatch(one.strip()) for one in parts
    ):
        return f"{variable.name}: must be printable ASCII characters without spaces"
    return None


def _use_platform_draining_time(env: Env, values: dict[str, Any]) -> None:
    draining_s = env.str("RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "")
    if draining_s.isascii() and draining_s.isdecimal() and not env.str("SHUTDOWN_TIMEOUT", ""):
        # 15 s for what surrounds the wait: listening on, ending streams, flushing, closing.
        values["shutdown_timeout_s"] = max(0.0, float(draining_s) - 15)


def inherited(**more: str) -> dict[str, str]:
    """The environment of a process to be started: that of this one, and ``more``."""
    return {**os.environ, **more}


def may_color() -> bool:
    """Whether a terminal may get colours, as NO_COLOR (https://no-color.org) and TERM state."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
