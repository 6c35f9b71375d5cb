"""Anthropic's Python SDK."""

import anthropic
from fox import Fox
from lines import INSTRUCTIONS, TOOL, TOOL_DESCRIPTION, TOOL_PARAMETERS, look, serve

MAX_TOKENS = 1000


def client(task):
    return anthropic.Anthropic(base_url=task["url"], api_key=task["key"])


def members(task):
    return {
        "model": task["model"],
        "max_tokens": MAX_TOKENS,
        "system": INSTRUCTIONS,
        "messages": [{"role": "user", "content": task["prompt"]}],
    }


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def usage_of(message):
    return [message.usage.input_tokens, message.usage.output_tokens]


def plain(task):
    message = client(task).messages.create(**members(task))
    return {"text": text_of(message), "usage": usage_of(message)}


def streamed(task):
    with client(task).messages.stream(**members(task)) as stream:
        pieces = list(stream.text_stream)
        return {"pieces": pieces, "usage": usage_of(stream.get_final_message())}


def tools(task, *, is_streamed=False):
    tool = {"name": TOOL, "description": TOOL_DESCRIPTION, "input_schema": TOOL_PARAMETERS}
    asked = members(task) | {"tools": [tool]}
    while True:
        if is_streamed:
            with client(task).messages.stream(**asked) as stream:
                message = stream.get_final_message()
        else:
            message = client(task).messages.create(**asked)
        if message.stop_reason != "tool_use":
            return {"text": text_of(message)}
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": look(**block.input)}
            for block in message.content
            if block.type == "tool_use"
        ]
        asked["messages"] += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
        ]


def tools_streamed(task):
    return tools(task, is_streamed=True)


def structured(task):
    message = client(task).messages.parse(**members(task), output_format=Fox)
    return {"value": message.parsed_output.model_dump()}


serve(plain, streamed, tools, tools_streamed, structured)
