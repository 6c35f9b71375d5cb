"""What callers come back for: today the jobs in Venice's queue, as far as they are followed."""

from service.stored.generations import (
    LIFETIME,
    Generation,
    GenerationStatus,
    claim,
    finish,
    follow,
    forget,
)

__all__ = [
    "LIFETIME",
    "Generation",
    "GenerationStatus",
    "claim",
    "finish",
    "follow",
    "forget",
]
