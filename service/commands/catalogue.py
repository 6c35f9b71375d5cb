"""The models that the service knows, for commands that are given names of models."""

from collections.abc import Iterable
from uuid import UUID

from service.catalog import Catalog
from service.database.database import Database
from service.errors import ClientError, Unavailable


async def read_catalog(database: Database) -> Catalog:
    """Read the models and aliases as the service last stored them. Venice is not asked."""
    catalog = Catalog(_refuse_to_fetch, database)
    await catalog.load()
    return catalog


async def must_be_models(database: Database, organization_id: UUID, names: Iterable[str]) -> None:
    """Check that each name is a model or an alias. Before a first start none is known, so all pass.

    :raises ClientError: when a name leads to no model, with the nearest names.
    """
    catalog = await read_catalog(database)
    if not catalog.is_loaded:
        return
    for name in names:
        try:
            catalog.targets(organization_id, name, None)
        except ClientError as error:
            raise ClientError(f"models: {error}", code=error.code, param="models") from None


async def _refuse_to_fetch(_: str, __: str) -> bytes:
    raise Unavailable("Commands do not ask Venice for its models.")
