"""Other callers are answered during an attack. ``scripts/victims.sh`` measures how fast."""

import pytest
from attacks import ATTACKS
from process import client_of, database_url, started
from victims import attack, measure_victim, poison, venice  # noqa: F401 - venice is a fixture

ATTACK_S = 1.0
SOME = ("bombs_without_a_key", "many_members", "unread_streams", "poisoned_prompts")
"""One attack of each kind: before authentication, on parsing, on responses, and on shared state."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
async def test_a_victim_is_answered(tmp_path, database_address, venice, name):  # noqa: F811
    """Each call and stream of the victim succeeds during the attack."""
    assert name in ATTACKS
    if name == "poisoned_prompts":
        await poison(venice)
    async with (
        started(
            tmp_path,
            DATABASE_URL=database_url(database_address),
            VENICE_API_KEY="sandbox",
            VENICE_BASE_URL=f"{venice}/api/v1",
        ) as process,
        client_of(process) as service,
    ):
        victim = await service.new_caller("victim")
        attacker = await service.new_caller("attacker")
        async with attack(name, await process.listening(), attacker.key):
            await measure_victim(victim, ATTACK_S)
        assert process.is_running
