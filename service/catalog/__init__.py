"""The models and aliases that callers can name, with their prices.

Venice's model list is copied to the database and to memory and refreshed every few minutes. Calls
read from memory only.
"""

from service.catalog.aliases import (
    Kind,
    ListedName,
    NewAlias,
    end_aliases,
    find_alias,
    list_names,
    remove_alias,
    set_alias,
)
from service.catalog.catalog import ALIASES_EVERY_S, Catalog
from service.catalog.price_lines import PriceLine, price_lines

__all__ = [
    "ALIASES_EVERY_S",
    "Catalog",
    "Kind",
    "ListedName",
    "NewAlias",
    "PriceLine",
    "end_aliases",
    "find_alias",
    "list_names",
    "price_lines",
    "remove_alias",
    "set_alias",
]
