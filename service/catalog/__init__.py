"""What callers may name: Venice's models with their prices, and the operator's aliases.

Venice's list is kept as a copy in the database and in memory, and asked for anew every few minutes;
what a call needs is answered from memory.
"""

from service.catalog.aliases import (
    Kind,
    ListedName,
    NewAlias,
    find_alias,
    list_names,
    remove_alias,
    set_alias,
)
from service.catalog.catalog import ALIASES_EVERY_S, MODEL_TYPES, Catalog

__all__ = [
    "ALIASES_EVERY_S",
    "MODEL_TYPES",
    "Catalog",
    "Kind",
    "ListedName",
    "NewAlias",
    "find_alias",
    "list_names",
    "remove_alias",
    "set_alias",
]
