"""The sandbox's tool calls, and responses in a requested format."""

import json
from typing import Any

import openai
import pytest

from service.sandbox.instances import instance

PERSON: dict[str, Any] = {
    "$defs": {
        "Person": {
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
        }
    },
    "type": "object",
    "required": ["people", "kind", "nothing", "exact", "is_true", "long", "least", "what"],
    "properties": {
        "people": {"type": "array", "items": {"$ref": "#/$defs/Person"}, "minItems": 2},
        "kind": {"enum": ["a", "b"]},
        "nothing": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "exact": {"const": 7},
        "is_true": {"type": ["boolean", "null"]},
        "long": {"type": "string", "minLength": 12, "maxLength": 12},
        "least": {"type": "number", "minimum": 1.5},
        "what": {},
    },
}


def test_an_instance() -> None:
    """An instance has a value that its schema allows for each required property."""
    person = {"name": "simulated", "age": 0}

    assert instance(PERSON) == {
        "people": [person, person],
        "kind": "a",
        "nothing": None,
        "exact": 7,
        "is_true": False,
        "long": "simulated   ",
        "least": 1.5,
        "what": None,
    }


def test_optional_properties() -> None:
    """An instance leaves out optional properties, and has one element per array."""
    timeout = {"type": "integer", "minimum": 1}
    schema = {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "timeout": timeout,
            "tags": {"type": "array", "items": timeout},
            "more": {"type": "array", "items": timeout},
        },
        "required": ["path", "tags", "absent"],
    }

    assert instance(schema) == {"path": "simulated", "tags": [1]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "default": "main"}, "main"),
        ({"type": "string", "examples": ["src/app.py"]}, "src/app.py"),
        ({"type": "string", "format": "date"}, "2026-11-23"),
        ({"type": "string", "format": "uri"}, "https://sandbox.invalid/"),
        ({"type": "string", "format": "uuid"}, "00000000-0000-4000-8000-000000000000"),
        ({"type": "integer", "exclusiveMinimum": 0}, 1),
        ({"type": "integer", "minimum": 3, "maximum": 9}, 3),
        ({"type": "number", "maximum": -2}, -2),
    ],
)
def test_sensible_values(schema: dict[str, Any], value: Any) -> None:
    """A value is the schema's own default or example, or within its format and bounds."""
    assert instance(schema) == value


@pytest.mark.parametrize("schema", [None, 7, {}, {"$ref": "#"}, {"$ref": "#/nowhere"}])
def test_null_instances(schema: Any) -> None:
    """A schema that requires nothing, even if it refers to itself, yields null."""
    assert instance(schema) is None


def test_an_endless_schema() -> None:
    """A schema that nests endlessly ends after some levels."""
    endless = {"properties": {"more": {"$ref": "#"}}, "required": ["more"]}

    assert str(instance(endless)).count("more") == 8


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": PERSON}},
    {"type": "function", "function": {"name": "listen"}},
]


async def test_parallel_tools(sdk: Any) -> None:
    """As many tools are called as the message requests, whole or in pieces, and none once there are
    results."""
    asked = {
        "model": "llama-3.3-70b",
        "messages": [{"role": "user", "content": "[tools=3]"}],
        "tools": TOOLS,
    }
    whole = await sdk.chat.completions.create(**asked)
    (choice,) = whole.choices
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["look", "listen", "look"]
    assert json.loads(calls[0].function.arguments) == instance(PERSON)
    assert len({call.id for call in calls}) == 3

    async with sdk.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0].message.tool_calls
    assert [call.function.arguments for call in streamed] == [
        call.function.arguments for call in calls
    ]
    asked["messages"] += [choice.message, {"role": "tool", "content": "", "tool_call_id": "x"}]
    answer = await sdk.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "stop"


async def test_formats(sdk: Any) -> None:
    """A response has the requested schema or is any object, and is refused for models without
    schemas."""

    async def answer(response_format: dict[str, Any], model: str = "llama-3.3-70b") -> Any:
        completion = await sdk.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello"}],
            response_format=response_format,
            extra_body={"venice_parameters": {"enable_e2ee": False}},
        )
        return json.loads(completion.choices[0].message.content)

    described = {"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}
    assert await answer(described) == instance(PERSON)
    assert list(await answer({"type": "json_object"})) == ["answer"]
    with pytest.raises(openai.BadRequestError):
        await answer(described, "e2ee-qwen3-30b")
    with pytest.raises(openai.BadRequestError):
        await answer({"type": "json_schema"})


async def test_stop(sdk: Any) -> None:
    """The response ends before the stop sequence."""
    completion = await sdk.chat.completions.create(
        model="llama-3.3-70b",
        messages=[{"role": "user", "content": "Hello"}],
        stop=["model", "simulated answer"],
    )

    assert completion.choices[0].message.content == "This is a "
    assert completion.usage.completion_tokens == 4


async def test_pictures(sdk: Any) -> None:
    """Only models with vision accept pictures."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    asked = {"messages": [{"role": "user", "content": [picture]}]}

    assert await sdk.chat.completions.create(model="kimi-k2-6", **asked)
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="llama-3.3-70b", **asked)
