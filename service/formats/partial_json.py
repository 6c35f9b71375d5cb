"""Follows the text of one JSON object that arrives in pieces."""

import enum
import re
from typing import Final

MAX_DEPTH: Final = 128
"""Clients read no deeper objects."""
SPACE: Final = " \t\r\n"
IN_STRING: Final = re.compile(r'[^"\\\x00-\x1f]*')
ESCAPE: Final = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
BEGUN_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
IN_WORD: Final = re.compile(r"[-+.0-9A-Za-z]*")
WORD: Final = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
CLOSING: Final = {"{": "}", "[": "]"}


class _Expects(enum.Enum):
    """What can follow."""

    OBJECT = enum.auto()
    NAME = enum.auto()
    NAME_OR_END = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    VALUE_OR_END = enum.auto()
    COMMA_OR_END = enum.auto()
    NOTHING = enum.auto()


NAMES: Final = (_Expects.NAME, _Expects.NAME_OR_END)
VALUES: Final = (_Expects.VALUE, _Expects.VALUE_OR_END)


class PartialObject:
    """Checks whether the text so far can be the beginning of one JSON object. A number, or one of
    true, false and null, is checked at its end."""

    def __init__(self) -> None:
        self.is_valid = True
        """Whether it can."""
        self._expects = _Expects.OBJECT
        self._open: list[str] = []
        """The brackets that close the containers around the place."""
        self._is_in_string = False
        self._word: list[str] = []
        """The pieces of a number or of true, false or null that has not ended."""
        self._carried = ""
        """An escape that has begun."""

    @property
    def is_begun(self) -> bool:
        """Whether the object has begun, so that not only white space came."""
        return self._expects is not _Expects.OBJECT

    @property
    def is_complete(self) -> bool:
        """Whether the object has ended, so that only white space can follow."""
        return self.is_valid and self._expects is _Expects.NOTHING

    def feed(self, text: str) -> None:
        """Take the next piece."""
        text, self._carried = self._carried + text, ""
        at = 0
        while self.is_valid and at < len(text):
            if self._is_in_string:
                at = self._read_string(text, at)
            elif self._word:
                at = self._read_word(text, at)
            else:
                self.is_valid = text[at] in SPACE or self._step(text[at])
                at += 1

    def _read_string(self, text: str, at: int) -> int:
        found = IN_STRING.match(text, at)
        at = found.end() if found else at
        if at == len(text):
            return at
        if text[at] == '"':
            self._is_in_string = False
            if self._expects in NAMES:
                self._expects = _Expects.COLON
            else:
                self._end_value()
            return at + 1
        if (escape := ESCAPE.match(text, at)) is not None:
            return escape.end()
        if BEGUN_ESCAPE.match(text, at):
            self._carried = text[at:]
            return len(text)
        self.is_valid = False
        return at

    def _read_word(self, text: str, at: int) -> int:
        found = IN_WORD.match(text, at)
        end = found.end() if found else at
        self._word.append(text[at:end])
        if end < len(text):
            self.is_valid = WORD.fullmatch("".join(self._word)) is not None
            self._word = []
            self._end_value()
        return end

    def _step(self, character: str) -> bool:
        """Take a character outside of strings and words, and return whether it can follow."""
        expects = self._expects
        if character == '"' and expects in NAMES + VALUES:
            self._is_in_string = True
        elif character in CLOSING and (expects in VALUES or self._begins(character)):
            self._open.append(CLOSING[character])
            is_object = character == "{"
            self._expects = _Expects.NAME_OR_END if is_object else _Expects.VALUE_OR_END
            return len(self._open) <= MAX_DEPTH
        elif self._open and character == self._open[-1] and self._may_end():
            self._open.pop()
            self._end_value()
        elif character == ":" and expects is _Expects.COLON:
            self._expects = _Expects.VALUE
        elif character == "," and expects is _Expects.COMMA_OR_END:
            self._expects = _Expects.NAME if self._open[-1] == "}" else _Expects.VALUE
        elif expects in VALUES and IN_WORD.fullmatch(character):
            self._word = [character]
        else:
            return False
        return True

    def _begins(self, character: str) -> bool:
        return self._expects is _Expects.OBJECT and character == "{"

    def _may_end(self) -> bool:
        return self._expects in (
            _Expects.COMMA_OR_END,
            _Expects.NAME_OR_END,
            _Expects.VALUE_OR_END,
        )

    def _end_value(self) -> None:
        self._expects = _Expects.COMMA_OR_END if self._open else _Expects.NOTHING
