"""The request body of ``POST /chat/completions``."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Number = float | UnsetType
Whole = int | UnsetType
Count = Annotated[int, Meta(ge=1)] | UnsetType


class Message(Struct):
    """A message. The members that only some models read are not interpreted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    thought_signature: str | None = None

    @property
    def has_picture(self) -> bool:
        """True if the message contains an image."""
        parts = self.content if isinstance(self.content, list) else ()
        return any(part.get("type") == "image_url" for part in parts)

    def texts(self) -> list[str]:
        """Return the text parts."""
        if isinstance(self.content, str):
            return [self.content]
        found = (part.get("text") for part in self.content or ())
        return [text for text in found if isinstance(text, str)]


class FunctionDefinition(Struct):
    """A function with its name and parameters."""

    name: str
    parameters: Any = None


class Tool(Struct):
    """A tool, or the choice of a tool. Venice also takes the name beside the type."""

    type: str = "function"
    function: FunctionDefinition | None = None
    name: str | None = None
    parameters: Any = None
    input_schema: Any = None

    def definition(self) -> FunctionDefinition | None:
        """Return the function, in whichever form it was given. None for other kinds of tools."""
        if self.function is not None or self.name is None:
            return self.function
        schema = self.input_schema if self.parameters is None else self.parameters
        return FunctionDefinition(name=self.name, parameters=schema)


class VeniceParameters(Struct):
    """Venice's own parameters. Unknown ones are ignored, as by Venice."""

    enable_e2ee: bool = True
    enable_web_search: Literal["auto", "off", "on"] = "off"
    enable_web_citations: bool = False
    enable_web_scraping: bool = False
    enable_x_search: bool = False
    include_venice_system_prompt: bool = True
    include_search_results_in_stream: bool = False
    return_search_results_as_documents: bool = False
    strip_thinking_response: bool = False
    disable_thinking: bool = False
    character_slug: str | UnsetType = UNSET


class ChatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All top-level fields that Venice accepts, with null only where Venice accepts it."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)] | UnsetType = UNSET
    input: str | list[Message] | UnsetType = UNSET
    max_tokens: Whole = UNSET
    max_completion_tokens: Count = UNSET
    max_output_tokens: Count = UNSET
    stream: bool = False
    stream_options: dict[str, Any] | UnsetType = UNSET
    n: Annotated[int, Meta(ge=1, le=128)] = 1
    tools: list[Tool] | None = None
    tool_choice: str | Tool | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    venice_parameters: VeniceParameters = msgspec.field(default_factory=VeniceParameters)
    web_search: bool | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    top_k: Whole = UNSET
    min_p: Number = UNSET
    min_temp: Number = UNSET
    max_temp: Number = UNSET
    frequency_penalty: Number = UNSET
    presence_penalty: Number = UNSET
    repetition_penalty: Number = UNSET
    seed: Whole = UNSET
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: Whole = UNSET
    reasoning: dict[str, Any] | UnsetType = UNSET
    reasoning_effort: str | UnsetType = UNSET
    verbosity: str | UnsetType = UNSET
    text: dict[str, Any] | UnsetType = UNSET
    response_format: Any = None
    prompt_cache_key: str | UnsetType = UNSET
    alias_of_cache_key: str | UnsetType = msgspec.field(default=UNSET, name="promptCacheKey")
    prompt_cache_retention: str | UnsetType = UNSET
    fallbacks: list[Any] | UnsetType = UNSET
    store: bool | UnsetType = UNSET
    include: list[Any] | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    user: str | UnsetType = UNSET
    anon_user_id: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET
