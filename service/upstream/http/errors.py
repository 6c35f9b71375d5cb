"""The failures of an exchange with Venice, as the service's own errors. Each failure of Venice is
counted once, when its error is made."""

from service.errors import UpstreamCut, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from service.telemetry import metrics


class InvalidResponse(UpstreamError):
    """Venice's bytes break the rules of HTTP, so none of them is trusted."""


def unreachable(text: str = "Venice cannot be reached.") -> UpstreamUnreachable:
    """Return the error for a request of which nothing was sent."""
    metrics.note(metrics.UPSTREAM, 1, "unreachable")
    return UpstreamUnreachable(text, retry_after_s=5)


def timed_out() -> UpstreamTimeout:
    """Return the error for a response that did not come before its deadline."""
    metrics.note(metrics.UPSTREAM, 1, "timeout")
    return UpstreamTimeout("Venice did not answer in time.")


def cut() -> UpstreamCut:
    """Return the error for a connection that ended before the response did."""
    metrics.note(metrics.UPSTREAM, 1, "cut")
    return UpstreamCut("Venice closed the connection before its response was complete.")


def closed() -> UpstreamCut:
    """Return the error for a response that the service closed itself. It is not counted."""
    return UpstreamCut("The response was closed before it was complete.")


def upload_failed() -> UpstreamCut:
    """Return the error for a streamed body that could not be sent whole."""
    metrics.note(metrics.UPSTREAM, 1, "cut")
    return UpstreamCut("The request's body could not be sent to Venice whole.")


def invalid(reason: str) -> InvalidResponse:
    """Return the error for a response that is not valid HTTP. ``reason`` quotes nothing of it."""
    metrics.note(metrics.UPSTREAM, 1, "unreadable")
    return InvalidResponse(f"Venice's response is not valid HTTP: {reason}.")
