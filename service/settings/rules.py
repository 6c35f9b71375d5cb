"""The kinds of settings: how each is read from the environment and checked."""

import dataclasses
import enum
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from environs import Env, ValidationError

from service.formats.parsing import parse_decimal, parse_whole
from service.settings import hosts
from service.settings.address import AddressError, DatabaseAddress, parse_database_url
from service.settings.data_directory import SECRET_LENGTH


class Environment(enum.Enum):
    """Production refuses what development forgives."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


Read = Callable[[Env, str, Any, Environment | None], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """How a value is read and checked, and how its documentation describes it. The environment is
    None where it is not known; then what depends on it is not checked."""

    read: Read
    text: str = ""


def _number(parse: Callable[[str], float], low: float, high: float) -> Rule:
    def validate(text: str) -> None:
        try:
            number = parse(text)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if not low <= number <= high:
            raise ValidationError(f"must be from {low} to {high}")

    def read(env: Env, name: str, default: Any, _: Environment | None) -> Any:
        # None where it is not valid, which is reported with the other mistakes.
        value: Any = env.str(name, default, validate=validate)
        return parse(value) if isinstance(value, str) else value

    return Rule(read, f"{low} to {high}")


integer: Final = partial(_number, parse_whole)
seconds: Final = partial(_number, lambda text: float(parse_decimal(text)))


TEXT: Final = Rule(lambda env, name, default, _: env.str(name, default))


def choice(*choices: str) -> Rule:
    """One of the given choices."""

    def validate(value: str) -> None:
        if value not in choices:
            raise ValidationError(f"must be one of {', '.join(choices)}")

    listed = ", ".join(f"`{choice}`" for choice in choices)
    return Rule(
        lambda env, name, default, _: env.str(name, default, validate=validate), f"one of {listed}"
    )


def _read_secret(env: Env, name: str, default: Any, _: Environment | None) -> Any:
    def validate(value: str) -> None:
        if len(value) < SECRET_LENGTH:
            raise ValidationError(
                f"must have at least {SECRET_LENGTH} characters: `openssl rand -hex 32`"
            )

    return env.str(name, default, validate=validate)


def _read_secret_list(env: Env, name: str, default: Any, _: Environment | None) -> Any:
    def validate(value: str) -> None:
        if any(len(part.strip()) < SECRET_LENGTH for part in value.split(",")):
            raise ValidationError(
                "must be a list of keys, newest first, separated by commas, each of at least"
                f" {SECRET_LENGTH} characters: `openssl rand -hex 32`"
            )

    value = env.str(name, default, validate=validate)
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


SECRET: Final = Rule(_read_secret, f"{SECRET_LENGTH} characters or more")
SECRET_LIST: Final = Rule(_read_secret_list, f"each of {SECRET_LENGTH} characters or more")
DATABASE: Final = Rule(
    lambda env, name, default, _: env.database_address(name, default), "no loopback in production"
)


def add_database_parser(env: Env, environment: Environment | None) -> None:
    """Let the environment read database addresses."""

    def parse(text: str) -> DatabaseAddress:
        try:
            return parse_database_url(text, production=environment is Environment.PRODUCTION)
        except AddressError as error:
            raise ValidationError(str(error)) from None

    env.add_parser("database_address", parse)


def _read_venice_url(env: Env, name: str, default: Any, environment: Environment | None) -> Any:
    def validate(value: str) -> None:
        form = "must be an http(s) URL, as in https://api.venice.ai/api/v1"
        try:
            parts = urlsplit(value)
            is_there = bool(hosts.normalize_host(parts.hostname or "")) and parts.port != 0
        except ValueError:
            raise ValidationError(form) from None
        if parts.scheme not in ("http", "https") or not is_there:
            raise ValidationError(form)
        if parts.username is not None or "?" in value or "#" in value:
            raise ValidationError(f"{form}, without a user, a query and a fragment")
        if not value.isascii():
            raise ValidationError(f"{form}, in ASCII; an international host in its xn-- form")
        if environment is Environment.PRODUCTION and parts.scheme != "https":
            raise ValidationError("must be an https:// URL in production")

    value = env.str(name, default, validate=validate)
    return value.rstrip("/") if isinstance(value, str) else value


VENICE_URL: Final = Rule(_read_venice_url, "https in production")


def each_of(parse: Callable[[str], tuple[Any, ...]]) -> Rule:
    """A list, read by ``parse``."""

    def read(env: Env, name: str, default: Any, _: Environment | None) -> Any:
        def validate(text: str) -> None:
            try:
                parse(text)
            except ValueError as error:
                raise ValidationError(str(error)) from None

        value = env.str(name, default, validate=validate)
        return parse(value) if isinstance(value, str) else value

    return Rule(read)
