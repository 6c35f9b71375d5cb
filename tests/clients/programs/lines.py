"""How a client's program talks with the tests: one JSON object a line, in and out.

A line in names an action and holds its task: ``url`` and ``key`` of the service, ``dialect``,
``model`` and ``prompt``. A line out is what the client returned, or the error that it raised. The
first line out is an empty object: the program has loaded.
"""

import json
import os
import sys

INSTRUCTIONS = "Be short."
TOOL = "look"
TOOL_DESCRIPTION = "Looks for a fox."
TOOL_PARAMETERS = {
    "type": "object",
    "properties": {"where": {"type": "string"}, "times": {"type": "integer"}},
    "required": ["where", "times"],
    "additionalProperties": False,
}
FOX = {"name": "simulated", "age": 0, "friends": ["simulated"]}
FOX_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "friends": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "friends"],
    "additionalProperties": False,
}


def look(where: str, times: int) -> str:
    """Looks for a fox."""
    return f"A fox in {where}, {times} times."


def serve(*actions):
    """Carry out the task of each line with the action of its name, until standard input ends."""
    # Libraries print to standard output too.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("{}", file=out, flush=True)
    known = {action.__name__: action for action in actions}
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = known[task["action"]](task)
        except Exception as error:  # noqa: BLE001 - the test judges it
            answer = {"error": described(error)}
        print(json.dumps(answer), file=out, flush=True)


def described(error):
    """Return the error as the client's user sees it: its class, status and text."""
    return {
        "kind": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "text": str(error),
    }
