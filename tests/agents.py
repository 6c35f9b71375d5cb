"""The first request of a coding agent, as large as those of real agents, in each API's format."""

import itertools

TOPICS = (
    *("reading files", "editing files", "running commands", "searching the tree", "tests"),
    *("commits", "reviews", "dependencies", "secrets", "long tasks", "plans", "questions"),
)
RULES = (
    "Look before you act: {topic} often has rules of its own in the repository, which go first.",
    "When {topic} fails, read the whole message, find the cause, and try once more with a change.",
    "State in one sentence what you are about to do with {topic}, then do it.",
    "Never leave {topic} half done: finish it, or report what is missing and why.",
    "Prefer the smallest step in {topic} that can be checked by itself, and check it at once.",
)
TOOLS = (
    *("Read", "Write", "Edit", "Shell", "Search", "Find", "Fetch", "Plan", "Ask", "Delegate"),
    *("Notebook", "History", "Output", "Stop", "Remember", "Review"),
)
SYSTEM_LENGTH = 24_000
DESCRIPTION_LENGTH = 1_500
MAX_TOKENS = 32_000


def instructions(length):
    """Return that many characters of instructions."""
    lines = (
        f"{number}. {rule.format(topic=topic)}\n"
        for number, (topic, rule) in enumerate(itertools.cycle(itertools.product(TOPICS, RULES)))
    )
    text = ""
    while len(text) < length:
        text += next(lines)
    return text[:length]


def schema(name):
    """Return the JSON schema of a tool's input, with members named like media."""
    text = {"type": "string", "description": instructions(120)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "file": text,
            "image_url": text,
            "pattern": text,
            "mode": {"type": "string", "enum": ["content", "files", "count", name.lower()]},
            "limit": {"type": "integer", "minimum": 0},
        },
        "required": ["file"],
        "additionalProperties": False,
    }


def messages_body(model, **members):
    """Return Claude Code's first request to ``/v1/messages``, about 60 KB."""
    mark = {"type": "ephemeral"}
    system = [
        {"type": "text", "text": "You are a coding agent.", "cache_control": mark},
        {"type": "text", "text": instructions(SYSTEM_LENGTH), "cache_control": mark},
    ]
    tools = [
        {
            "name": name,
            "description": instructions(DESCRIPTION_LENGTH),
            "input_schema": schema(name),
        }
        for name in TOOLS
    ]
    return {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "system": system,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": tools,
        "metadata": {"user_id": "user_1_account_2_session_3"},
        **members,
    }


def functions():
    """Return the tools as functions: name, description and parameters of each."""
    return [
        {
            "name": name,
            "description": instructions(DESCRIPTION_LENGTH),
            "parameters": schema(name),
        }
        for name in TOOLS
    ]


def chat_body(model, **members):
    """Return the same request to ``/v1/chat/completions``."""
    return {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "messages": [
            {"role": "system", "content": instructions(SYSTEM_LENGTH)},
            {"role": "user", "content": "hi"},
        ],
        "tools": [{"type": "function", "function": function} for function in functions()],
        **members,
    }


def responses_body(model, **members):
    """Return the same request to ``/v1/responses``, with the search tool that Codex sends."""
    tools = [{"type": "function", **function} for function in functions()]
    return {
        "model": model,
        "max_output_tokens": MAX_TOKENS,
        "stream": True,
        "input": [
            {"role": "developer", "content": instructions(SYSTEM_LENGTH)},
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ],
        "tools": [*tools, {"type": "web_search", "external_web_access": False}],
        **members,
    }
