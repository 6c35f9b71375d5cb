"""The effects of the members of a body: one table for bounds, allow-lists, changes and prices.

The table lists every member that Venice may read. A member that is not listed may cost anything:
its call has no known price, so no limit of money admits it. The same applies to Venice's own
parameters, in the body or behind the model's name, and to tools.
"""

import enum
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec

from service.errors import ClientError
from service.formats import body
from service.gateway.endpoints.unlisted_prices import SEARCH_NANOS

MAX_SCRAPED_PAGES: Final = 10
MAX_FALLBACKS: Final = 10
MAX_MODELS_NAMED: Final = 100


class Effect(enum.Enum):
    """The effect of a member on what a call may use or cost."""

    # Tables are read for each member of a body; a hash of the enum's own is computed in Python.
    __hash__ = object.__hash__

    NONE = enum.auto()
    """Costs no more than its bytes, or the endpoint reads it itself."""
    MODEL = enum.auto()
    FALLBACKS = enum.auto()
    """Names models that may answer instead of the first."""
    SEARCH = enum.auto()
    """Asks for a search of the web or of X. If stated twice, Venice may search twice."""
    SCRAPE = enum.auto()
    EXTENDS_PROMPT = enum.auto()
    """Makes Venice extend the prompt, bounded only by the window."""
    VENICE_PROMPT = enum.auto()
    """Decides whether Venice adds a system prompt of its own."""
    CHOICES = enum.auto()
    """Multiplies the output."""
    MAXIMUM = enum.auto()
    """Sets the most output of one choice."""
    THINKING = enum.auto()
    """Allows tokens of thinking beside that maximum."""
    PREDICTION = enum.auto()
    """Predicts text. What the model rejects is charged as output beside the maximum."""
    MODALITIES = enum.auto()
    """Selects the media of the answer. Only text is charged by the token."""
    TIER = enum.auto()
    """Asks for another service tier, at another price."""
    TOOLS = enum.auto()
    TOOL_CHOICE = enum.auto()
    PARAMETERS = enum.auto()
    """Contains Venice's own parameters, which have a table of their own."""
    REASONING = enum.auto()
    """Configures thinking; has a table of its own."""


Table = Mapping[str, Effect]


def _table(names: str, **effects: Effect) -> Table:
    return {**dict.fromkeys(names.split(), Effect.NONE), **effects}


PARAMETERS: Final = _table(
    "strip_thinking_response disable_thinking enable_e2ee enable_web_citations"
    " include_search_results_in_stream return_search_results_as_documents",
    enable_web_search=Effect.SEARCH,
    enable_x_search=Effect.SEARCH,
    enable_web_scraping=Effect.SCRAPE,
    character_slug=Effect.EXTENDS_PROMPT,
    include_venice_system_prompt=Effect.VENICE_PROMPT,
)
REASONING: Final = _table(
    "effort summary generate_summary enabled exclude type display",
    max_tokens=Effect.THINKING,
    budget_tokens=Effect.THINKING,
    thinking_budget=Effect.THINKING,
)
TEXT: Final = _table(
    "messages input instructions stream stream_options user safety_identifier anon_user_id store"
    " metadata client_metadata include temperature min_temp max_temp top_p top_k min_p top_logprobs"
    " logprobs logit_bias frequency_penalty presence_penalty repetition_penalty seed stop"
    " stop_token_ids response_format text verbosity reasoning_effort parallel_tool_calls"
    " max_tool_calls prompt_cache_key promptCacheKey prompt_cache_retention truncation"
    " previous_response_id conversation background",
    model=Effect.MODEL,
    fallbacks=Effect.FALLBACKS,
    web_search=Effect.SEARCH,
    web_search_options=Effect.SEARCH,
    x_search=Effect.SEARCH,
    n=Effect.CHOICES,
    best_of=Effect.CHOICES,
    variants=Effect.CHOICES,
    max_completion_tokens=Effect.MAXIMUM,
    max_tokens=Effect.MAXIMUM,
    max_output_tokens=Effect.MAXIMUM,
    thinking_budget=Effect.THINKING,
    reasoning=Effect.REASONING,
    thinking=Effect.REASONING,
    prediction=Effect.PREDICTION,
    modalities=Effect.MODALITIES,
    service_tier=Effect.TIER,
    tools=Effect.TOOLS,
    functions=Effect.TOOLS,
    tool_choice=Effect.TOOL_CHOICE,
    function_call=Effect.TOOL_CHOICE,
    venice_parameters=Effect.PARAMETERS,
)
"""Chat completions and responses."""
EMBEDDINGS: Final = _table(
    "input encoding_format dimensions user safety_identifier anon_user_id store metadata",
    model=Effect.MODEL,
    service_tier=Effect.TIER,
)
DECISIONS: Final = _table(
    "state questions user safety_identifier anon_user_id store metadata", model=Effect.MODEL
)

IMAGE_GENERATE: Final = _table(
    "prompt negative_prompt width height aspect_ratio resolution quality cfg_scale steps seed"
    " style_preset style_references enhance_prompt safe_mode hide_watermark format return_binary"
    " embed_exif_metadata lora_strength enable_web_search anon_user_id"
    " disable_prompt_optimization_thinking",
    model=Effect.MODEL,
    variants=Effect.CHOICES,
)
IMAGE_GENERATIONS: Final = _table(
    "prompt quality size style background moderation output_compression output_format"
    " response_format user",
    model=Effect.MODEL,
    n=Effect.CHOICES,
)
IMAGE_EDIT: Final = _table(
    "prompt image images images[] aspect_ratio resolution quality output_format safe_mode"
    " enhance_prompt disable_prompt_optimization_thinking",
    model=Effect.MODEL,
    modelId=Effect.MODEL,
)
IMAGE_UPSCALE: Final = _table("image scale creativity model")
SPEECH: Final = _table(
    "input language prompt response_format speed streaming temperature top_p voice instructions"
    " stream_format",
    model=Effect.MODEL,
)
TRANSCRIPTION: Final = _table(
    "file response_format timestamps language prompt temperature timestamp_granularities"
    " timestamp_granularities[] include include[] stream chunking_strategy known_speaker_names[]"
    " known_speaker_references[] user",
    model=Effect.MODEL,
)
VIDEO_QUEUE: Final = _table(
    "consents prompt negative_prompt duration aspect_ratio omni_reference_task_type resolution"
    " upscale_factor audio image_url end_image_url audio_url video_url reference_image_urls"
    " reference_video_urls reference_audio_urls reference_document_urls elements scene_image_urls"
    " keyframes anon_user_id seed",
    model=Effect.MODEL,
)
AUDIO_QUEUE: Final = _table(
    "prompt lyrics_prompt duration_seconds force_instrumental lyrics_optimizer loop voice"
    " language_code speed",
    model=Effect.MODEL,
)
AUGMENT_SEARCH: Final = _table("query limit search_provider")
AUGMENT_SCRAPE: Final = _table("url")
KNOWN_MEMBERS: Final = frozenset(
    itertools.chain(
        PARAMETERS,
        REASONING,
        TEXT,
        EMBEDDINGS,
        DECISIONS,
        IMAGE_GENERATE,
        IMAGE_GENERATIONS,
        IMAGE_EDIT,
        IMAGE_UPSCALE,
        SPEECH,
        TRANSCRIPTION,
        VIDEO_QUEUE,
        AUDIO_QUEUE,
        AUGMENT_SEARCH,
        AUGMENT_SCRAPE,
    )
)
"""The names of all members above."""
LEAVES_OUT: Final = ("strip", "disable", "hide")
"""Prefixes of Venice parameters that only leave things out. Venice ignores unknown ones."""
OFF: Final[tuple[Any, ...]] = (None, False, "", "off", [], msgspec.UNSET)
"""Values that ask for nothing, whatever the member."""
USUAL: Final[Mapping[Effect, tuple[Any, ...]]] = {
    Effect.TIER: ("auto", "default", "standard"),
    Effect.MODALITIES: (["text"], []),
}
"""Values that do not change the price of a call."""
CLIENT_TOOLS: Final = frozenset(
    {
        "function",
        "custom",
        "local_shell",
        "apply_patch",
        "namespace",
        "computer",
        "computer_use_preview",
    }
)
"""Types of tools that always run at the client."""
PLAIN_CHOICES: Final = CLIENT_TOOLS | {"auto", "any", "none", "required", "tool", "allowed_tools"}
SEARCH_TOOL: Final = re.compile(
    r"web_?search(?:_preview)?(?:_\d{4}_?\d{2}_?\d{2})?|x_?search", re.IGNORECASE
)
SPELLS_MODEL: Final = ("model", "fallback", "route")
PARAMETER_IN_NAME: Final = re.compile(r"([A-Za-z0-9_]{1,64})=([A-Za-z0-9_.-]{0,256})")
PLAIN_NAME: Final = re.compile(r"[!-$&-9;-~]{1,256}")
"""Printable, without ``:`` and ``%``, which would be another name after decoding."""

MAX_COUNT: Final = 2**31
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
Budget = Annotated[int, msgspec.Meta(ge=-1, le=MAX_COUNT)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
TALLIES: Final = {
    Effect.SEARCH: "searches",
    Effect.SCRAPE: "scrapes",
    Effect.EXTENDS_PROMPT: "extensions",
}
COUNTS: Final = {Effect.CHOICES: Choices, Effect.MAXIMUM: Count, Effect.THINKING: Budget}
TABLES: Final = {Effect.PARAMETERS: PARAMETERS, Effect.REASONING: REASONING}


class Asked(msgspec.Struct):
    """What all members of a body ask for together."""

    searches: int = 0
    """How often a search is asked for. Venice may run each of them."""
    scrapes: int = 0
    extensions: int = 0
    has_venice_prompt: bool | None = None
    """None if not stated."""
    choices: int = 1
    maxima: dict[str, int] = {}
    thinking_tokens: int = 0
    fallbacks: tuple[str, ...] = ()
    other_models: tuple[str, ...] = ()
    """Names of models in unexpected places."""
    unpriced: str | None = None
    """The first member whose cost is unknown."""

    def facts(self) -> dict[str, Any]:
        """The fields of a call that is charged by the token."""
        window_filler = None
        if self.searches or self.scrapes:
            window_filler = "search results or pages"
        elif self.extensions:
            window_filler = "a character"
        return {
            "choices": self.choices,
            "stated_maxima": self.maxima,
            "thinking_tokens": self.thinking_tokens,
            "surcharge_nanos": SEARCH_NANOS * (self.searches + MAX_SCRAPED_PAGES * self.scrapes),
            "window_filler": window_filler,
            "has_venice_prompt": self.has_venice_prompt,
            "has_price": self.unpriced is None,
            "unpriced": self.unpriced,
            "fallbacks": self.fallbacks,
            "other_models": self.other_models,
        }

    def read(self, members: Mapping[str, Any], table: Table, within: str = "") -> None:
        """Read the members of one object.

        :raises ClientError: naming the member and the rule.
        """
        no_effect, model = Effect.NONE, Effect.MODEL
        for name, value in members.items():
            effect = table.get(name)
            if effect is no_effect or effect is model or value is None:
                continue
            field = within + name
            if effect is None and table is PARAMETERS and name.startswith(LEAVES_OUT):
                continue
            if effect is None:
                self._note_unknown(field, name, value)
            elif effect in USUAL:
                if value not in USUAL[effect]:
                    self._note_unpriced(field)
            elif effect is Effect.PREDICTION:
                self.thinking_tokens += len(msgspec.json.encode(value))
            else:
                self._note(effect, field, value)

    def _note(self, effect: Effect, field: str, value: Any) -> None:
        if effect in TALLIES:
            tally = TALLIES[effect]
            setattr(self, tally, getattr(self, tally) + (value not in OFF))
        elif effect in COUNTS:
            self._note_count(effect, field, _checked(field, value, COUNTS[effect]))
        elif effect in TABLES:
            self.read(_checked(field, value, dict[str, Any]), TABLES[effect], f"{field}.")
        elif effect is Effect.VENICE_PROMPT:
            self._note_prompt(value)
        elif effect is Effect.FALLBACKS:
            self.fallbacks = _fallbacks(field, value)
        elif effect is Effect.TOOLS:
            self._read_tools(field, value)
        elif effect is Effect.TOOL_CHOICE:
            self._read_choice(field, value)

    def _note_count(self, effect: Effect, field: str, count: int) -> None:
        if effect is Effect.CHOICES:
            self.choices *= count
        elif effect is Effect.MAXIMUM:
            self.maxima[field] = count
        else:
            # A negative budget leaves the amount to the model.
            self.thinking_tokens += count if count >= 0 else MAX_COUNT

    def read_parameters_in_name(self, parameters: Mapping[str, str]) -> None:
        """Read the parameters behind the model's name, which are all texts."""
        self.read(parameters, PARAMETERS, "model:")

    def _note_prompt(self, value: Any) -> None:
        if isinstance(value, bool):
            self.has_venice_prompt = bool(self.has_venice_prompt) or value
        elif isinstance(value, str):
            # Behind a name every value is a text, and how Venice reads "false" is unknown.
            self.has_venice_prompt = True

    def _note_unpriced(self, field: str) -> None:
        self.unpriced = self.unpriced or field

    def _note_unknown(self, field: str, name: str, value: Any) -> None:
        if value in OFF:
            return
        self._note_unpriced(field)
        self._note_models({name: value})

    def _note_models(self, value: Any) -> None:
        self.other_models += tuple(_models_in(value))
        if len(self.other_models) > MAX_MODELS_NAMED:
            raise ClientError(f"The body names more than {MAX_MODELS_NAMED} models.")

    def _read_tools(self, field: str, tools: Any) -> None:
        if not isinstance(tools, list):
            self._note_unpriced(field)
            return
        for index, tool in enumerate(tools):
            self.read_tool(f"{field}[{index}]", tool)

    def read_tool(self, field: str, tool: Any) -> None:
        """Read one tool, wherever it runs."""
        if not isinstance(tool, dict):
            self._note_unpriced(field)
            return
        kind = tool.get("type", "function")
        if not isinstance(kind, str):
            raise ClientError(f"{field}.type: must be a text.", param=f"{field}.type")
        if kind == "namespace":
            self._read_tools(f"{field}.tools", tool.get("tools", []))
        elif SEARCH_TOOL.fullmatch(kind):
            self.searches += 1
        elif not _is_run_by_client(kind, tool):
            self._note_unpriced(f"{field}.type")
            self._note_models(tool)
        self._read_beside_function(field, tool)

    def _read_beside_function(self, field: str, tool: Mapping[str, Any]) -> None:
        """Read the other members, since Venice may recognize a tool by a member's name."""
        for name in tool.keys() - {"type", "function"}:
            if SEARCH_TOOL.fullmatch(name):
                self.searches += 1
            elif spells_model(name):
                self._note_unpriced(f"{field}.{name}")
                self._note_models({name: tool[name]})

    def _read_choice(self, field: str, choice: Any) -> None:
        kind = choice.get("type", "function") if isinstance(choice, dict) else None
        if not isinstance(kind, str):
            return
        if SEARCH_TOOL.fullmatch(kind):
            self.searches += 1
        elif kind not in PLAIN_CHOICES:
            self._note_unpriced(f"{field}.type")
        if isinstance(tools := choice.get("tools"), list):
            self._read_tools(f"{field}.tools", tools)


def _is_run_by_client(kind: str, tool: Mapping[str, Any]) -> bool:
    """Whether the tool runs at the client. For some types a member of the tool decides."""
    if kind == "shell":
        environment = tool.get("environment")
        return environment is None or (
            isinstance(environment, dict) and environment.get("type") == "local"
        )
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return kind in CLIENT_TOOLS


def is_idle_search(tool: Any) -> bool:
    """Whether a tool is a search without access to the web. Venice has no index to search, so the
    tool is left out."""
    return (
        isinstance(tool, dict)
        and tool.get("external_web_access") is False
        and isinstance(kind := tool.get("type"), str)
        and SEARCH_TOOL.fullmatch(kind) is not None
    )


def split_model(name: str, field: str = "model") -> tuple[str, dict[str, str]]:
    """Split ``name:enable_web_search=on`` into the plain name and the parameters behind it. Venice
    reads these like the query of a URL: percent-encoded, joined by ``&``.

    :raises ClientError: when the name is ambiguous.
    """
    plain, _, behind = name.partition(":")
    if not PLAIN_NAME.fullmatch(plain):
        raise ClientError(
            f"{field}: must be 1 to 256 printable ASCII characters without spaces and %.",
            param=field,
        )
    parameters: dict[str, str] = {}
    for pair in behind.split("&"):
        if not pair:
            continue
        match = PARAMETER_IN_NAME.fullmatch(unquote(pair))
        if match is None or match[1] in parameters:
            raise ClientError(
                f"{field}: what follows the colon must be like enable_web_search=on, several joined"
                " by &, each name once.",
                param=field,
            )
        parameters[match[1]] = match[2]
    return plain, parameters


def plain_model(name: str, field: str = "model") -> str:
    """Check the name of a model that takes no parameters.

    :raises ClientError: when it has parameters, or is malformed.
    """
    plain, parameters = split_model(name, field)
    if parameters or plain != name:
        raise ClientError(f"{field}: takes no parameters behind a colon here.", param=field)
    return plain


def joined_model(plain: str, parameters: Mapping[str, str]) -> str:
    """Join the name and its parameters, in the one spelling that Venice gets."""
    if not parameters:
        return plain
    behind = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"{plain}:{behind}"


def price_facts(members: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """The fields of a call that is charged by the piece, from the members of its body or form:
    whether all of them have a price, and the names of models in unexpected places."""
    unknown = {name: value for name, value in members.items() if name not in table}
    asked = Asked()
    asked.read(unknown, {})
    return {
        "has_price": asked.unpriced is None,
        "unpriced": asked.unpriced,
        "other_models": asked.other_models,
    }


def spells_model(name: str) -> bool:
    """Whether a member of this name might name models."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return any(part in folded for part in SPELLS_MODEL)


def _models_in(value: Any) -> Iterator[str]:
    """The texts of all members that may name models, at any depth."""
    waiting = [(value, False)]
    while waiting:
        inner, is_model = waiting.pop()
        if isinstance(inner, dict):
            waiting += [(item, is_model or spells_model(name)) for name, item in inner.items()]
        elif isinstance(inner, list):
            waiting += [(item, is_model) for item in inner]
        elif is_model and isinstance(inner, str):
            yield inner


def _fallbacks(field: str, value: Any) -> tuple[str, ...]:
    rule = f"{field}: must be a list of at most {MAX_FALLBACKS} objects, each with a model alone."
    if not isinstance(value, list) or len(value) > MAX_FALLBACKS:
        raise ClientError(rule, param=field)
    names = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != {"model"}:
            raise ClientError(rule, param=field)
        name = item["model"]
        if not isinstance(name, str) or split_model(name, field)[1]:
            raise ClientError(f"{field}: must name models by their plain names.", param=field)
        names.append(name)
    return tuple(names)


def _checked(field: str, value: Any, shape: Any) -> Any:
    try:
        return body.convert(value, shape)
    except ClientError as error:
        raise ClientError(f"{field}: {error.message}", param=field) from None
