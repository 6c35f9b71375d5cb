"""Rialto, a gateway for Venice AI."""

import sys

__version__ = "0.1.0"


def _import_structlog() -> None:
    """Import structlog without rich, which it imports where it is installed: 5.5 MB and half of the
    time that the import takes. Only commands use rich, and import it themselves."""
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes Python report it as missing
    try:
        import structlog  # noqa: F401, PLC0415 - for those that import it later
    finally:
        del sys.modules["rich"]


_import_structlog()
