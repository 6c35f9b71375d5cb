"""Chooses between Venice's two modes of ``POST /responses``.

Native requests are forwarded to OpenAI; others are translated to chat completions and back, which
Venice calls ``compat``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.sandbox.model import Model
from service.sandbox.refusals import invalid, issue

MODES: Final = ("auto", "native", "compat")
_NATIVE_PREFIX: Final = "openai-"
_TRANSLATED: Final = "openai-gpt-oss-120b"
# Whether Venice counts `user` as known here is not documented. It is OpenAI's own field.
_KNOWN: Final = frozenset(
    {
        "anon_user_id",
        "background",
        "conversation",
        "fallbacks",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
        "venice_parameters",
        "web_search",
    }
)
_NEEDS_STORAGE: Final = ("previous_response_id", "conversation", "prompt", "background")
_VENICE_ONLY: Final = ("character_slug", "enable_web_scraping")
_HOSTED: Final = frozenset(
    {
        "code_interpreter",
        "file_search",
        "image_generation",
        "mcp",
        "web_search",
        "web_search_preview",
        "x_search",
    }
)


@dataclass(frozen=True, slots=True)
class Lane:
    """The mode that serves a request, and the member that kept it from the native mode."""

    name: str
    reason: str | None = None

    @property
    def is_native(self) -> bool:
        return self.name == "native"

    def headers(self) -> dict[str, str]:
        """Return the headers that name the lane."""
        headers = {"x-venice-responses-lane": self.name}
        if self.reason is not None:
            headers["x-venice-responses-compat-reason"] = self.reason
        return headers


def choose(payload: Mapping[str, Any], model: Model, mode: str) -> Lane:
    """Choose the lane from the model, the request and ``x-venice-responses-mode``.

    :raises Refusal: 400 when the native mode is required and cannot serve the request.
    """
    if mode not in MODES:
        text = f"x-venice-responses-mode: expected one of {', '.join(MODES)}"
        raise invalid(issue(text, "x-venice-responses-mode"))
    if mode == "compat":
        return Lane("compat")
    is_native = model.id.startswith(_NATIVE_PREFIX) and model.id != _TRANSLATED
    reason = next(_obstacles(payload), None) if is_native else None
    if is_native and reason is None:
        return Lane("native")
    if mode == "native":
        text = f"{reason} cannot be served in native mode" if reason else "not an OpenAI model"
        raise invalid(issue(text, reason or "model"))
    return Lane("compat", reason)


def _obstacles(payload: Mapping[str, Any]) -> Iterator[str]:
    """Yield the members that the native mode cannot serve."""
    for name, value in payload.items():
        if name not in _KNOWN or (value and name in _NEEDS_STORAGE):
            yield name
    if payload.get("service_tier") not in (None, "auto", "default"):
        yield "service_tier"
    yield from _searches(payload)
    for index, tool in enumerate(payload.get("tools") or ()):
        if _is_hosted(tool):
            yield f"tools[{index}]"
    items = payload.get("input")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        yield from _obstacles_of_item(item, f"input[{index}]")


def _searches(payload: Mapping[str, Any]) -> Iterator[str]:
    """Yield the members that turn on what only Venice has."""
    if payload.get("web_search"):
        yield "web_search"
    parameters = payload.get("venice_parameters") or {}
    if parameters.get("enable_web_search", "off") != "off":
        yield "venice_parameters.enable_web_search"
    for name in _VENICE_ONLY:
        if parameters.get(name):
            yield f"venice_parameters.{name}"


def _is_hosted(tool: Mapping[str, Any]) -> bool:
    kind = str(tool.get("type"))
    if kind == "shell":
        environment = tool.get("environment")
        # Without an environment OpenAI's `shell` runs in a container of its own.
        return not isinstance(environment, dict) or environment.get("type") != "local"
    return kind in _HOSTED or kind.startswith(("web_search_", "file_search_"))


def _obstacles_of_item(item: Mapping[str, Any], path: str) -> Iterator[str]:
    if item.get("type") == "item_reference":
        yield path
    for name in ("content", "output"):
        parts = item.get(name)
        for index, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict) and (part.get("file_id") or part.get("file_url")):
                yield f"{path}.{name}[{index}]"
