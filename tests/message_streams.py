"""Streams of chat completions as models and providers send them, odd and broken ones too, and an
independent check of the message events that are made of them."""

import itertools
import json

from hypothesis import strategies as st

from service import anthropic
from service.errors import ServiceError

ODD = st.none() | st.sampled_from(["", 5, 1.5, True, [], {}, [None], {"a": 1}, "text"])
TEXT = st.text(max_size=4) | st.sampled_from(["\ud83d", "\ude00", "^1^", "a^2,1^"])
IDS = st.sampled_from(["call_A", "call_B", "", None, 7])
NAMES = st.sampled_from(["look", "look", "see", "", None, 7])
ARGUMENTS = st.sampled_from(
    [
        *['{"city":"A"}', '{"city":', '"B"}', "{", "}", "{}", "", None, " ", "null", "oops"],
        *["{'a': 1}", '{"a": tru', "e}", {"a": 1}, '{"b":[1,{"c":"\\', 'n"}]}'],
    ]
)
DETAIL = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 1) | ODD,
        "type": st.just("reasoning.text"),
        "text": TEXT | ODD,
        "signature": st.sampled_from(["s=", ""]),
        "data": st.sampled_from(["d=", ""]),
    },
)
CALL = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | st.sampled_from([None, "1", 0.0]),
        "id": IDS,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({}, optional={"name": NAMES, "arguments": ARGUMENTS}),
    },
)
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant") | ODD,
        "content": TEXT | st.none() | st.just([{"type": "text", "text": "part"}]),
        "reasoning_content": TEXT | ODD,
        "reasoning_details": st.lists(DETAIL | ODD, max_size=2) | ODD,
        "reasoning_encrypted": st.sampled_from(["e", "", None]),
        "thought_signature": st.sampled_from(["t", "", None, 5]),
        "refusal": st.sampled_from([None, "", "No."]),
        "tool_calls": st.none() | st.lists(CALL | st.none(), max_size=2),
    },
)
FINISH = st.sampled_from([None, None, None, "stop", "length", "tool_calls", "eos", "", 3])
USAGE = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": st.integers(0, 9) | ODD,
        "completion_tokens": st.integers(0, 9) | ODD,
        "prompt_tokens_details": st.just({"cached_tokens": 2}) | ODD,
    },
)
RESULTS = st.lists(
    st.fixed_dictionaries({"title": st.just("T"), "url": st.just("https://t.invalid")})
    | st.fixed_dictionaries({"title": ODD, "url": ODD, "content": ODD, "date": ODD})
    | ODD,
    max_size=2,
)
CHUNK = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"index": st.just(0), "delta": DELTA, "finish_reason": FINISH}),
            min_size=1,
            max_size=1,
        )
    },
    optional={
        "id": st.just("c") | ODD,
        "model": st.just("m") | ODD,
        "created": ODD,
        "usage": USAGE | ODD,
        "venice_parameters": st.fixed_dictionaries({"web_search_citations": RESULTS}) | ODD,
    },
)
EVENTS = st.one_of(
    *[CHUNK.map(lambda chunk: json.dumps(chunk).encode())] * 4,
    USAGE.map(lambda usage: json.dumps({"choices": [], "usage": usage}).encode()),
    st.sampled_from([b"[]", b"5", b"null", b"{}"]),
)
BROKEN = st.sampled_from(
    [
        b"<html>",
        b'{"choices":7}',
        b'{"choices":[{"delta":{"content":5}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":7}}]}}]}',
        b'{"error":{"message":"broken"}}',
        b'{"error":"broken"}',
    ]
)
RARELY = st.sampled_from([*[False] * 11, True])
ENDS = st.sampled_from([*[b"data: [DONE]\n\n"] * 4, b"data: [DONE]\n", b"data: [DONE]", b""])
AFTER = st.sampled_from([b"", b"", b'data: {"choices":[{"delta":{"content":"late"}}]}\n\n'])


@st.composite
def streams(draw):
    """A stream in chunks: mostly readable events, perhaps a broken one, perhaps cut."""
    events = draw(st.lists(EVENTS, min_size=2, max_size=12))
    if draw(RARELY):
        events.insert(draw(st.integers(0, len(events))), draw(BROKEN))
    ending = draw(st.sampled_from([b"\n", b"\r\n"]))
    content = b"".join(b"data: %b\n\n" % event for event in events)
    content += draw(ENDS) + draw(AFTER)
    if draw(RARELY):
        content = content[: draw(st.integers(0, len(content)))]
    content = content.replace(b"\n", ending)
    cuts = draw(st.lists(st.integers(0, len(content)), max_size=6))
    edges = [0, *sorted(cuts), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


def translated(chunks, *, with_thinking):
    """What the caller of a stream gets, whose failure is its last event."""
    translation = anthropic.MessageEvents(with_thinking=with_thinking, input_estimate=11)
    out = b""
    try:
        for chunk in chunks:
            out += translation.feed(chunk)
        out += translation.end()
    except ServiceError as error:
        out += translation.failure(error, {"error": {"type": "api_error", "message": str(error)}})
    return out


DELTAS = {
    "text": {"text_delta": str, "citations_delta": dict},
    "thinking": {"thinking_delta": str, "signature_delta": str},
    "tool_use": {"input_json_delta": str},
    "server_tool_use": {},
    "web_search_tool_result": {},
}
DELTA_MEMBERS = {
    "text_delta": "text",
    "citations_delta": "citation",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
STOP_REASONS = {"end_turn", "max_tokens", "tool_use", "refusal"}
START_MEMBERS = {
    "text": {"type": str, "text": str},
    "thinking": {"type": str, "thinking": str, "signature": str},
    "tool_use": {"type": str, "id": str, "name": str, "input": dict},
    "server_tool_use": {"type": str, "id": str, "name": str, "input": dict},
    "web_search_tool_result": {"type": str, "tool_use_id": str, "content": list},
}


class InvalidStreamError(AssertionError):
    """A sequence of events that Anthropic's API does not have."""


def require(condition, text):
    if not condition:
        raise InvalidStreamError(text)


def check_events(content, input_estimate=11):
    """Check a whole stream of message events by the rules of Anthropic's documentation, and return
    its blocks and its last event. Written without the service's own writer."""
    require(content == b"" or content.endswith(b"\n\n"), "an event is not ended")
    check = _Check(input_estimate)
    for event in content.decode().split("\n\n")[:-1]:
        kind_line, data_line = event.split("\n")
        data = json.loads(data_line.removeprefix("data: "))
        kind = data["type"]
        require(kind_line == f"event: {kind}", "the name is not the type")
        require(check.last is None, f"{kind} after the end")
        require(kind == "error" or (kind == "message_start") != check.is_begun, "no start")
        getattr(check, f"take_{kind}")(data)
    require(check.last is not None, "neither message_stop nor error")
    return check.blocks, check.last


class _Check:
    """What the events so far make. A kind of event without a method is not known."""

    def __init__(self, input_estimate):
        self.input_estimate = input_estimate
        self.blocks = []
        self.last = None
        self.is_begun = False
        self.is_open = False
        self.delta = None

    def take_error(self, data):
        require(isinstance(data["error"]["message"], str), "an error without a text")
        self.last = data

    def take_message_start(self, data):
        self.is_begun = True
        message = data["message"]
        require(message["content"] == [] and message["stop_reason"] is None, "not empty")
        require(isinstance(message["id"], str) and message["id"], "no id")
        require(isinstance(message["model"], str), "no model")
        require(message["usage"]["input_tokens"] == self.input_estimate, "no estimate of the input")

    def take_content_block_start(self, data):
        require(not self.is_open and self.delta is None, "two blocks are open")
        require(data["index"] == len(self.blocks), "the wrong index")
        block = data["content_block"]
        for name, shape in START_MEMBERS[block["type"]].items():
            require(isinstance(block[name], shape), f"{name} is not right")
        require(block.get("name") != "", "a tool without a name")
        self.blocks.append({**block, "json": ""})
        self.is_open = True

    def take_content_block_delta(self, data):
        require(self.is_open and data["index"] == len(self.blocks) - 1, "no open block")
        block, delta = self.blocks[-1], data["delta"]
        shape = DELTAS[block["type"]][delta["type"]]
        member = DELTA_MEMBERS[delta["type"]]
        value = delta[member]
        require(isinstance(value, shape) and value, "an empty delta")
        require(not block.get("signature"), "a delta after the signature")
        if member == "citation":
            block["citations"] = [*block.get("citations", []), value]
        else:
            block["json" if member == "partial_json" else member] += value

    def take_content_block_stop(self, data):
        require(self.is_open and data["index"] == len(self.blocks) - 1, "no open block")
        self.is_open = False
        block = self.blocks[-1]
        require(block["type"] != "thinking" or block["signature"], "no signature")

    def take_message_delta(self, data):
        require(not self.is_open and self.delta is None, "message_delta at the wrong place")
        require(data["delta"]["stop_reason"] in STOP_REASONS, "no stop reason")
        require(isinstance(data["usage"]["output_tokens"], int), "no usage")
        self.delta = data

    def take_message_stop(self, data):
        require(self.delta is not None, "message_stop before message_delta")
        self.last = self.delta
