"""Prices that Venice publishes, but does not list with its models, in nano-dollars."""

from typing import Final

SEARCH_NANOS: Final = 10_000_000
"""USD 0.01 for each of web search, X search and a scraped page, within a call of a model."""
ENHANCE_NANOS: Final = 40_000_000
"""USD 0.04 for a prompt that Venice rewrites."""
AUGMENT_NANOS: Final = 10_000_000
"""USD 0.01 for a search, a page, a document, by ``/augment``."""
RPC_NANOS: Final = 120_000
"""The most expensive method on the most expensive chain: 4 × 30 credits of at most USD 10⁻⁶."""
