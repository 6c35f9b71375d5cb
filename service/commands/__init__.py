"""Groups of the operator's verbs, each in a module of its own."""

from service.commands.limits import limits
from service.commands.models import models

__all__ = ["limits", "models"]
