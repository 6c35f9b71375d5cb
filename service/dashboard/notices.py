"""What a page reports after a change. The URL has the name, so no text of a URL is ever shown."""

from typing import Final

NOTICES: Final = {
    "organization_created": "The organization is created. Next it needs a key and a limit.",
    "organization_renamed": "The organization has another name.",
    "organization_suspended": "The organization is suspended: its calls are refused from now on.",
    "organization_resumed": "The organization is active: its calls are admitted again.",
    "organization_deleted": "The organization is deleted. Its ledger stays.",
    "key_changed": "The key is changed.",
    "key_revoked": "The key is revoked. Every replica refuses its next call.",
    "limit_created": "The limit is set, and binds the next call.",
    "limit_changed": "The limit is changed, and binds the next call.",
    "limit_raised": "The limit is raised until the time that was stated.",
    "limit_raise_ended": "The raise has ended.",
    "limit_deleted": "The limit is deleted. Calls are admitted without it.",
    "signed_out": "You are signed out.",
    "session_ended": "Your session has ended. Sign in again.",
    "alias_set": "The alias is set. Every replica uses it within seconds.",
    "alias_removed": "The alias is removed.",
    "venice_key_added": "The key is added, and Venice accepts it.",
    "venice_key_added_not_well": "The key is added, but did not pass its check. See its condition.",
    "venice_key_checked": "Venice accepts the key.",
    "venice_key_checked_not_well": "The key did not pass its check. See its condition.",
    "venice_key_enabled": "The key is enabled, and Venice accepts it.",
    "venice_key_enabled_not_well": (
        "The key is enabled, but it did not pass its check. See its condition."
    ),
    "venice_key_disabled": "The key is disabled. Every replica stops using it within seconds.",
}
