"""The quick start that a development server prints: a demo key and commands to paste."""

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from aiohttp import web

from service import accounts, api
from service.audit import Actor
from service.errors import Unauthenticated
from service.settings import Settings
from service.settings.data_directory import OPERATOR_KEY_FILE, write_secret
from service.settings.hosts import local_host
from service.upstream import ENVIRONMENT_KEY_ID, Finding

KEY_FILE: Final = "demo_key"
NAME: Final = "demo"
KEY_CHECK_S: Final = 3.0
POLL_S: Final = 0.05

WELCOME: Final = """
Rialto listens on {url}
{upstream}

  demo key      {key}
  operator key  {shown_operator_key}
  command line  .venv/bin/rialto --help

Try it with curl:

curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

or with the OpenAI SDK, after `pip install openai`:

python3 - <<'PY'
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
stream = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}], stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()
PY

What it cost:

curl -H "Authorization: Bearer {operator_key}" \\
  {url}/admin/v1/organizations/{organization_id}/ledger

Ctrl-C stops it.
"""
"""Not indented, so that each part can be pasted as it is."""
MODEL: Final = "llama-3.3-70b"
SET_BY_USER: Final = "the one that you set as OPERATOR_KEY in the environment or in .env"
SIMULATED: Final = (
    "The sandbox replaces Venice: responses are simulated. Set VENICE_API_KEY for real ones."
)
REAL: Final = "Calls go to {} with your VENICE_API_KEY. {}"
KEYS: Final = {
    None: "The key is being checked. See the log line `upstream key checked`.",
    Finding.WELL: "Venice accepts the key. Calls cost real money.",
    Finding.INVALID: "Venice rejects the key, so calls will fail. Correct VENICE_API_KEY.",
    Finding.SPENT: "The account has no balance left, so calls will fail. Top it up at Venice.",
    Finding.FORBIDDEN: "The key may not make calls, so calls will fail. Check it at Venice.",
    Finding.UNREACHABLE: "Venice cannot be reached, so the key could not be checked.",
    Finding.FAILED: "Venice failed, so the key could not be checked.",
}


async def wait_for_key_check(app: web.Application) -> None:
    """Wait until Venice was asked about the key of the settings, for at most ``KEY_CHECK_S``."""
    findings = app[api.VENICE].keys.findings
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KEY_CHECK_S):
            # It happens once, so that nothing announces it.
            while ENVIRONMENT_KEY_ID not in findings:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)


async def welcome(app: web.Application, port: int) -> str:
    """Return the text to print, with a working key. The key is created on the first start."""
    settings = app[api.SETTINGS]
    key = await _key(app, Path(settings.data_directory) / KEY_FILE)
    caller = await app[api.CALLERS].identify(key)
    shown, operator_key = SET_BY_USER, "$OPERATOR_KEY"
    if settings.operator_key == _generated_operator_key(settings):
        shown = operator_key = settings.operator_key
    return WELCOME.format(
        url=f"http://{local_host(settings.host)}:{port}",
        upstream=_upstream(app) if settings.venice_api_key else SIMULATED,
        key=key,
        operator_key=operator_key,
        shown_operator_key=shown,
        organization_id=caller.organization_id,
        model=MODEL,
    )


def _upstream(app: web.Application) -> str:
    found = app[api.VENICE].keys.findings.get(ENVIRONMENT_KEY_ID)
    return REAL.format(app[api.SETTINGS].venice_base_url, KEYS[found and found.finding])


def _generated_operator_key(settings: Settings) -> str | None:
    """Return the operator key that development generated. A key that the user set is not shown."""
    path = Path(settings.data_directory) / OPERATOR_KEY_FILE
    return path.read_text().strip() if path.exists() else None


async def _key(app: web.Application, path: Path) -> str:
    if path.exists():
        key = path.read_text().strip()
        try:
            await app[api.CALLERS].identify(key)
        except Unauthenticated:
            pass  # The key belongs to another database. Create a new one.
        else:
            return key
    actor = Actor(name="demo")
    async with app[api.DATABASE].transaction() as conn:
        organization = await accounts.create_organization(conn, app[api.KEYRING], actor, NAME)
        _, key = await accounts.create_key(conn, actor, organization.id, accounts.NewKey(name=NAME))
    write_secret(path, key)
    return key
