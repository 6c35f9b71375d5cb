"""OpenAI's Agents SDK: by chat completions and by responses."""

import asyncio

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from fox import Fox
from lines import INSTRUCTIONS, look, serve
from openai import AsyncOpenAI

# Traces go to OpenAI.
set_tracing_disabled(True)


def agent(task, **arguments):
    client = AsyncOpenAI(base_url=f"{task['url']}/v1", api_key=task["key"])
    is_responses = task["dialect"] == "responses"
    kind = OpenAIResponsesModel if is_responses else OpenAIChatCompletionsModel
    model = kind(model=task["model"], openai_client=client)
    return Agent(name="fox", instructions=INSTRUCTIONS, model=model, **arguments)


def usage_of(result):
    usage = result.context_wrapper.usage
    return [usage.input_tokens, usage.output_tokens]


def plain(task):
    result = asyncio.run(Runner.run(agent(task), task["prompt"]))
    return {"text": result.final_output, "usage": usage_of(result)}


async def stream(task, *tools):
    result = Runner.run_streamed(agent(task, tools=list(tools)), task["prompt"])
    pieces = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    return result, pieces


def streamed(task):
    result, pieces = asyncio.run(stream(task))
    return {"pieces": pieces, "usage": usage_of(result)}


def tools(task):
    result = asyncio.run(Runner.run(agent(task, tools=[function_tool(look)]), task["prompt"]))
    return {"text": result.final_output}


def tools_streamed(task):
    result, _ = asyncio.run(stream(task, function_tool(look)))
    return {"text": result.final_output}


def structured(task):
    result = asyncio.run(Runner.run(agent(task, output_type=Fox), task["prompt"]))
    return {"value": result.final_output.model_dump()}


serve(plain, streamed, tools, tools_streamed, structured)
