"""Web search: Venice's results as blocks and citations of a message."""

import re
import uuid
from collections.abc import Sequence
from typing import Any, Final

Json = dict[str, Any]

MARK: Final = re.compile(r"\^(\d{1,3}(?:\s*,\s*\d{1,3})*)\^")
"""How a model cites search results: ``^1^`` or ``^1,3^``, counted from 1."""
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
    numbers = [int(number) for marks in MARK.findall(text) for number in marks.split(",")]
    return [
        {
            "type": "web_search_result_location",
            "url": _text(results[number - 1], "url"),
            "title": _text(results[number - 1], "title"),
            "cited_text": _text(results[number - 1], "content")[:CITED_CHARACTERS],
            "encrypted_index": "",
        }
        for number in dict.fromkeys(numbers)
        if 1 <= number <= len(results)
    ]


def _text(result: Json, name: str) -> str:
    value = result.get(name)
    return value if isinstance(value, str) else ""
