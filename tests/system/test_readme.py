"""The README's blocks work as they are pasted."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from process import ROOT, started

README = (ROOT / "README.md").read_text()


def blocks(section):
    """The shell blocks of a section."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_keys_and_the_ledger(tmp_path):
    """Both blocks make an organization and a key, list what there is, and revoke the key."""
    over_http, on_the_command_line = blocks("Keys and the ledger")
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        keys, ledger, status = paste(over_http, tmp_path, port).splitlines()
        assert [key["name"] for key in json.loads(keys)["keys"]] == ["app"]
        assert json.loads(ledger) == {"entries": [], "next": None}
        assert status == "204"

        listed, revoked = paste(on_the_command_line, tmp_path, port).splitlines()
        assert json.loads(listed)["revoked_at"] is None
        assert json.loads(revoked)["id"] == json.loads(listed)["id"]
        assert json.loads(revoked)["revoked_at"]
        # Killed, it would leave its database running.
        service.send()
        assert await service.ended() == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_limits(tmp_path):
    """The block goes on where the first one ended."""
    made, (block,) = blocks("Keys and the ledger")[0], blocks("Limits")
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        printed = paste(made + block, tmp_path, port).splitlines()[3:]
        service.send()
        assert await service.ended() == 0

    limits = [json.loads(line) for line in printed]
    assert [(limit["unit"], limit["ceiling"]) for limit in limits] == [
        ("usd", "5.00"),
        ("requests", 60),
        ("usd", "5.00"),
        ("requests", 60),
        ("usd", "1.00"),
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_models_and_aliases(tmp_path):
    """The block goes on where the first one ended, once Venice has told its models."""
    made, (block,) = blocks("Keys and the ledger")[0], blocks("Models and aliases")
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        await service.wait_for_line("catalogue refreshed")
        printed = [
            json.loads(line) for line in paste(made + block, tmp_path, port).splitlines()[3:]
        ]
        service.send()
        assert await service.ended() == 0

    *models, fast, theirs, clever, key = printed
    assert {model["kind"] for model in models} == {"venice"}
    assert fast["targets"] == ["llama-3.3-70b", "kimi-k2-6"]
    assert (theirs["targets"], clever["targets"]) == (["kimi-k2-6"], ["kimi-k2-6"])
    assert (theirs["organization_id"], key["models"]) == (key["organization_id"], ["fast"])


def paste(block, directory, port):
    """What a shell prints that a block is pasted into, in the directory of a service."""
    block = block.replace("localhost:8080", f"localhost:{port}")
    return subprocess.run(
        ["sh", "-euc", block.replace(".venv/bin/python", sys.executable)],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout
