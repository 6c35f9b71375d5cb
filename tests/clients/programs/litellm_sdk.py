"""LiteLLM's SDK: its providers ``openai`` and ``anthropic``, and its responses."""

import json

import litellm
from fox import Fox
from lines import INSTRUCTIONS, TOOL, TOOL_DESCRIPTION, TOOL_PARAMETERS, look, serve

FUNCTION = {"name": TOOL, "description": TOOL_DESCRIPTION, "parameters": TOOL_PARAMETERS}


# For a name with "llama" LiteLLM downloads a tokenizer from Hugging Face.
litellm.disable_hf_tokenizer_download = True
# LiteLLM gets the responses of models that it does not know whole, and imitates a stream.
STREAMING = {"litellm_provider": "openai", "mode": "chat", "supports_native_streaming": True}


def members(task):
    if task["dialect"] == "messages":
        place = {"model": f"anthropic/{task['model']}", "api_base": task["url"]}
    else:
        place = {"model": f"openai/{task['model']}", "api_base": f"{task['url']}/v1"}
    return place | {"api_key": task["key"]}


def messages(task):
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": task["prompt"]},
    ]


def plain(task):
    if task["dialect"] == "responses":
        response = litellm.responses(
            **members(task), instructions=INSTRUCTIONS, input=task["prompt"]
        )
        usage = response.usage
        return {"text": response.output_text, "usage": [usage.input_tokens, usage.output_tokens]}
    completion = litellm.completion(**members(task), messages=messages(task))
    usage = completion.usage
    return {
        "text": completion.choices[0].message.content,
        "usage": [usage.prompt_tokens, usage.completion_tokens],
    }


def streamed(task):
    if task["dialect"] == "responses":
        litellm.register_model({members(task)["model"]: STREAMING})
        stream = litellm.responses(
            **members(task), instructions=INSTRUCTIONS, input=task["prompt"], stream=True
        )
        events = list(stream)
        usage = events[-1].response.usage
        return {
            "pieces": [
                event.delta for event in events if event.type == "response.output_text.delta"
            ],
            "usage": [usage.input_tokens, usage.output_tokens],
        }
    stream = litellm.completion(
        **members(task),
        messages=messages(task),
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
        return respond_with_tools(task)
    conversation = messages(task)
    while True:
        asked = {
            **members(task),
            "messages": conversation,
            "tools": [{"type": "function", "function": FUNCTION}],
        }
        if is_streamed:
            chunks = list(litellm.completion(**asked, stream=True))
            completion = litellm.stream_chunk_builder(chunks, messages=conversation)
        else:
            completion = litellm.completion(**asked)
        message = completion.choices[0].message
        if not message.tool_calls:
            return {"text": message.content}
        conversation.append(message)
        for call in message.tool_calls:
            result = look(**json.loads(call.function.arguments))
            conversation.append({"role": "tool", "tool_call_id": call.id, "content": result})


def respond_with_tools(task):
    items = [{"role": "user", "content": task["prompt"]}]
    while True:
        response = litellm.responses(
            **members(task),
            instructions=INSTRUCTIONS,
            input=items,
            tools=[{"type": "function", **FUNCTION}],
        )
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return {"text": response.output_text}
        items += [item.model_dump(exclude_none=True) for item in response.output]
        for call in calls:
            result = look(**json.loads(call.arguments))
            items.append(
                {"type": "function_call_output", "call_id": call.call_id, "output": result}
            )


def tools_streamed(task):
    return tools(task, is_streamed=True)


def structured(task):
    if task["dialect"] == "responses":
        response = litellm.responses(
            **members(task), instructions=INSTRUCTIONS, input=task["prompt"], text_format=Fox
        )
        return {"value": json.loads(response.output_text)}
    completion = litellm.completion(**members(task), messages=messages(task), response_format=Fox)
    return {"value": json.loads(completion.choices[0].message.content)}


serve(plain, streamed, tools, tools_streamed, structured)
