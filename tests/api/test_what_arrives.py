"""Whatever a body requests, in whatever spelling, what arrives at Venice costs no more than its
hold.

The test prices the arrived body with a parser of its own, which assumes the worst that any parser
could read. A body without a price must not arrive at all.
"""

import json
import math
import urllib.parse
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import MODEL, set_limit

from service import app as application
from service.sandbox.models import MODELS as SANDBOX_MODELS

CHAT, RESPONSES = "/chat/completions", "/responses"
OPUS, KIMI = "claude-opus-4-8", "kimi-k2-6"
PRICED = {model.id: model for model in SANDBOX_MODELS if model.rates is not None}
OTHER_NAMES = {"gpt-4o": "zai-org-glm-5-1", "gpt-4o-mini": MODEL, "gpt-5.2": KIMI, "fastest": KIMI}
FEE_NANOS = 10_000_000
PICTURE_TOKENS = 12_000
RESULT_TOKENS = 20_000
"""The most tokens that a search may add to a prompt."""
MAX_OUTPUT_TOKENS = 32_768
"""The largest output of the sandbox's models."""
PLAIN = {
    *("model", "messages", "input", "stream", "user", "temperature", "metadata", "tool_choice"),
    *("venice_parameters", "tools", "fallbacks", "web_search", "web_search_options", "reasoning"),
    *("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens", "seed"),
}
PLAIN_PARAMETERS = {
    *("enable_web_search", "enable_x_search", "enable_web_scraping", "character_slug"),
    *("include_venice_system_prompt", "disable_thinking", "enable_web_citations"),
    "include_search_results_in_stream",
}
SEARCHES_NOTHING = ("enable_web_citations", "include_search_results_in_stream")
SEARCHES = ("websearch", "xsearch")
RUN_BY_CLIENTS = ("function", "custom", "shell", "localshell")
"""Tools by their normalized types; a shell with an environment runs elsewhere."""


class Pairs(list):
    """A JSON object as a list of members, in which a name may occur twice."""


def pairs(**members):
    """Yield the members, each once."""
    return Pairs(members.items())


def written(value, escapes, space):
    """Return JSON in which some characters are escaped needlessly."""
    if isinstance(value, Pairs):
        inner = (
            f"{written(n, escapes, space)}{space}:{written(v, escapes, space)}" for n, v in value
        )
        return "{" + f"{space},".join(inner) + "}"
    if isinstance(value, dict):
        return written(Pairs(value.items()), escapes, space)
    if isinstance(value, list):
        inner = (written(item, escapes, space) for item in value)
        return "[" + f",{space}".join(inner) + "]"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and "\\" not in text:
        text = "".join(f"\\u{ord(sign):04x}" if sign in escapes else sign for sign in text)
    return text


models = st.sampled_from(
    [*[MODEL, KIMI, OPUS, "gpt-5.2"] * 3, "fastest", "Llama.3.3.70B", "unpriced-preview", "none"]
)
suffixes = st.sampled_from(
    [
        *[""] * 9,
        *(":", ":enable_web_search=on", ":enable_web_search=off"),
        *(":enable%5Fweb%5Fsearch=on", ":enable%255Fweb%255Fsearch=on", "%3Aenable_web_search=on"),
        *(":enable_x_search=%74rue&enable_web_scraping=1", ":Enable_Web_Search=on"),
        *(":disable_thinking=true&enable_web_search=auto", ":character_slug=a", ":a=b;c=d"),
    ]
)
counts = st.sampled_from([1, 2, 3, 100, 500, 5_000]) | st.sampled_from(
    [1, 2, 128, 10**6, 10**20, 0, -1, 2.0, "2", True, None]
)
wishes = st.sampled_from([True, False, None, "on", "off", "auto", "", 1, {}, "true"])
parts = st.sampled_from(
    [
        {"type": "text", "text": "What is that?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000}},
        {"type": "input_image", "image_url": "https://example.com/a.png"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
    ]
)
contents = st.text(max_size=200) | st.lists(parts, min_size=1, max_size=3)
messages = st.lists(
    st.builds(lambda content: pairs(role="user", content=content), contents), min_size=1, max_size=3
)
known_tools = st.sampled_from([{"type": "web_search"}, {"type": "x_search"}])
tools = st.lists(
    known_tools
    | st.sampled_from(
        [
            {"type": "function", "function": {"name": "f", "parameters": {"file": 1}}, "name": "f"},
            {"type": "Web_Search_Preview", "search_context_size": "high"},
            {"type": "web_search", "external_web_access": False},
            {"type": "image_generation", "model": OPUS},
            {"type": "code_interpreter"},
            {"type": "mcp", "server_url": "https://example.com"},
            {"type": "namespace", "tools": [{"type": "web_search"}, {"type": "shell"}]},
        ]
    ),
    min_size=1,
    max_size=2,
)
parameters = st.lists(
    st.tuples(st.sampled_from([*sorted(PLAIN_PARAMETERS), "Enable_Web_Search", "model"]), wishes),
    max_size=3,
).map(Pairs)
fallbacks = st.lists(models.map(lambda name: {"model": name}), max_size=2)
extras = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["n", "best_of", "max_tokens", "max_completion_tokens"]), counts),
        st.tuples(st.just("max_output_tokens"), counts),
        st.tuples(st.just("reasoning"), counts.map(lambda count: {"max_tokens": count})),
        st.tuples(st.sampled_from(["web_search", "web_search_options", "Web_Search"]), wishes),
        st.tuples(st.just("venice_parameters"), parameters),
        st.tuples(st.just("tools"), tools),
        st.tuples(st.just("fallbacks"), fallbacks),
        st.tuples(st.just("model"), models),
        st.tuples(st.sampled_from(["plugins", "models", "speed", "service_tier"]), st.just([OPUS])),
        st.tuples(st.sampled_from(["user", "metadata", "temperature", "seed"]), st.just(None)),
    ),
    max_size=4,
)


@st.composite
def bodies(draw):
    """Generate a path and the bytes of a body."""
    path = draw(st.sampled_from([CHAT, RESPONSES]))
    conversation = {"messages" if path == CHAT else "input": draw(messages)}
    model = draw(models) + draw(suffixes)
    members = draw(st.permutations([*pairs(model=model, **conversation), *draw(extras)]))
    escapes = draw(st.sampled_from(["", "", "e", "_m", "abcdefghijklmnopqrstuvwxyz"]))
    space = draw(st.sampled_from(["", " ", "\n  "]))
    return path, written(Pairs(members), escapes, space).encode("utf-8", "surrogatepass")


def folded(name):
    """Return the name without characters that a lenient parser may ignore."""
    return "".join(sign for sign in name.casefold() if sign.isalnum())


class Arrived:
    """The most that an arrived body can cost."""

    def __init__(self, path, content):
        self.path = path
        self.members = json.loads(content, object_pairs_hook=self._once)
        self.fees = 0
        self.extra_tokens = 0
        self.is_unbounded = False
        self.has_no_price = False

    @staticmethod
    def _once(found):
        names = [name for name, _ in found]
        assert len(set(names)) == len(names), f"a member arrived twice: {names}"
        return dict(found)

    def max_nanos(self):
        """The cost in nano-dollars, infinite where it is not known."""
        name, _, suffix = urllib.parse.unquote(
            urllib.parse.unquote(self.members["model"])
        ).partition(":")
        names = [name, *(item["model"] for item in self.members.get("fallbacks") or ())]
        given = dict(urllib.parse.parse_qsl(suffix, keep_blank_values=True))
        for name, value in chain(given.items(), self._parameters(self.members)):
            self._parameter(name, value)
        for name, value in self.members.items():
            if name not in PLAIN and value not in (None, False, "", "off"):
                self.has_no_price = True
        if any(
            self.members.get(wish) not in (None, False, "", "off")
            for wish in ("web_search", "web_search_options")
        ):
            self._search()
        self._tools(self.members.get("tools") or ())
        self._content(self.members.get("messages", self.members.get("input")))
        if self.has_no_price:
            return math.inf
        return max(map(self._of_model, names)) + self.fees

    def _parameters(self, members):
        return (members.get("venice_parameters") or {}).items()

    def _parameter(self, name, value):
        if value in (None, False, "", "off"):
            return
        if name in SEARCHES_NOTHING:
            return
        if any(word in folded(name) for word in ("search", "scrap")):
            self._search(10 if "scrap" in name else 1)
        elif "character" in name:
            self.extra_tokens += RESULT_TOKENS
        elif name == "include_venice_system_prompt":
            self.extra_tokens += 1_000
        if name not in PLAIN_PARAMETERS:
            self.has_no_price = True

    def _search(self, count=1):
        self.fees += FEE_NANOS * count
        self.extra_tokens += RESULT_TOKENS

    def _tools(self, listed):
        for tool in listed:
            kind = folded(tool.get("type", "function"))
            if kind.startswith(SEARCHES):
                self._search()
            elif kind == "namespace":
                self._tools(tool["tools"])
            elif kind not in RUN_BY_CLIENTS or tool.get("environment"):
                self.has_no_price = True

    def _content(self, value):
        if isinstance(value, list):
            for item in value:
                self._content(item)
        elif isinstance(value, dict):
            if "image" in value.get("type", ""):
                self.extra_tokens += PICTURE_TOKENS
            elif value.get("type", "text") != "text":
                self.is_unbounded = True
            else:
                self._content(value.get("content") or value.get("text"))
        elif isinstance(value, str):
            self.extra_tokens += len(value.encode("utf-8", "replace"))

    def _of_model(self, name):
        model = PRICED.get(OTHER_NAMES.get(name, name))
        assert model is not None, f"a model without a price arrived: {name}"
        window = model.context
        prompt = window if self.is_unbounded else min(window, self.extra_tokens)
        return model.cost_nanos(prompt, self._output_tokens())

    def _output_tokens(self):
        named = ("max_tokens", "max_completion_tokens", "max_output_tokens")
        if self.path == RESPONSES:
            assert "max_output_tokens" in self.members
        stated = [self.members[name] for name in named if self.members.get(name) is not None]
        budget = (self.members.get("reasoning") or {}).get("max_tokens") or 0
        most = max(stated, default=math.inf) + (budget if budget >= 0 else math.inf)
        choices = (self.members.get("n") or 1) * (self.members.get("best_of") or 1)
        return int(min(most, MAX_OUTPUT_TOKENS)) * choices


@pytest.fixture
async def money_caller(service):
    """A caller with a limit of money that is never reached."""
    caller = await service.new_caller()
    await set_limit(caller, unit="usd", period="day", ceiling="1000000")
    return caller


EXAMPLES = 15 * settings.default.max_examples


@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies())
async def test_what_arrives_is_held_for(money_caller, upstream, body):
    """What arrives at Venice is covered by the hold; a refused body does not arrive."""
    path, content = body
    upstream.calls.clear()
    service, headers = money_caller.service, money_caller.headers
    headers = {**headers, "Content-Type": "application/json"}
    async with service.http.post(f"/v1{path}", data=content, headers=headers) as response:
        answer = await response.json()
    calls = [*upstream.calls.to(CHAT), *upstream.calls.to(RESPONSES)]
    if not calls:
        assert response.status in (400, 402, 404), answer
        return
    (call,) = calls
    database = service.app[application.api.DATABASE]
    bound_nanos = await database.fetchval(
        "SELECT bound_nanos FROM public.ledger_entries WHERE organization_id = $1"
        " ORDER BY id DESC LIMIT 1",
        money_caller.organization_id,
    )
    assert bound_nanos >= Arrived(call.path.removeprefix("/api/v1"), call.body).max_nanos(), (
        content,
        call.body,
    )
