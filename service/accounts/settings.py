"""What organizations and keys state for their calls."""

from typing import Annotated, Literal

import msgspec

OutputTokens = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
ParameterName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9_]{1,64}$")]
ParameterValue = bool | int | float | Annotated[str, msgspec.Meta(max_length=256)] | None
VeniceParameters = Annotated[dict[ParameterName, ParameterValue], msgspec.Meta(max_length=32)]
Role = Literal["inference", "admin", "operator"]
OnSmallBudget = Literal["refuse", "cut"]


class OrganizationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an organization's calls get where neither they nor their keys state anything."""

    venice_parameters: VeniceParameters = {}
    on_small_budget: OnSmallBudget | None = None


class StatedOrganizationSettings(
    OrganizationSettings, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Settings as they are asked for; what is stored may be of a newer version."""


class KeySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's calls get where they state nothing themselves.

    ``default_max_output_tokens`` caps the output of a call that sets no maximum. A call of text
    whose output its limits cannot afford is refused, or with ``on_small_budget`` "cut" gets the
    output that they can, if that is at least ``least_output_tokens``. Where neither the key nor its
    organization states it, it is "cut" if money is limited or the key states
    ``least_output_tokens``. ``venice_parameters`` are Venice's own, for calls of text. ``tolerant``
    leaves out, or renames, what clients send on their own account and Venice refuses. With
    ``repeat_failed`` a call of text that Venice failed is tried a second time, though the first may
    have been charged: it is admitted for both. A call whose client hangs up is cancelled at Venice
    and booked at its bound, or with ``on_disconnect`` "finish" read to its end and booked exactly.
    """

    default_max_output_tokens: OutputTokens = 8_192
    least_output_tokens: OutputTokens | None = None
    on_small_budget: OnSmallBudget | None = None
    venice_parameters: VeniceParameters = {}
    tolerant: bool = True
    repeat_failed: bool = False
    on_disconnect: Literal["cancel", "finish"] = "cancel"


class StatedKeySettings(KeySettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings as they are asked for; what is stored may be of a newer version."""
