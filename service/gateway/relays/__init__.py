"""The four ways in which Venice's response reaches the caller, a class for each."""

from collections.abc import Mapping
from typing import Final

from service.gateway.call import Relay
from service.gateway.relays.assembled import AssembledRelay
from service.gateway.relays.events import EventsRelay
from service.gateway.relays.passed import PassedRelay
from service.gateway.relays.relay import AnswerRelay
from service.gateway.relays.whole import WholeRelay

__all__ = [
    "RELAYS",
    "AnswerRelay",
    "AssembledRelay",
    "EventsRelay",
    "PassedRelay",
    "WholeRelay",
]

RELAYS: Final[Mapping[Relay, type[AnswerRelay]]] = {
    Relay.WHOLE: WholeRelay,
    Relay.EVENTS: EventsRelay,
    Relay.ASSEMBLED: AssembledRelay,
    Relay.PASSED: PassedRelay,
}
