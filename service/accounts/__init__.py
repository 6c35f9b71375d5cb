"""Organizations and the keys of their callers."""

from service.accounts.callers import OPERATOR, Caller, Callers
from service.accounts.keys import (
    ApiKey,
    KeyChange,
    NewKey,
    change_key,
    create_key,
    create_passing_key,
    find_key,
    is_on_list_of_operator,
    list_keys,
    must_be_among,
    must_have_key,
    revoke_key,
)
from service.accounts.organizations import (
    CHANNEL,
    Organization,
    announce,
    change_organization,
    check_master_key,
    create_organization,
    end_user_digest,
    find_organization,
    list_organizations,
)
from service.accounts.references import find_key_id, find_organization_id, parse_id
from service.accounts.settings import (
    KeySettings,
    Role,
    StatedOrganizationSettings,
)

__all__ = [
    "CHANNEL",
    "OPERATOR",
    "ApiKey",
    "Caller",
    "Callers",
    "KeyChange",
    "KeySettings",
    "NewKey",
    "Organization",
    "Role",
    "StatedOrganizationSettings",
    "announce",
    "change_key",
    "change_organization",
    "check_master_key",
    "create_key",
    "create_organization",
    "create_passing_key",
    "end_user_digest",
    "find_key",
    "find_key_id",
    "find_organization",
    "find_organization_id",
    "is_on_list_of_operator",
    "list_keys",
    "list_organizations",
    "must_be_among",
    "must_have_key",
    "parse_id",
    "revoke_key",
]
