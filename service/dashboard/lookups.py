"""What a path, a filter or a form names, as far as the viewer may see it. For an administrator all
that belongs to others looks as if it did not exist."""

import re
from typing import Final
from uuid import UUID

from service import accounts, ledger
from service.accounts import ApiKey, Organization
from service.api.state import KEYRING
from service.dashboard.page import Page
from service.errors import ClientError, NotFound
from service.ledger import Limit

DIGEST: Final = re.compile(r"digest:([0-9a-f]{32})")
"""How a link names an end user, whose name is written nowhere."""


async def organization_of(page: Page) -> Organization:
    """The organization whose id or name is in the path.

    :raises NotFound: when there is none that the viewer sees.
    :raises ClientError: when several have the name.
    """
    organization_id = await accounts.find_organization_id(
        page.database, page.path("id"), page.viewer.organization_id
    )
    return await accounts.find_organization(page.database, organization_id)


async def key_of(page: Page) -> ApiKey:
    """The key whose id, prefix or name is in the path.

    :raises NotFound: when there is none that the viewer sees.
    :raises ClientError: when several keys fit.
    """
    key_id = await accounts.find_key_id(page.database, page.path("id"), page.viewer.organization_id)
    return await accounts.find_key(page.database, key_id)


async def limit_of(page: Page) -> Limit:
    """The limit whose id is in the path.

    :raises NotFound: when there is none that the viewer sees.
    """
    limit = await ledger.find_limit(page.database, page.path_id)
    if page.viewer.organization_id not in (None, limit.organization_id):
        raise NotFound("There is no such limit.")
    return limit


async def organization_id_of(page: Page, text: str | None) -> UUID | None:
    """The organization that a filter names, or the viewer's own; None for all.

    :raises ClientError: when there is none that the viewer sees, or several have the name.
    """
    own = page.viewer.organization_id
    if not text:
        return own
    try:
        return await accounts.find_organization_id(page.database, text, own)
    except ClientError as error:
        error.param = "organization"
        raise


async def key_id_of(
    page: Page, text: str | None, organization_id: UUID | None, field: str = "key"
) -> UUID | None:
    """The key that a filter or a form names, of one organization unless that is None.

    :raises ClientError: when there is none that the viewer sees, or several fit.
    """
    if not text:
        return None
    try:
        return await accounts.find_key_id(page.database, text, organization_id)
    except ClientError as error:
        error.param = field
        raise


async def end_user_of(page: Page, text: str | None, organization_id: UUID | None) -> bytes | None:
    """The digest of the end user that a filter names, by the plain name or as ``digest:<hex>``.

    :raises ClientError: when the organization is not known, which a plain name needs.
    """
    if not text:
        return None
    if (digest := DIGEST.fullmatch(text)) is not None:
        return bytes.fromhex(digest[1])
    if organization_id is None:
        raise ClientError(
            "end_user: needs an organization, because each has its own record of a name.",
            param="end_user",
        )
    return await accounts.end_user_digest(page.database, page.app[KEYRING], organization_id, text)
