"""Reads pages as people do: their text, and the rows of their tables."""

import html
import re

TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
ROW = re.compile(r"<tr[^>]*>(.*?)</tr>", re.DOTALL)
CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)


def text_of(page):
    """Return the text of a page or a part of it, in one line."""
    without_tags = re.sub(r"<[^>]*>", " ", page)
    return " ".join(html.unescape(without_tags).split())


def rows_of(page, column):
    """Return the rows of the first table that has a column of this name, each as a dictionary of
    texts by column."""
    for table in TABLE.findall(page):
        first, *others = ROW.findall(table)
        columns = [text_of(cell) for cell in CELL.findall(first)]
        if column in columns:
            cells = ([text_of(cell) for cell in CELL.findall(row)] for row in others)
            return [dict(zip(columns, row, strict=True)) for row in cells]
    return []


def fields_of(page, action):
    """Return the fields of the form that is sent to a URL that begins with ``action``: their values
    by name."""
    found = re.search(
        rf'<form[^>]*action="{re.escape(html.escape(action))}[^"]*".*?</form>', page, re.DOTALL
    )
    assert found, f"There is no form for {action}."
    form = found[0]
    values = {}
    for tag in re.findall(r"<input[^>]*>", form):
        name = re.search(r' name="([^"]*)"', tag)
        value = re.search(r' value="([^"]*)"', tag)
        is_unchecked = 'type="checkbox"' in tag and " checked" not in tag
        if name and not is_unchecked:
            values[name[1]] = html.unescape(value[1]) if value else ""
    for name, body in re.findall(
        r'<textarea[^>]* name="([^"]*)"[^>]*>(.*?)</text', form, re.DOTALL
    ):
        values[name] = html.unescape(body)
    for name, body in re.findall(
        r'<select[^>]* name="([^"]*)"[^>]*>(.*?)</select>', form, re.DOTALL
    ):
        chosen = re.search(r'value="([^"]*)" selected', body)
        values[name] = html.unescape(chosen[1]) if chosen else ""
    return values


async def send(visitor, page, action, **fields):
    """Send the form of a page at ``action`` with its own values and these; return status, text and
    headers."""
    _, text = await visitor.get(page)
    values = {**fields_of(text, action), **fields}
    found = re.search(rf'action="({re.escape(html.escape(action))}[^"]*)"', text)
    return await visitor.post(html.unescape(found[1]), values)
