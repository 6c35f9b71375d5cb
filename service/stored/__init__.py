"""Queued jobs at Venice that the service still follows."""

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
