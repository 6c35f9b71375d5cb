"""pydantic-ai's agents: by chat completions, responses and messages."""

import asyncio

from fox import Fox
from lines import INSTRUCTIONS, look, serve
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


def agent(task, **arguments):
    if task["dialect"] == "messages":
        provider = AnthropicProvider(base_url=task["url"], api_key=task["key"])
        model = AnthropicModel(task["model"], provider=provider)
    else:
        provider = OpenAIProvider(base_url=f"{task['url']}/v1", api_key=task["key"])
        kind = OpenAIResponsesModel if task["dialect"] == "responses" else OpenAIChatModel
        model = kind(task["model"], provider=provider)
    return Agent(model, instructions=INSTRUCTIONS, **arguments)


def usage_of(result):
    usage = result.usage() if callable(result.usage) else result.usage
    return [usage.input_tokens, usage.output_tokens]


def plain(task):
    result = agent(task).run_sync(task["prompt"])
    return {"text": result.output, "usage": usage_of(result)}


def streamed(task):
    async def stream():
        async with agent(task).run_stream(task["prompt"]) as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return {"pieces": pieces, "usage": usage_of(result)}

    return asyncio.run(stream())


def tools(task):
    return {"text": agent(task, tools=[look]).run_sync(task["prompt"]).output}


def tools_streamed(task):
    async def stream():
        async with agent(task, tools=[look]).run_stream(task["prompt"]) as result:
            return {"text": await result.get_output()}

    return asyncio.run(stream())


def structured(task):
    # Its own way is a tool that the model must call; the other is the API's response format.
    output_type = NativeOutput(Fox) if task["dialect"] == "chat" else Fox
    result = agent(task, output_type=output_type).run_sync(task["prompt"])
    return {"value": result.output.model_dump()}


serve(plain, streamed, tools, tools_streamed, structured)
