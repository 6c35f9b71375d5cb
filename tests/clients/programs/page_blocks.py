"""Runs a block of docs/clients.md, and then a call with what it made."""

import textwrap

import litellm
from lines import serve

# As the page says.
litellm.disable_hf_tokenizer_download = True


def run(task):
    names = {}
    exec(task["code"] + textwrap.dedent(task["call"]), names)
    return {"text": names["answer"]}


serve(run)
