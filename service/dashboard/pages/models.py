"""Models: what Venice lists, the aliases, and who uses a model that ends."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service.accounts import find_organization_id
from service.api import aliases
from service.api.queries import OptionalId, Text, id_of, text_of
from service.catalog import NewAlias
from service.catalog.prices import TOKEN_TYPES
from service.dashboard.page import Page
from service.errors import ClientError
from service.reports import models, usage
from service.reports.models import ModelFilter, ModelKind, ModelPage
from service.reports.usage import DeprecatedModel

PAGE: Final = 100
USED_DAYS: Final = 30
ALIAS_FORM: Final = "aliases"
REMOVE_FORM: Final = "aliases/remove"


class ModelsQuery(msgspec.Struct, kw_only=True):
    """The names to show. Models for text are shown first, since most calls are of them."""

    kind: ModelKind | UnsetType = UNSET
    type: Text | UnsetType = UNSET
    q: Text | UnsetType = UNSET
    after: OptionalId | UnsetType = UNSET


class AliasForm(msgspec.Struct, kw_only=True):
    """An alias to set. ``targets`` are models, separated by commas, spaces or lines."""

    alias: str = ""
    targets: str = ""
    organization: str | UnsetType = UNSET


class RemovedAliasForm(msgspec.Struct, kw_only=True):
    """The alias to remove; without an organization the one that everybody has."""

    alias: str = ""
    organization_id: OptionalId | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The models or aliases that fit the filters."""
    query = page.query(ModelsQuery)
    is_form = page.error is not None
    kind: ModelKind = "alias" if is_form or query.kind == "alias" else "model"
    if query.kind == "retired" and not is_form:
        kind = "retired"
    is_all = query.type == "all" or kind == "alias"
    model_type = None if is_all else text_of(query.type) or ("text" if kind == "model" else None)
    text = text_of(query.q)
    if text is not None and query.type is UNSET:
        # Who looks for a name looks for it among all types.
        model_type = None
    wanted = ModelFilter(
        kind=kind, type=model_type, text=text, organization_id=page.viewer.organization_id
    )
    after = id_of(query.after)
    found: ModelPage | None = await page.part(models.search, page.database, wanted, after, PAGE)
    types = await page.part(models.list_types, page.database)
    ending: Sequence[DeprecatedModel] | None = ()
    if kind == "model" and after is None:
        ending = await page.part(
            usage.deprecated_models_used, page.database, USED_DAYS, page.viewer.organization_id
        )
    return await page.render(
        "models.html",
        kind=kind,
        found=found,
        types=types or (),
        model_type=model_type or "all",
        has_rates=kind != "alias" and model_type in TOKEN_TYPES,
        text=text or "",
        ending=ending,
        days=USED_DAYS,
        used_from=f"{page.now - timedelta(days=USED_DAYS):%Y-%m-%d}",
    )


async def set_alias(page: Page) -> web.StreamResponse:
    """Set the models that an alias resolves to."""
    form = page.form(AliasForm)
    organization_id = page.viewer.organization_id
    if organization_id is None and form.organization is not UNSET:
        organization_id = await _organization(page, form.organization)
    new = NewAlias(targets=form.targets.replace(",", " ").split(), organization_id=organization_id)
    viewer = page.viewer
    await aliases.put(page.app, page.database, viewer.caller, viewer.actor, form.alias, new)
    return page.redirect("models", kind="alias", notice="alias_set")


async def remove_alias(page: Page) -> web.StreamResponse:
    """Remove an alias."""
    form = page.form(RemovedAliasForm)
    viewer = page.viewer
    organization_id = id_of(form.organization_id)
    await aliases.remove(
        page.app, page.database, viewer.caller, viewer.actor, form.alias, organization_id
    )
    return page.redirect("models", kind="alias", notice="alias_removed")


async def _organization(page: Page, text: str) -> UUID:
    """The id of the organization that the form names.

    :raises ClientError: when there is none, or several.
    """
    try:
        return await find_organization_id(page.database, text)
    except ClientError as error:
        error.param = "organization"
        raise
