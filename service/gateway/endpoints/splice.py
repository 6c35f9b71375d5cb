"""The members of a body that are changed before Venice gets it: one table.

Venice counts bad requests per key, model and ``user``, and locks out everybody in that bucket. With
a pseudonym for each key and end user, callers share no bucket and Venice learns no names.
"""

import enum
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from service.accounts import Caller
from service.gateway.call import Bound, Call, Relay
from service.gateway.endpoints.tokens import END_TO_END_ENCRYPTED, TokenCall


class Value(enum.Enum):
    """What a member is set to."""

    PSEUDONYM = enum.auto()
    """The pseudonym of the end user; all end users whom the caller does not name share one."""
    PSEUDONYM_IF_NAMED = enum.auto()
    """The pseudonym, where the caller names an end user."""
    REMOVED = enum.auto()
    """The member is left out."""
    OUTPUT_CAP = enum.auto()
    """The cap on the output of one choice, where the bound has one and the member has no less."""
    NO_VENICE_PROMPT = enum.auto()
    """The caller's parameters with Venice's own system prompt off, where that is the default."""
    STREAM = enum.auto()
    """True, where the answer is assembled from a stream."""


class Splice(NamedTuple):
    """The members of one kind of body that change."""

    added: Mapping[str, Value] = {}
    """Set whether or not the member is present."""
    replaced: Mapping[str, Value] = {}
    """Set only where the member is present."""


SPLICES: Final[Mapping[str, Splice]] = {
    "/chat/completions": Splice(
        added={
            "user": Value.PSEUDONYM,
            "max_completion_tokens": Value.OUTPUT_CAP,
            "venice_parameters": Value.NO_VENICE_PROMPT,
            "stream": Value.STREAM,
        },
        replaced={
            "anon_user_id": Value.PSEUDONYM,
            # OpenAI's name for the end user, which Venice does not know.
            "safety_identifier": Value.REMOVED,
            # The cap's names in other APIs, which Venice may read as well.
            "max_tokens": Value.OUTPUT_CAP,
            "max_output_tokens": Value.OUTPUT_CAP,
        },
    ),
    "/responses": Splice(
        added={
            "user": Value.PSEUDONYM,
            "max_output_tokens": Value.OUTPUT_CAP,
            "venice_parameters": Value.NO_VENICE_PROMPT,
            "stream": Value.STREAM,
        },
        replaced={
            "anon_user_id": Value.PSEUDONYM,
            "safety_identifier": Value.REMOVED,
            "max_completion_tokens": Value.OUTPUT_CAP,
            "max_tokens": Value.OUTPUT_CAP,
        },
    ),
    "/embeddings": Splice(
        added={"user": Value.PSEUDONYM},
        replaced={"anon_user_id": Value.REMOVED, "safety_identifier": Value.REMOVED},
    ),
    "/image/generate": Splice(replaced={"anon_user_id": Value.PSEUDONYM_IF_NAMED}),
    "/images/generations": Splice(replaced={"user": Value.PSEUDONYM_IF_NAMED}),
}
"""By the endpoint's path. Venice gets the bodies of other endpoints unchanged."""


def upstream_body(call: Call, caller: Caller, bound: Bound) -> bytes:
    """Return the body that Venice gets: the caller's bytes with the changes of the table."""
    splice, document = SPLICES.get(call.endpoint.path), call.document
    # A body that is end-to-end encrypted is never changed.
    if splice is None or document is None or call.model.startswith(END_TO_END_ENCRYPTED):
        return call.body
    pseudonym = caller.pseudonym(call.end_user or "")
    values: dict[Value, Any] = {
        Value.PSEUDONYM: pseudonym,
        Value.PSEUDONYM_IF_NAMED: pseudonym if call.end_user else None,
        Value.REMOVED: UNSET,
        Value.OUTPUT_CAP: bound.output_cap,
        Value.NO_VENICE_PROMPT: _without_venice_prompt(call, bound),
        Value.STREAM: True if call.relay is Relay.ASSEMBLED else None,
    }
    present = {name: kind for name, kind in splice.replaced.items() if name in document.names}
    kinds = {**splice.added, **present}
    changes = {name: values[kind] for name, kind in kinds.items() if values[kind] is not None}
    if isinstance(call, TokenCall):
        # Of several maxima the caller may state one that is below the cap.
        for name in changes.keys() & call.stated_maxima.keys():
            changes[name] = min(changes[name], call.stated_maxima[name])
    return document.edited(changes).content if changes else call.body


def _without_venice_prompt(call: Call, bound: Bound) -> dict[str, Any] | None:
    """Return parameters that leave Venice's own prompt out; None for no change."""
    if not isinstance(call, TokenCall) or call.has_venice_prompt is not None:
        return None
    if bound.has_venice_prompt:
        return None
    return {**call.venice_parameters, "include_venice_system_prompt": False}
