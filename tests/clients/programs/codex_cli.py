"""Codex CLI, run without a terminal; ``configuration`` is the page's config.toml."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from lines import FOX_SCHEMA, look, serve

PROGRAM = Path("node_modules/@openai/codex/bin/codex.js").absolute()
TIMEOUT_S = 50


class CodexError(Exception):
    """What Codex shows its user."""


def events(task, prompt, *options):
    """Return the events that Codex prints."""
    with tempfile.TemporaryDirectory(dir=os.environ["HOME"]) as name:
        home = Path(name)
        (home / "config.toml").write_text(task["configuration"])
        (home / "schema.json").write_text(json.dumps(FOX_SCHEMA))
        ended = subprocess.run(
            [
                *("node", PROGRAM, "exec", "--json", "--skip-git-repo-check"),
                *("--sandbox", "workspace-write", *options, prompt),
            ],
            cwd=home,
            env=os.environ | {"CODEX_HOME": name, "RIALTO_API_KEY": task["key"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    if ended.returncode:
        errors = [event["message"] for event in found if event["type"] == "error"]
        raise CodexError(errors[-1] if errors else ended.stderr)
    return found


def last_text(found):
    """Return the model's last words."""
    items = [event["item"] for event in found if event["type"] == "item.completed"]
    return [item["text"] for item in items if item["type"] == "agent_message"][-1]


def plain(task):
    found = events(task, task["prompt"])
    usage = found[-1]["usage"]
    return {"text": last_text(found), "usage": [usage["input_tokens"], usage["output_tokens"]]}


def tools(task):
    content = look(where="the den", times=2)
    prompt = (
        f'[call=exec_command {{"cmd": "echo \'{content}\' >fox.txt"}}]'
        '[call=exec_command {"cmd": "cat fox.txt"}]'
    )
    return {"text": last_text(events(task, prompt))}


def structured(task):
    found = events(task, task["prompt"], "--output-schema", "schema.json")
    return {"value": json.loads(last_text(found))}


serve(plain, tools, structured)
