"""Lists of origins in the settings."""

import os

import pytest

from service import settings
from service.errors import SettingsError
from service.settings.allow_lists import parse_origins


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com",
        "https://",
        "https:///x",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://app.example.com?",
        "https://app.example.com#x",
        "https://app.example.com#",
        "https://user@app.example.com",
        "https://user:pass@app.example.com",
        "https://app.example.com:port",
        "https://app.example.com:",
        "https://app.example.com:99999",
        "https://*.example.com",
        "https://a b",
        "ftp://app.example.com",
        "null",
        "*,https://app.example.com",
        "https://a.example.com,,https://b.example.com",
        "https://a.example.com,",
    ],
)
def test_invalid_lists_of_origins(monkeypatch, tmp_path, text):
    """An invalid list of origins is refused at the start with the name of the variable."""
    monkeypatch.setattr(os, "environ", {"CORS_ORIGINS": text})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="CORS_ORIGINS: must be"):
        settings.load()


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("https://app.example.com", ("https://app.example.com",)),
        ("HTTPS://App.Example.COM:443", ("https://app.example.com",)),
        ("http://localhost:3000, http://a.b:80", ("http://localhost:3000", "http://a.b")),
        ("https://b\u00fccher.example", ("https://xn--bcher-kva.example",)),
        ("https://app\u3002example.com", ("https://app.example.com",)),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
        ("http://127.1:3000", ("http://127.0.0.1:3000",)),
    ],
)
def test_origins_are_as_browsers_state_them(text, origins):
    """Origins are normalized to the form that browsers send, because browsers compare
    characters."""
    assert parse_origins(text) == origins
