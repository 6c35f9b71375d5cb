"""Conversations as Claude Code and other clients keep them, as messages of a chat completion."""

import base64
import json
import time

import pytest

from service.anthropic import chat_request, decode, estimate_tokens
from service.errors import ClientError

MARK = {"type": "ephemeral"}
ATTRIBUTION = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=36ee5;"
ASK = {"role": "user", "content": "Go"}


def chat(*messages, **members):
    """What Venice would get."""
    asked = {"model": "m", "max_tokens": 9, "messages": list(messages), **members}
    return json.loads(chat_request(decode(json.dumps(asked).encode()), takes_effort=True).body)


def sent(*messages, **members):
    """The messages that Venice would get."""
    return chat(*messages, **members)["messages"]


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def text(content, **more):
    return {"type": "text", "text": content, **more}


def system(content):
    return {"role": "system", "content": content}


def result(content, **more):
    return {"type": "tool_result", "tool_use_id": "t", "content": content, **more}


CALL = assistant({"type": "tool_use", "id": "t", "name": "look", "input": {}})
REMINDER = "<system-reminder>\nBe brief.\n</system-reminder>"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        # Into the user's turn before it.
        ([ASK, system("Be brief.")], [{"role": "user", "content": [text("Go"), text(REMINDER)]}]),
        # The user's next message belongs to the same turn.
        (
            [ASK, system([text("Be brief.")]), user(text("On"))],
            [{"role": "user", "content": [text("Go"), text(REMINDER), text("On")]}],
        ),
        # After an answer and after a tool's result it begins a turn.
        (
            [ASK, assistant(text("Hi")), system("Be brief."), ASK],
            [
                {"role": "user", "content": "Go"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": [text(REMINDER), text("Go")]},
            ],
        ),
        (
            [user(result("A fox.")), system("Be brief.")],
            [
                {"role": "tool", "tool_call_id": "t", "content": "A fox."},
                {"role": "user", "content": REMINDER},
            ],
        ),
        # At the start it is the system prompt.
        ([system("Be brief."), ASK], [{"role": "system", "content": "Be brief."}, ASK]),
        # Nothing but an attribution is left out.
        ([ASK, system(ATTRIBUTION)], [ASK]),
    ],
)
def test_a_system_message_within_the_conversation_is_folded(messages, expected):
    """Models that take a system message only at the start get the text in the user's turn."""
    assert sent(*messages) == expected


def test_the_system_prompt_comes_first():
    """A system message before all others extends the system prompt."""
    assert sent(system("Be brief."), ASK, system="You code.") == [
        {"role": "system", "content": [text("You code."), text("Be brief.")]},
        ASK,
    ]


@pytest.mark.parametrize("before", [[], [ASK]])
def test_many_messages_of_the_system_take_little_time(before):
    """The time grows with the number of the messages, not with its square."""
    messages = [*before, *[system("Be brief.")] * 20_000, ASK]
    began = time.process_time()
    folded, *_ = sent(*messages)

    assert time.process_time() - began < 2
    assert len(folded["content"]) >= 20_000


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (f"{ATTRIBUTION}\nYou code.", "You code."),
        ([text(ATTRIBUTION), text("You code.")], "You code."),
        (
            [text(f"{ATTRIBUTION}\n\nYou code.", cache_control=MARK)],
            [text("You code.", cache_control=MARK)],
        ),
        ("You code.\nx-anthropic-billing-header: a", "You code.\nx-anthropic-billing-header: a"),
    ],
)
def test_the_attribution_is_removed(prompt, expected):
    """What changes with every request would keep the prompt out of every cache."""
    assert sent(ASK, system=prompt)[0] == {"role": "system", "content": expected}
    assert sent(ASK, system=ATTRIBUTION) == [ASK]


SEARCH = [
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "foxes"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "s",
        "content": [
            {"type": "web_search_result", "title": "Foxes", "url": "https://f.invalid"}
            | {"encrypted_content": "abc", "page_age": None}
        ],
    },
]
FOXES = {"type": "search_result", "title": "Foxes", "source": "https://f.invalid"}


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (SEARCH[0], ""),
        (SEARCH[1], "\nFoxes\nhttps://f.invalid\n"),
        ({"type": "compaction", "content": "We fixed it."}, "\nWe fixed it.\n"),
        ({"type": "compaction", "content": None}, ""),
        ({"type": "redacted_thinking", "data": "x"}, ""),
        ({"type": "mcp_tool_result", "content": [text("ok")]}, "\nok\n"),
        ({"type": "of_tomorrow", "x": [1]}, ""),
        ({"type": "of_tomorrow", "content": {"text": "words"}}, "\nwords\n"),
    ],
)
def test_blocks_of_old_answers(block, content):
    """A block of the model that chat completions do not have becomes its text or is left out."""
    messages = sent(ASK, assistant(block), ASK)

    assert messages[1] == {"role": "assistant", "content": content}


def test_deep_blocks_of_old_answers():
    """A block as deep within others as a body may be is left out, and breaks nothing."""
    block = {"type": "of_tomorrow", "text": "words"}
    for _ in range(90):
        block = {"type": "of_tomorrow", "content": [block]}

    assert sent(ASK, assistant(block), ASK)[1]["content"] == ""


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (FOXES | {"content": [text("They run.")]}, "Foxes\nhttps://f.invalid\nThey run."),
        (
            {"type": "document", "source": {"type": "content", "content": "words"}},
            "words",
        ),
        (
            {
                "type": "document",
                "title": "T",
                "source": {"type": "content", "content": [text("a")]},
            },
            [text("T"), text("a")],
        ),
        (
            {"type": "document", "title": "T", "context": "C"}
            | {"source": {"type": "text", "media_type": "text/plain", "data": "words"}},
            [text("T"), text("C"), text("words")],
        ),
    ],
)
def test_blocks_of_the_question(block, content):
    """Search results and documents are texts, with their titles and sources."""
    assert sent(user(block)) == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "of_tomorrow"}, "messages[0].content[0].type"),
        ({"type": "container_upload", "file_id": "f"}, "messages[0].content[0].type"),
        (
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            "messages[0].content[0].source",
        ),
        (
            {"type": "image", "source": {"type": "base64"}},
            "messages[0].content[0].source.media_type",
        ),
        ({"type": "text"}, "messages[0].content[0].text"),
        ({"text": "a"}, "messages[0].content[0].type"),
        (5, "messages[0].content[0]"),
    ],
)
def test_only_the_question_is_refused(block, param):
    """A block that changes the question is refused by its place; long answered, it is left out."""
    with pytest.raises(ClientError) as caught:
        sent(user(block))
    assert caught.value.param == param

    if isinstance(block, dict) and block.get("type") in ("of_tomorrow", "container_upload"):
        assert sent(user(block, text("Go")), assistant(text("Hi")), ASK)[0] == ASK


def test_results_of_tools():
    """A tool found by search is named, and what has no text is noted."""
    blocks = [
        text("Found:"),
        {"type": "tool_reference", "tool_name": "look"},
        FOXES | {"content": [text("They run.")]},
        {"type": "of_tomorrow"},
    ]
    _, tool = sent(CALL, user(result(blocks)))

    assert tool["content"].split("\n") == [
        "Found:",
        "The tool look is available.",
        "Foxes",
        "https://f.invalid",
        "They run.",
        "[A block of type of_tomorrow was left out.]",
    ]


def test_marks_for_the_cache():
    """Marks of answers stay; those of tools' results move to what comes next, or else before."""
    answer, _ = sent(assistant(text("a"), text("b", cache_control={**MARK, "ttl": "1h"})), ASK)
    assert answer["content"] == [text("a"), text("b", cache_control=MARK)]

    *_, after = sent(CALL, user(result("x", cache_control=MARK), text("And?")))
    assert after == {"role": "user", "content": [text("And?", cache_control=MARK)]}

    spoken = assistant(text("I look."), *CALL["content"])
    before, tool = sent(spoken, user(result("x", cache_control=MARK)))
    assert before["content"] == [text("I look.", cache_control=MARK)]
    assert tool == {"role": "tool", "tool_call_id": "t", "content": "x"}

    before, _ = sent(CALL, user(result("x", cache_control=MARK)))
    assert before["content"] is None


ACCOUNT = "0b1e6bd4-3f5a-4d5e-9d0e-d2f0e7ad3c11"
SESSION = "5f0c53f6-8f0a-4a53-8f37-5a7f4b8f2a10"


@pytest.mark.parametrize(
    ("name", "end_user", "session"),
    [
        (
            json.dumps({"device_id": "d" * 64, "account_uuid": ACCOUNT, "session_id": SESSION}),
            ACCOUNT,
            SESSION,
        ),
        (
            json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": SESSION}),
            "d" * 64,
            SESSION,
        ),
        (f"user_{'ab' * 32}_account_{ACCOUNT}_session_{SESSION}", ACCOUNT, SESSION),
        (f"user_{'ab' * 32}_account__session_{SESSION}", "ab" * 32, SESSION),
        (json.dumps({"account_uuid": ACCOUNT, "session_id": 5}), ACCOUNT, None),
        (json.dumps({"session_id": SESSION}), json.dumps({"session_id": SESSION}), None),
        ("me", "me", None),
        ("[1]", "[1]", None),
    ],
)
def test_the_end_user(name, end_user, session):
    """The end user is the account or the device, and the session is the key of the cache."""
    body = chat(ASK, metadata={"user_id": name})

    assert (body["user"], body.get("prompt_cache_key")) == (end_user, session)


def test_no_output_at_all():
    """A maximum of 0, which fills the cache, becomes the least that Venice counts."""
    assert chat(ASK, max_tokens=0)["max_completion_tokens"] == 1


def thinking(thought, **kept):
    signature = base64.b64encode(json.dumps(kept).encode()).decode()
    return {"type": "thinking", "thinking": thought, "signature": signature}


def test_several_thoughts_come_back():
    """Each block of thinking adds its details. One without a thought continues the one before."""
    first = {"index": 0, "type": "reasoning.text", "text": "A"}
    (message,) = sent(
        assistant(
            thinking("A", reasoning_details=[first]),
            text("Hi"),
            thinking("", reasoning_details=[{"index": 0, "signature": "s="}]),
            thinking("B", reasoning_details=[{"index": 0, "text": "B"}], thought_signature="t"),
            thinking("", reasoning_encrypted="e1", thought_signature=""),
            thinking("", reasoning_encrypted="e2"),
            {"type": "thinking", "thinking": "C", "signature": "EqQB/+!"},
        )
    )

    assert message == {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "ABC",
        "reasoning_details": [{**first, "signature": "s="}, {"index": 0, "text": "B"}],
        "thought_signature": "t",
        "reasoning_encrypted": "e1e2",
    }


def test_an_estimate_leaves_parameters_out():
    """Venice's own parameters are no input of the model."""
    plain = {"model": "m", "messages": [ASK]}
    search = {"type": "web_search_20250305", "name": "web_search"}

    estimates = {
        estimate_tokens(json.dumps(plain | more).encode())
        for more in ({}, {"thinking": {"type": "adaptive"}}, {"tools": [search]})
    }
    assert len(estimates) == 1
    whole = chat_request(decode(json.dumps(plain | {"max_tokens": 9}).encode()), takes_effort=False)
    assert whole.input_estimate >= estimates.pop()
