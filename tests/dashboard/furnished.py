"""A service with something to see: organizations, keys, limits and calls, some with names that a
careless page would run as a script."""

import re
from urllib.parse import quote

from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, set_alias, set_limit

from service.dashboard.paths import PATHS

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"{{7*7}}"
HOSTILE_MODEL = "<script>alert(3)</script><img/src=x/onerror=alert(4)>'\"{{7*7}}"
NAME_IN_PATH = re.compile(r"{(\w+)(?::[^}]*)?}")


class Furnished:
    """What was made: a caller, an administrator's key, and the ids that paths of pages need."""

    def __init__(self, service, caller, administrator, limit_id, request_id):
        self.service = service
        self.caller = caller
        self.administrator = administrator
        self.limit_id = limit_id
        self.request_id = request_id

    def url(self, name):
        """Return the URL of a page with the ids of what was made."""
        ids = {"key": self.caller.key_id, "limit": self.limit_id}
        values = {
            "id": ids.get(name, self.caller.organization_id),
            "request_id": self.request_id,
            "operation": "get_v1_limits",
            "other": "nothing",
        }
        return NAME_IN_PATH.sub(lambda match: values[match[1]], PATHS[name])

    def key_of(self, role):
        """Return a key of the role."""
        return {
            "operator": OPERATOR_KEY,
            "admin": self.administrator["key"],
            "inference": self.caller.key,
        }[role]


async def furnish(service):
    """Make an organization with hostile names, a key of each role, limits, and calls that succeed
    and are refused."""
    caller = await service.new_caller(HOSTILE)
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    administrator = {"name": HOSTILE, "role": "admin"}
    status, administrator = await service.operate("POST", path, json=administrator)
    assert status == 201, administrator
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    await set_limit(caller, unit="requests", period="hour", ceiling=5, of_key=True)
    await set_alias(service, quote(HOSTILE_MODEL, safe=""), [MODEL])
    caller.headers |= {"x-rialto-tags": "team=a,feature=search"}
    for number, model in enumerate((MODEL, MODEL, HOSTILE_MODEL)):
        async with caller.chat(f"{number}", model=model, user=HOSTILE) as response:
            await response.read()
            assert response.status == 200, await response.text()
            request_id = response.headers["x-request-id"]
    statuses = set()
    for model in ("<b>nosuch</b>", MODEL, MODEL, MODEL, MODEL):
        async with caller.chat("more", model=model) as response:
            await response.read()
            statuses.add(response.status)
    assert statuses == {200, 404, 429}
    return Furnished(service, caller, administrator, limit["id"], request_id)
