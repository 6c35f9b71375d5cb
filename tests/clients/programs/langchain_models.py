"""LangChain: ChatOpenAI by chat completions and by responses, and ChatAnthropic. The tool loops are
LangGraph's."""

import functools

from fox import Fox
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from lines import INSTRUCTIONS, look, serve


def model(task):
    if task["dialect"] == "messages":
        return ChatAnthropic(base_url=task["url"], api_key=task["key"], model=task["model"])
    return ChatOpenAI(
        base_url=f"{task['url']}/v1",
        api_key=task["key"],
        model=task["model"],
        stream_usage=True,
        use_responses_api=task["dialect"] == "responses",
    )


def messages(task):
    return [("system", INSTRUCTIONS), ("user", task["prompt"])]


def usage_of(message):
    return [message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]]


def plain(task):
    message = model(task).invoke(messages(task))
    return {"text": message.text, "usage": usage_of(message)}


def streamed(task):
    pieces = list(model(task).stream(messages(task)))
    whole = functools.reduce(lambda one, other: one + other, pieces)
    return {"pieces": [piece.text for piece in pieces], "usage": usage_of(whole)}


def tools(task):
    agent = create_react_agent(model(task), [tool(look)], prompt=INSTRUCTIONS)
    return {"text": agent.invoke({"messages": [("user", task["prompt"])]})["messages"][-1].text}


def tools_streamed(task):
    agent = create_react_agent(model(task), [tool(look)], prompt=INSTRUCTIONS)
    given = {"messages": [("user", task["prompt"])]}
    text = ""
    for piece, origin in agent.stream(given, stream_mode="messages"):
        text += piece.text if origin["langgraph_node"] == "agent" else ""
    return {"text": text}


def structured(task):
    method = "json_schema" if task["dialect"] != "messages" else "function_calling"
    fox = model(task).with_structured_output(Fox, method=method).invoke(messages(task))
    return {"value": fox.model_dump()}


serve(plain, streamed, tools, tools_streamed, structured)
