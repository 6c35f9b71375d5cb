"""Web search: Venice's results as blocks and citations of a message."""

import uuid
from collections.abc import Sequence
from typing import Any, Final

from service.formats import completion

Json = dict[str, Any]

CITED_CHARACTERS: Final = 150
"""How much of a result a citation quotes, as at Anthropic."""


def search_blocks(results: Sequence[Json]) -> list[Json]:
    """The blocks that show a search and its results. Venice does not state the query."""
    search_id = f"srvtoolu_{uuid.uuid4().hex}"
    content = [
        {
            "type": "web_search_result",
            "title": _text(result, "title"),
            "url": _text(result, "url"),
            "encrypted_content": "",
            "page_age": _text(result, "date") or None,
        }
        for result in results
    ]
    return [
        {"type": "server_tool_use", "id": search_id, "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": search_id, "content": content},
    ]


def cited(text: str, results: Sequence[Json]) -> list[Json]:
    """The citations of the results that a text marks, in their first order."""
    indexes = dict.fromkeys(index for _, index in completion.cited(text, results))
    return [
        {
            "type": "web_search_result_location",
            "url": _text(result, "url"),
            "title": _text(result, "title"),
            "cited_text": _text(result, "content")[:CITED_CHARACTERS],
            "encrypted_index": "",
        }
        for result in map(results.__getitem__, indexes)
    ]


def _text(result: Json, name: str) -> str:
    value = result.get(name)
    return value if isinstance(value, str) else ""
