"""Translates Venice's list of models into Anthropic's (https://docs.anthropic.com/en/api/models-list)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from service.errors import ClientError
from service.formats.lenient import Lenient

Json = dict[str, Any]

MAX_MODELS: Final = 1_000
"""The most models on a page, and the usual number: not every client asks for the next page."""

MAX_TIME_S: Final = 2**35
"""A later time, in seconds since 1970, is no time that a model was made."""


class _Spec(msgspec.Struct, rename="camel"):
    name: str | None = None
    available_context_tokens: int | None = None
    max_completion_tokens: int | None = None
    deprecation: Json | None = None


class _Model(msgspec.Struct):
    id: str = ""
    created: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)] | None = None
    model_spec: _Spec | None = None


class _Listing(msgspec.Struct):
    data: list[msgspec.Raw]


_MODEL: Final = Lenient(_Model)


def model_info(entry: bytes | msgspec.Raw) -> Json:
    """Translate a model of Venice's list."""
    model = _MODEL.decode(entry)
    spec = model.model_spec or _Spec()
    created_at = datetime.fromtimestamp(model.created or 0, UTC)
    return {
        "type": "model",
        "id": model.id,
        "display_name": spec.name or model.id,
        "created_at": f"{created_at:%Y-%m-%dT%H:%M:%SZ}",
        "max_input_tokens": spec.available_context_tokens,
        "max_tokens": spec.max_completion_tokens,
        "lifecycle": "deprecated" if spec.deprecation else "active",
    }


def models_page(
    listing: bytes, limit: int, after_id: str | None = None, before_id: str | None = None
) -> Json:
    """Translate a page of Venice's list: the models after one, or those right before one.

    :raises ClientError: when both are given, or one is not in the list.
    """
    models = [model_info(entry) for entry in msgspec.json.decode(listing, type=_Listing).data]
    if after_id is not None and before_id is not None:
        raise ClientError("before_id: cannot be used together with after_id.", param="before_id")
    if before_id is not None:
        end = _position(models, before_id, "before_id")
        start = max(0, end - limit)
        has_more = start > 0
    else:
        start = 0 if after_id is None else _position(models, after_id, "after_id") + 1
        end = start + limit
        has_more = end < len(models)
    page = models[start:end]
    return {
        "data": page,
        "has_more": has_more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _position(models: list[Json], model_id: str, field: str) -> int:
    for position, model in enumerate(models):
        if model["id"] == model_id:
            return position
    raise ClientError(f"{field}: must be the id of a model in the list.", param=field)
