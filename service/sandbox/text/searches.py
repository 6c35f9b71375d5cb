"""Simulated web searches: their results and fees."""

import re
from typing import Any, Final

from service.sandbox.model import nanos

FEE_NANOS: Final = nanos("0.01")
"""The fee per search and per scraped page."""
CITATION: Final = " ^1^"
_URL: Final = re.compile(r"https?://[^\s\])>\"']+")
_MAX_RESULTS: Final = 3


def results() -> list[dict[str, Any]]:
    """Return results as in ``venice_parameters.web_search_citations``."""
    return [
        {
            "title": f"Simulated result {number}",
            "url": f"https://sandbox.invalid/results/{number}",
            "content": f"A simulated snippet of result {number}.",
            "date": "2026-11-23T00:00:00",
        }
        for number in range(1, _MAX_RESULTS + 1)
    ]


def count_urls(text: str) -> int:
    """Count the addresses in a message, which Venice would scrape."""
    return len(set(_URL.findall(text)))
