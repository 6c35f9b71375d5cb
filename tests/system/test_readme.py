"""The blocks of README.md and docs/ work as they are pasted."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from process import ROOT, started


def blocks(page, section=None):
    """The shell blocks of a section, or of the introduction of a page."""
    text = f"\n{(ROOT / page).read_text()}"
    heading = f"\n## {section}\n" if section else "\n# "
    return re.findall(
        r"```sh\n(.*?)```", text.partition(heading)[2].partition("\n## ")[0], re.DOTALL
    )


def keys_and_the_ledger():
    """The block that the others go on from: it sets $ID, $operator and $admin."""
    return blocks("docs/api.md", "Keys and the ledger")[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_keys_and_the_ledger(tmp_path):
    """Both blocks make an organization and a key, list what there is, and revoke the key."""
    over_http, on_the_command_line = blocks("docs/api.md", "Keys and the ledger")
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


@pytest.mark.skipif(shutil.which("curl") is None, reason="the blocks are for curl")
async def test_change_keys_and_organizations(tmp_path):
    """The blocks restrict a key, rotate it, and suspend and resume its organization."""
    made = keys_and_the_ledger()
    changes = "".join(blocks("docs/api.md", "Change keys and organizations"))
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        printed = paste(made + changes, tmp_path, port).splitlines()[3:]
        service.send()
        assert await service.ended() == 0

    restricted, rotated, suspended, resumed = map(json.loads, printed)
    assert restricted["ip_allow_list"] == ["203.0.113.0/24", "2001:db8::/32"]
    assert (rotated["id"], "key" in rotated) == (restricted["id"], True)
    assert [suspended["status"], resumed["status"]] == ["suspended", "active"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_limits(tmp_path):
    """The block goes on where the first one ended."""
    made, (block,) = keys_and_the_ledger(), blocks("docs/limits.md")
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
    """The block goes on where the first one ended, once the models of Venice are known."""
    made, (block,) = keys_and_the_ledger(), blocks("docs/models.md")
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        await service.wait_for_line("catalogue refreshed")
        printed = [
            json.loads(line) for line in paste(made + block, tmp_path, port).splitlines()[3:]
        ]
        service.send()
        assert await service.ended() == 0

    *models, fast, theirs, deleted, clever, key = printed
    assert deleted == theirs
    assert {model["kind"] for model in models} == {"venice"}
    assert fast["targets"] == ["llama-3.3-70b", "kimi-k2-6"]
    assert (theirs["targets"], clever["targets"]) == (["kimi-k2-6"], ["kimi-k2-6"])
    assert (theirs["organization_id"], key["models"]) == (key["organization_id"], ["fast"])


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_first_key_call_cost_limit(tmp_path):
    """The README's blocks, each with what the one before made, lead to a call, its entry and the
    refusal of a second one that names the limit with its numbers."""
    block = "".join(blocks("README.md", "First key, call, cost, limit"))
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        await service.wait_for_line("catalogue refreshed")
        printed = paste(block, tmp_path, port).splitlines()
        service.send()
        assert await service.ended() == 0

    answer, entry, usage, money, rate, refused, proof = printed
    assert "simulated" in json.loads(answer)["choices"][0]["message"]["content"]
    assert json.loads(entry)["outcome"] == "ok"
    report = json.loads(usage)
    assert [(group["key"], group["calls"]) for group in report["groups"]] == [("llama-3.3-70b", 1)]
    assert report["total"]["cost_usd"] == json.loads(entry)["cost_usd"] != "0.00"
    assert (json.loads(money)["ceiling"], json.loads(rate)["ceiling"]) == ("0.001", 60)
    error = json.loads(refused)["error"]
    assert error["code"] == "limit_exceeded"
    assert {"ceiling", "used", "held", "needed"} < set(error["limit"])
    assert (json.loads(proof)["faults"], json.loads(proof)["chain_breaks_at"]) == ([], None)


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_reports_and_keys_at_venice(tmp_path):
    """The reports go on from the first block; a key at Venice is stored from standard input."""
    made, (block,) = keys_and_the_ledger(), blocks("docs/reports.md")
    (dry_run,) = blocks("docs/reports.md", "Retention")
    add, listed, _ = blocks("docs/venice-keys.md")[0].splitlines(keepends=True)
    block += dry_run + "VENICE_SPARE_KEY=sk-spare\n" + add + listed
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        printed = paste(made + block, tmp_path, port).splitlines()[3:]
        service.send()
        assert await service.ended() == 0

    report, *proofs, usage, added, environment, spare = printed
    total = json.loads(report)["total"]
    assert (total["calls"], total["output_tokens"], total["cost_usd"]) == (0, 0, "0.00")
    assert proofs
    assert all(json.loads(proof)["faults"] == [] for proof in proofs)
    assert all(json.loads(proof)["chain_breaks_at"] is None for proof in proofs)
    assert json.loads(usage)["group_by"] == "end_user"
    assert json.loads(environment)["name"] == "environment"
    assert json.loads(added)["id"] == json.loads(spare)["id"]
    assert (tmp_path / "ledger.csv").read_text().startswith("id,")


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
async def test_names_and_searches(tmp_path):
    """Names stand for ids in paths and searches."""
    made, (names,) = keys_and_the_ledger(), blocks("docs/api.md", "Administration")
    (searches,) = blocks("docs/reports.md", "Search")
    block = f"{names}REQUEST_ID=none\n{searches}"
    async with started(tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None) as service:
        port = await service.listening()
        printed = paste(made + block, tmp_path, port).splitlines()[3:]
        service.send()
        assert await service.ended() == 0

    keys, *found = map(json.loads, printed)
    assert [key["name"] for key in keys["keys"]] == ["app"]
    assert found == [{"entries": [], "next": None}] * 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="one block is for curl")
def test_faults_on_demand(tmp_path, unused_tcp_port):
    """A sandbox that runs alone takes the fault, lists it with every kind, and forgets it."""
    run, _, block = (
        text.replace("9000", str(unused_tcp_port)).replace(".venv/bin/python", sys.executable)
        for text in blocks("docs/errors.md", "Faults on demand")
    )
    first_line, _, rest = block.partition("\n")
    wait = "until curl -so /dev/null $faults; do sleep 0.1; done"
    rest = rest.replace("curl ", "curl -s -w '\\n' ")
    with subprocess.Popen(run.split(), cwd=ROOT, stdout=subprocess.DEVNULL) as sandbox:
        try:
            printed = paste(f"{first_line}\n{wait}\n{rest}", tmp_path, unused_tcp_port)
        finally:
            sandbox.kill()
    pushed, listed, cleared = printed.splitlines()

    assert json.loads(pushed)["faults"] == json.loads(listed)["faults"]
    assert "model_overloaded" in json.loads(listed)["kinds"]
    assert json.loads(cleared)["faults"] == []


def paste(block, directory, port):
    """What a shell prints that a block is pasted into, in the directory of a service."""
    block = block.replace("localhost:8080", f"localhost:{port}")
    block = block.replace(".venv/bin/python", sys.executable)
    block = block.replace(".venv/bin/rialto", f"{sys.executable} -m service")
    return subprocess.run(
        ["sh", "-euc", block],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout
