"""Claude Code, run without a terminal; ``configuration`` is the page's commands for a shell."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from lines import FOX, FOX_SCHEMA, look, serve

PROGRAM = Path("node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs").absolute()
TIMEOUT_S = 50


class ClaudeCodeError(Exception):
    """What Claude Code shows its user."""


def events(task, prompt, *options):
    """Return the events that Claude Code prints."""
    with tempfile.TemporaryDirectory(dir=os.environ["HOME"]) as directory:
        ended = subprocess.run(
            [
                *("sh", "-c", task["configuration"] + 'exec node "$@"', "sh", PROGRAM),
                *("-p", prompt.replace("DIRECTORY", directory)),
                *("--output-format", "stream-json", "--verbose", "--include-partial-messages"),
                *options,
            ],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    if not found or found[-1]["type"] != "result" or found[-1]["is_error"]:
        raise ClaudeCodeError(found[-1]["result"] if found else ended.stderr)
    return found


def usage_of(result):
    return [result["usage"]["input_tokens"], result["usage"]["output_tokens"]]


def plain(task):
    result = events(task, task["prompt"])[-1]
    return {"text": result["result"], "usage": usage_of(result)}


def streamed(task):
    found = events(task, task["prompt"])
    deltas = [
        event["event"]["delta"]
        for event in found
        if event["type"] == "stream_event" and event["event"]["type"] == "content_block_delta"
    ]
    pieces = [delta["text"] for delta in deltas if delta["type"] == "text_delta"]
    return {"pieces": pieces, "usage": usage_of(found[-1])}


def tools(task):
    content = look(where="the den", times=2)
    prompt = (
        f'[call=Write {{"file_path": "DIRECTORY/fox.txt", "content": "{content}"}}]'
        '[call=Read {"file_path": "DIRECTORY/fox.txt"}]'
    )
    return {"text": events(task, prompt, "--allowedTools", "Read,Write")[-1]["result"]}


def structured(task):
    # Claude Code takes the object from a call of this tool.
    prompt = f"[call=StructuredOutput {json.dumps(FOX)}]"
    result = events(task, prompt, "--json-schema", json.dumps(FOX_SCHEMA))[-1]
    return {"value": result["structured_output"]}


serve(plain, streamed, tools, structured)
