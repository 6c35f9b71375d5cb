"""The events of a response that is translated from a chat completion: whatever the completion
holds, they are in order, in OpenAI's own form, and the SDK puts them together."""

import json

import httpx
import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types import responses as openai_types

from service import responses
from service.errors import UpstreamBusy, UpstreamCut, UpstreamError, UpstreamRejected

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
TOOLS = [
    LOOK,
    {"type": "custom", "name": "write"},
    {"type": "local_shell"},
    {"type": "shell"},
    {"type": "apply_patch"},
    {"type": "namespace", "name": "mcp__", "description": "Looks.", "tools": [LOOK]},
    {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
]
REQUEST = {
    "model": "m",
    "input": "x",
    "instructions": "Be short.",
    "tools": TOOLS,
    "include": ["message.output_text.logprobs"],
}
CLASSES = {
    kind: item
    for item in vars(openai_types).values()
    if isinstance(item, type) and "type" in getattr(item, "model_fields", {})
    for kind in getattr(item.model_fields["type"].annotation, "__args__", ())
    if isinstance(kind, str) and kind.startswith("response.") and item.__name__.endswith("Event")
}
"""OpenAI's own classes of events, by their types."""
ERROR = UpstreamCut("Venice went away.")
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
DELTAS = {
    "response.output_text.delta": ("response.output_text.done", "text"),
    "response.refusal.delta": ("response.refusal.done", "refusal"),
    "response.reasoning_summary_text.delta": ("response.reasoning_summary_text.done", "text"),
    "response.function_call_arguments.delta": (
        "response.function_call_arguments.done",
        "arguments",
    ),
    "response.custom_tool_call_input.delta": ("response.custom_tool_call_input.done", "input"),
}


def answer():
    """Return a translation of a completion."""
    _, context = responses.chat_body(REQUEST)
    return responses.ChatAnswer(context)


def stated(error):
    """Return the body that a response with the error would have."""
    return {"error": {"message": error.message, "code": error.code}}


def read(stream):
    """Return the events of a stream, whose lines must be as OpenAI writes them."""
    *pieces, last, rest = stream.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    events = []
    for piece in pieces:
        kind, data = piece.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        events.append(event)
    return events


class Validator:
    """Checks a stream of events by the rules of OpenAI's reference, without the writer's code."""

    def __init__(self):
        self.open = None
        self.part = None
        self.text = ""
        self.done = []
        self.ids = set()

    def check(self, events):
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        kinds = [event["type"] for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] in TERMINAL
        assert [kind in (*kinds[:2], *TERMINAL) for kind in kinds].count(True) == 3
        for event in events:
            CLASSES[event["type"]].model_validate(event, strict=False)
        for event in events[2:-1]:
            self.take(event)
        self.end(events[0]["response"], events[-1])

    def take(self, event):
        kind = event["type"]
        assert event["output_index"] == len(self.done)
        if kind == "response.output_item.added":
            assert self.open is None
            self.open, self.text = event["item"], ""
            assert self.open["id"] not in self.ids
            self.ids.add(self.open["id"])
        elif kind == "response.output_item.done":
            item = event["item"]
            assert self.part is None
            assert (item["id"], item["type"]) == (self.open["id"], self.open["type"])
            assert item.get("call_id") == self.open.get("call_id")
            self.open = None
            self.done.append(item)
        else:
            assert event["item_id"] == self.open["id"]
            self.take_part(kind, event)

    def take_part(self, kind, event):
        if kind.endswith("part.added"):
            assert self.part is None
            self.part, self.text = event["part"]["type"], ""
        elif kind.endswith("part.done"):
            part = event["part"]
            assert (part["type"], self.part) == (self.part, part["type"])
            assert part.get("text", part.get("refusal")) == self.text
            self.part = None
        elif kind in DELTAS:
            assert event["delta"] or event.get("logprobs")
            self.text += event["delta"]
        elif kind != "response.output_text.annotation.added":
            assert event[dict(DELTAS.values())[kind]] == self.text

    def end(self, created, last):
        response = last["response"]
        assert last["type"] == f"response.{response['status']}"
        assert response["id"] == created["id"]
        assert response["output"] == self.done
        if last["type"] == "response.failed":
            assert response["error"]["message"]
            assert last["error"]["message"]
            return
        assert (self.open, response["error"]) == (None, None)
        reason = response["incomplete_details"]
        assert (reason is not None) == (last["type"] == "response.incomplete")
        call_ids = [item["call_id"] for item in self.done if "call_id" in item]
        assert len(call_ids) == len(set(call_ids))


def accumulate(stream):
    """Let OpenAI's SDK put the stream together. Returns the final response, or its error."""
    head = {"Content-Type": "text/event-stream"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=head, content=stream))
    http = httpx.Client(transport=transport)
    with openai.OpenAI(base_url="http://x", api_key="k", max_retries=0, http_client=http) as client:
        try:
            with client.responses.stream(model="m", input="x") as events:
                last = list(events)[-1]
        except openai.APIError as error:
            return error
    return last.response


texts = st.text(max_size=8) | st.sampled_from(["a ^1^ b", "\ud83d", "\ude00", "\ud83d\ude00"])
odd = (
    st.none() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.just("")
)
names = st.sampled_from(
    ["look", "write", "local_shell", "shell", "apply_patch", "mcp__look", "tool_search", "invented"]
)
arguments = st.sampled_from(
    [
        "{}",
        '{"where":',
        '"here"}',
        '{"input": "*** Begin"}',
        '{"input": "cut',
        '{"command": ["ls"]}',
        '{"command": "ls"}',
        '{"commands": ["ls"]}',
        '{"command": [1], "commands": [null]}',
        '{"type": "update_file", "path": "a", "diff": "+b"}',
        "no JSON",
        "",
    ]
) | st.text(max_size=5)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "index": st.integers(0, 2) | st.none(),
            "id": st.sampled_from(["a", "b", "c", "", None]),
            "type": st.just("function"),
            "function": st.none()
            | st.fixed_dictionaries(
                {},
                optional={
                    "name": names | st.just("") | st.none(),
                    "arguments": arguments | st.none() | st.just({"where": "here"}),
                },
            ),
        },
    ),
    max_size=3,
)
details = st.lists(
    st.fixed_dictionaries({"type": st.just("reasoning.text")}, optional={"text": texts}),
    max_size=2,
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": texts | st.none() | st.just([{"type": "text", "text": "part"}]),
        "reasoning_content": texts | st.none(),
        "refusal": texts | st.none(),
        "tool_calls": tool_calls | st.none(),
        "reasoning_details": details | odd,
        "thought_signature": st.sampled_from(["sig", None]),
        "unknown": odd,
    },
)
logprobs = st.fixed_dictionaries(
    {
        "content": st.lists(
            st.fixed_dictionaries(
                {"token": texts | odd, "logprob": st.floats(-9, 0) | odd},
                optional={"bytes": st.just([1]) | odd, "top_logprobs": st.just([]) | odd},
            ),
            max_size=2,
        )
        | odd
    }
)
finishes = st.sampled_from(["stop", "length", "tool_calls", "content_filter", "END", "", None])
choices = st.fixed_dictionaries(
    {"delta": deltas},
    optional={
        "index": st.sampled_from([0, 0, 0, 1]),
        "finish_reason": finishes,
        "logprobs": st.none() | logprobs,
    },
)
counts = st.integers(0, 99) | st.sampled_from(["7", 5.0, None, -1, "x", {}])
usages = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": counts,
        "completion_tokens": counts,
        "total_tokens": counts,
        "prompt_tokens_details": st.fixed_dictionaries({"cached_tokens": counts}) | odd,
        "completion_tokens_details": st.fixed_dictionaries({"reasoning_tokens": counts}) | odd,
    },
)
citations = st.lists(
    st.fixed_dictionaries({}, optional={"url": texts | odd, "title": texts | odd}), max_size=2
)
chunks = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["chatcmpl-1", "chatcmpl-2", None, 7, ""]),
        "model": st.sampled_from(["m", None, {}]),
        "created": counts,
        "choices": st.lists(choices, max_size=2),
        "usage": usages | odd,
        "venice_parameters": st.fixed_dictionaries({"web_search_citations": citations | odd}),
    },
)
WHOLE_CALLS = {
    "look": '{"where": "here"}',
    "write": '{"input": "line 1\\nline 2"}',
    "local_shell": '{"command": ["ls", "-l"]}',
    "shell": '{"commands": ["ls"]}',
    "apply_patch": '{"type": "update_file", "path": "a", "diff": "+b"}',
    "mcp__look": "{}",
    "tool_search": '{"query": "a"}',
    "invented": "no JSON",
}


@st.composite
def sound_calls(draw):
    """Generate the chunks of calls that are complete, whose pieces may alternate."""
    called = draw(st.lists(st.sampled_from(list(WHOLE_CALLS)), min_size=1, max_size=3))
    has_indexes = draw(st.booleans())
    pieces = []
    for index, name in enumerate(called):
        whole, cut = WHOLE_CALLS[name], draw(st.integers(0, 20))
        id_ = f"call_{draw(st.integers(0, 10**9))}"
        place = {"index": index} if has_indexes else {"index": 0}
        begun = {**place, "id": id_, "function": {"name": name, "arguments": whole[:cut]}}
        ended = {**place, "id": id_, "function": {"arguments": whole[cut:]}}
        pieces.append((begun, ended))
    order = [begun for begun, _ in pieces] + draw(st.permutations([end for _, end in pieces]))
    if draw(st.booleans()):
        order = [piece for pair in pieces for piece in pair]
    return [
        json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]})
        for piece in order
    ]


sound_texts = st.lists(
    st.sampled_from(["content", "reasoning_content", "refusal"]).flatmap(
        lambda name: texts.map(
            lambda text: json.dumps({"choices": [{"index": 0, "delta": {name: text}}]})
        )
    ),
    max_size=4,
)
odd_lines = st.lists(chunks.map(json.dumps), min_size=1, max_size=3)
broken = st.sampled_from(
    ['{"error": {"message": "no"}}', "<html>", "null", "[]", '{"choices": 5}', '{"a":', "7"]
).map(lambda line: [line])


@st.composite
def lines(draw):
    """Generate the chunks of a stream: sound and odd ones, and seldom one that is broken."""
    kinds = draw(st.lists(st.sampled_from("ttttccoo"), max_size=5))
    if draw(st.integers(0, 9)) == 0:
        kinds.append("b")
    found = {"t": sound_texts, "c": sound_calls(), "o": odd_lines, "b": broken}
    runs = [draw(found[kind]) for kind in kinds]
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": draw(finishes)}]}
    return [*(line for run in runs for line in run), json.dumps(finish)]


streams = st.tuples(
    lines(),
    st.sampled_from(["\n\n", "\n\n", "\r\n\r\n", ""]),
    st.booleans(),
    st.integers(1, 400),
    st.integers(0, 60),
)


def translated(found, break_, has_done, size, cut):
    """Translate a stream that arrives in pieces of some size and may be cut."""
    data = [f"data: {line}" for line in [*found, *(["[DONE]"] if has_done else [])]]
    content = (break_ or "\n\n").join(data).encode() + break_.encode()
    if cut and not has_done:
        content = content[:-cut]
    translation, out = answer(), b""
    try:
        for start in range(0, len(content), size):
            out += translation.feed(content[start : start + size])
        out += translation.end()
    except UpstreamError as error:
        out += translation.failure(error, stated(error))
    return out


def contents(found, name):
    """Return the texts of a member that a completion's chunks have, joined."""
    texts = []
    for line in found:
        chunk = json.loads(line)
        for choice in chunk.get("choices", ()) if isinstance(chunk, dict) else ():
            value = choice["delta"].get(name) if choice.get("index", 0) == 0 else None
            texts.append(value[0]["text"] if isinstance(value, list) else value or "")
    return "".join(texts)


def assert_nothing_is_lost(found, response):
    """Assert that the response has the completion's texts. Halves of surrogate pairs may have
    become U+FFFD."""
    written = {"content": "", "refusal": "", "reasoning_content": ""}
    for item in response["output"]:
        for part in [*item.get("summary", ()), *item.get("content", ())]:
            name = {"summary_text": "reasoning_content", "output_text": "content"}
            written[name.get(part["type"], "refusal")] += part.get("text", part.get("refusal"))
    for name, text in written.items():
        expected = contents(found, name)
        if not any("\ud800" <= sign <= "\udfff" for sign in expected):
            assert text == expected


@settings(max_examples=5 * settings.default.max_examples)
@given(stream=streams)
@example(stream=([], "\n\n", True, 9, 0))
@example(stream=(['{"choices":[{"delta":{"content":"\\ud83d"}}]}'], "\n\n", True, 9, 0))
def test_any_stream_becomes_a_valid_one(stream):
    """Random, odd and cut streams become streams that follow OpenAI's rules, and its SDK reads
    them to their end."""
    out = translated(*stream)
    events = read(out)
    Validator().check(events)

    last, read_by_sdk = events[-1], accumulate(out)
    if last["type"] == "response.failed":
        assert isinstance(read_by_sdk, openai.APIError)
        assert read_by_sdk.message == last["error"]["message"]
    else:
        assert read_by_sdk.id == last["response"]["id"]
        assert len(read_by_sdk.output) == len(last["response"]["output"])
        found, _, has_done, _, cut = stream
        if has_done or not cut:
            assert_nothing_is_lost(found, last["response"])


def chunk(**delta):
    """Return an event of a completion."""
    choice = {"index": 0, "delta": delta}
    return f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice]})}\n\n".encode()


def piece(arguments, **call):
    """Return a piece of a call of ``look``."""
    name = {"name": call.pop("name")} if "name" in call else {}
    return chunk(tool_calls=[{**call, "function": {**name, "arguments": arguments}}])


def output_of(*chunks):
    """Return the items of the response that the events of a completion become."""
    translation = answer()
    out = translation.feed(b"".join(chunks) + b"data: [DONE]\n\n")
    events = read(out)
    Validator().check(events)
    assert translation.end() == b""
    return events[-1]["response"]["output"]


def test_calls_that_share_an_index_stay_apart():
    """Calls are told apart by their ids, also if they share an index and their pieces alternate."""
    items = output_of(
        piece('{"where":', index=0, id="a", name="look"),
        piece('{"where":', index=0, id="b", name="look"),
        piece('"A"}', index=0, id="a"),
        piece('"B"}', index=0, id="b"),
    )

    found = [(item["call_id"], item["arguments"]) for item in items]
    assert found == [("a", '{"where":"A"}'), ("b", '{"where":"B"}')]


def test_a_name_that_comes_late_is_waited_for():
    """A call begins once its name is known, with all of its arguments."""
    (item,) = output_of(piece('{"a', index=0, id="a"), piece('":1}', index=0, name="look"))

    assert (item["name"], item["arguments"]) == ("look", '{"a":1}')


def test_text_after_a_call_is_kept():
    """A text that comes after a call has begun is a message after the calls."""
    items = output_of(
        chunk(content="before"),
        piece("{}", index=0, id="a", name="look"),
        chunk(content="after"),
        piece(" ", index=0),
    )

    assert [item["type"] for item in items] == ["message", "function_call", "message"]
    assert items[1]["arguments"] == "{} "
    assert items[2]["content"][0]["text"] == "after"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("write", '{"input": "a\\nb"}', {"type": "custom_tool_call", "input": "a\nb"}),
        ("write", '{"patch": "a"}', {"input": "a"}),
        ("write", '"a"', {"input": "a"}),
        ("write", "*** Begin Patch", {"input": "*** Begin Patch"}),
        ("write", "", {"input": ""}),
        (
            "local_shell",
            '{"command": "ls -l", "timeout_ms": 5, "working_directory": null}',
            {
                "type": "local_shell_call",
                "action": {
                    "type": "exec",
                    "env": {},
                    "command": ["bash", "-lc", "ls -l"],
                    "timeout_ms": 5,
                },
            },
        ),
        (
            "shell",
            '{"commands": ["ls"]}',
            {"type": "shell_call", "action": {"commands": ["ls"]}},
        ),
        (
            "apply_patch",
            '{"type": "create_file", "path": "a", "diff": "+b"}',
            {
                "type": "apply_patch_call",
                "operation": {"type": "create_file", "path": "a", "diff": "+b"},
            },
        ),
        ("mcp__look", "{}", {"type": "function_call", "name": "look", "namespace": "mcp__"}),
        (
            "tool_search",
            '{"query": "a"}',
            {"type": "tool_search_call", "execution": "client", "arguments": {"query": "a"}},
        ),
        ("invented", "{}", {"type": "function_call", "name": "invented"}),
    ],
)
def test_a_call_becomes_the_item_that_its_client_knows(name, arguments, expected):
    """A call of a function that stands for a tool of another type is an item of that type."""
    (item,) = output_of(piece(arguments, index=0, id="a", name=name))

    assert item["call_id"] == "a"
    assert {member: item[member] for member in expected} == expected


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("local_shell", '{"cmd": 1}'),
        ("local_shell", '{"command": [1]}'),
        ("local_shell", '{"command": ["ls"], "timeout_ms": "soon"}'),
        ("shell", '{"commands": {}}'),
        ("apply_patch", '{"type": "rename_file", "path": "a"}'),
        ("tool_search", "no JSON"),
    ],
)
def test_a_call_without_its_parameters_fails(name, arguments):
    """Arguments that are none of the tool end the response with an error that names the tool."""
    translation = answer()
    with pytest.raises(UpstreamError, match=name):
        translation.feed(piece(arguments, index=0, id="a", name=name) + b"data: [DONE]\n\n")
    events = read(translation.failure(ERROR, stated(ERROR)))
    assert events[-1]["type"] == "response.failed"


def test_reasoning_comes_back_with_what_the_model_needs():
    """What a model wants back with its reasoning is sealed into the items, and a later request
    gives it back as it was."""
    details = [{"type": "reasoning.text", "text": "deep", "index": 0, "signature": "s"}]
    items = output_of(
        chunk(reasoning_content="Hmm", reasoning_details=details),
        piece("{}", index=0, id="a", name="look"),
        chunk(thought_signature="late"),
    )
    assert [item["type"] for item in items] == ["reasoning", "function_call", "reasoning"]
    result = {"type": "function_call_output", "call_id": "a", "output": "seen"}
    body, _ = responses.chat_body({**REQUEST, "input": [*items, result]})

    (_, turn, given) = body["messages"]
    assert turn["reasoning_content"] == "Hmm"
    assert turn["reasoning_details"] == details
    assert turn["thought_signature"] == "late"
    assert [call["id"] for call in turn["tool_calls"]] == ["a"]
    assert given == {"role": "tool", "tool_call_id": "a", "content": "seen"}


def test_an_answer_that_is_too_large_fails():
    """A response repeats all of its text at its end. So a stream that would never end fails once
    it is too large to hold, with what came before the failure."""
    translation, out = answer(), b""
    with pytest.raises(UpstreamError, match="too large"):
        for _ in range(65):
            out += translation.feed(chunk(content="x" * 2**20))
    events = read(out + translation.failure(ERROR, stated(ERROR)))
    assert [event["type"] for event in events].count("response.output_text.delta") == 63
    assert events[-1]["type"] == "response.failed"


def test_search_results_count_once():
    """Venice may state the results of its search with every chunk. They stay one search, and each
    mark of the text that names one of them is a citation of it."""
    results = [{"url": f"https://a.example/{number}", "title": "A"} for number in (1, 2)]
    searched = {
        "choices": [{"index": 0, "delta": {"content": "See ^1 , 2^ and ^3^. "}}],
        "venice_parameters": {"web_search_citations": results},
    }
    message, search = output_of(f"data: {json.dumps(searched)}\n\n".encode() * 2)

    (part,) = message["content"]
    cited = [(one["url"], one["start_index"]) for one in part["annotations"]]
    assert cited == [(result["url"], start) for start in (4, 25) for result in results]
    assert [source["url"] for source in search["action"]["sources"]] == [
        result["url"] for result in results
    ]


def test_a_plain_completion_becomes_the_response_of_its_stream():
    """A whole completion and its stream become the same items, usage and reason."""
    message = {
        "role": "assistant",
        "reasoning_content": "Hmm",
        "content": "Hello",
        "refusal": "no",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        ],
    }
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    whole = {"id": "c", "model": "m", "created": 7, "choices": [choice], "usage": usage}
    streamed = {**whole, "choices": [{**choice, "delta": choice["message"], "message": None}]}
    response = json.loads(answer().whole(json.dumps(whole).encode()))
    last = read(answer().feed(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(streamed).encode()))[-1][
        "response"
    ]

    assert response["id"] == "resp_c"
    assert response["created_at"] == 7
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }
    for found in (response, last):
        for item in found["output"]:
            del item["id"]
    assert response == last
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]


CREATED = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,'
    b'"response":{"id":"r","object":"response","model":"m","output":[]}}\n\n'
)
DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":7,"delta":"\\"error\\""}\n\n'
)
COMPLETED = (
    b'event: response.completed\ndata: {"type":"response.completed","sequence_number":8,'
    b'"response":{"id":"r"}}\n\n'
)
PING = b": ping\n\n"
FAILED = b'event: error\ndata: {"type":"error","sequence_number":8,"message":"no"}\n\n'


@pytest.mark.parametrize(
    ("passed", "kinds", "number"),
    [
        ([], ["response.created", "response.in_progress", "response.failed"], 2),
        ([PING], ["response.created", "response.in_progress", "response.failed"], 2),
        ([CREATED], ["response.failed"], 1),
        ([PING, CREATED], ["response.failed"], 1),
        ([CREATED, DELTA], ["response.failed"], 8),
        ([CREATED + DELTA, PING], ["response.failed"], 8),
        ([CREATED, DELTA, COMPLETED], [], 0),
        ([CREATED, DELTA + COMPLETED + b"data: [DONE]\n\n"], [], 0),
        ([CREATED, FAILED], [], 0),
    ],
)
def test_a_stream_that_passes_is_ended_once(passed, kinds, number):
    """What passes stays byte for byte; if it breaks off before its end, one event ends it."""
    translation = responses.PassedAnswer({"model": "m"})
    assert [translation.feed(events) for events in passed] == passed
    end = translation.failure(ERROR, stated(ERROR))

    events = read(end) if end else []
    assert [event["type"] for event in events] == kinds
    if events:
        assert events[-1]["sequence_number"] >= number
        assert events[-1]["error"]["code"] == "upstream_cut"
        assert events[-1]["response"]["error"]["message"] == "Venice went away."
        assert CREATED not in b"".join(passed) or events[-1]["response"]["id"] == "r"
    assert translation.failure(ERROR, stated(ERROR)) == b""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UpstreamBusy("Busy.", retry_after_s=7), "rate_limit_exceeded", "try again in 7s."),
        (UpstreamRejected("Bad words."), "invalid_prompt", "Bad words."),
        (UpstreamError("Failed."), "server_error", "Failed."),
    ],
)
def test_failures_have_the_codes_that_clients_act_on(error, code, message):
    """A failure has one of OpenAI's codes and a text with the time to wait."""
    found = read(answer().failure(error, stated(error)))[-1]["response"]["error"]
    assert found["code"] == code
    assert found["message"].endswith(message)
