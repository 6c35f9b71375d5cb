"""OpenAI's Python SDK: chat completions and responses."""

import json

import openai
from fox import Fox
from lines import INSTRUCTIONS, TOOL, TOOL_DESCRIPTION, TOOL_PARAMETERS, look, serve

FUNCTION = {
    "name": TOOL,
    "description": TOOL_DESCRIPTION,
    "parameters": TOOL_PARAMETERS,
    "strict": True,
}


def client(task):
    return openai.OpenAI(base_url=f"{task['url']}/v1", api_key=task["key"])


def chat_messages(task):
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": task["prompt"]},
    ]


def response_members(task):
    return {
        "model": task["model"],
        "instructions": INSTRUCTIONS,
        "input": [{"role": "user", "content": task["prompt"]}],
    }


def plain(task):
    if task["dialect"] == "responses":
        response = client(task).responses.create(**response_members(task))
        usage = response.usage
        return {
            "text": response.output_text,
            "usage": [usage.input_tokens, usage.output_tokens],
        }
    completion = client(task).chat.completions.create(
        model=task["model"], messages=chat_messages(task)
    )
    usage = completion.usage
    return {
        "text": completion.choices[0].message.content,
        "usage": [usage.prompt_tokens, usage.completion_tokens],
    }


def streamed(task):
    if task["dialect"] == "responses":
        with client(task).responses.stream(**response_members(task)) as stream:
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
            usage = stream.get_final_response().usage
        return {"pieces": pieces, "usage": [usage.input_tokens, usage.output_tokens]}
    stream = client(task).chat.completions.create(
        model=task["model"],
        messages=chat_messages(task),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    usage = chunks[-1].usage
    return {
        "pieces": [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices],
        "usage": [usage.prompt_tokens, usage.completion_tokens],
    }


def tools(task, *, is_streamed=False):
    if task["dialect"] == "responses":
        return respond_with_tools(task, is_streamed)
    asked = {
        "model": task["model"],
        "messages": chat_messages(task),
        "tools": [{"type": "function", "function": FUNCTION}],
    }
    while True:
        if is_streamed:
            with client(task).chat.completions.stream(**asked) as stream:
                message = stream.get_final_completion().choices[0].message
        else:
            message = client(task).chat.completions.create(**asked).choices[0].message
        if not message.tool_calls:
            return {"text": message.content}
        asked["messages"].append(message)
        for call in message.tool_calls:
            result = look(**json.loads(call.function.arguments))
            asked["messages"].append({"role": "tool", "tool_call_id": call.id, "content": result})


def respond_with_tools(task, is_streamed):
    asked = response_members(task) | {"tools": [{"type": "function", **FUNCTION}], "store": False}
    while True:
        if is_streamed:
            with client(task).responses.stream(**asked) as stream:
                response = stream.get_final_response()
        else:
            response = client(task).responses.create(**asked)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return {"text": response.output_text}
        asked["input"] += response.output
        for call in calls:
            result = look(**json.loads(call.arguments))
            item = {"type": "function_call_output", "call_id": call.call_id, "output": result}
            asked["input"].append(item)


def tools_streamed(task):
    return tools(task, is_streamed=True)


def structured(task):
    if task["dialect"] == "responses":
        response = client(task).responses.parse(**response_members(task), text_format=Fox)
        return {"value": response.output_parsed.model_dump()}
    completion = client(task).chat.completions.parse(
        model=task["model"], messages=chat_messages(task), response_format=Fox
    )
    return {"value": completion.choices[0].message.parsed.model_dump()}


serve(plain, streamed, tools, tools_streamed, structured)
