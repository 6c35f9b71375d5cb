"""The one pipeline that every paid call takes, and a small ``Endpoint`` for each kind of call."""

from service.gateway.call import Call
from service.gateway.chat import CHAT
from service.gateway.pipeline import Gateway, Reply, uncancel

__all__ = ["CHAT", "Call", "Gateway", "Reply", "uncancel"]
