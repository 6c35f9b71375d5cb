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

    # Looked up for each member of a body; a hash of the enum's own is computed in Python.
    __hash__ = object.__hash__

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


ALWAYS_SET: Final = frozenset({Value.PSEUDONYM, Value.REMOVED})
"""A member that is set to one of these is set in every call."""


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
    values = _values(call, caller, bound)
    changes: dict[str, Any] = {}
    for name, kind in splice.added.items():
        if kind in values:
            changes[name] = values[kind]
    for name in splice.replaced.keys() & document.names:
        if (kind := splice.replaced[name]) in values:
            changes[name] = values[kind]
    if bound.output_cap is not None and isinstance(call, TokenCall):
        # Of several maxima the caller may state one that is below the cap.
        for name in changes.keys() & call.stated_maxima.keys():
            changes[name] = min(changes[name], call.stated_maxima[name])
    return document.edited(changes).content if changes else call.body


def _values(call: Call, caller: Caller, bound: Bound) -> dict[Value, Any]:
    """The values that members of the call's body get. What does not change has none."""
    pseudonym = caller.pseudonym(call.end_user) if call.end_user else caller.unnamed_pseudonym
    values: dict[Value, Any] = {Value.PSEUDONYM: pseudonym, Value.REMOVED: UNSET}
    if call.end_user:
        values[Value.PSEUDONYM_IF_NAMED] = pseudonym
    if bound.output_cap is not None:
        values[Value.OUTPUT_CAP] = bound.output_cap
    if call.relay is Relay.ASSEMBLED:
        values[Value.STREAM] = True
    if (
        isinstance(call, TokenCall)
        and call.has_venice_prompt is None
        and not bound.has_venice_prompt
    ):
        off = {**call.venice_parameters, "include_venice_system_prompt": False}
        values[Value.NO_VENICE_PROMPT] = off
    return values


def always_replaces(call: Call) -> bool:
    """Whether a member of the call's body is replaced, whatever its caller and bound."""
    splice, document = SPLICES.get(call.endpoint.path), call.document
    if splice is None or document is None:
        return False
    kinds = {**splice.added, **splice.replaced}
    return any(kinds[name] in ALWAYS_SET for name in kinds.keys() & document.names)
