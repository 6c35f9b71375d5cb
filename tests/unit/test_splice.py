"""The table of members that are changed before Venice gets a body."""

import pytest

from service.gateway import ENDPOINTS
from service.gateway.endpoints import members
from service.gateway.endpoints.splice import SPLICES

TABLES = {
    "/chat/completions": members.TEXT,
    "/responses": members.TEXT,
    "/embeddings": members.EMBEDDINGS,
    "/image/generate": members.IMAGE_GENERATE,
    "/images/generations": members.IMAGE_GENERATIONS,
}


@pytest.mark.parametrize("path", SPLICES)
def test_every_row_is_of_an_endpoint_and_of_members_that_it_reads(path):
    """A row for a path or a member that nobody sends would never be seen to be wrong."""
    splice = SPLICES[path]

    assert path in {endpoint.path for endpoint in ENDPOINTS}
    assert {*splice.added, *splice.replaced} <= TABLES[path].keys()
    assert splice.added.keys().isdisjoint(splice.replaced)


@pytest.mark.parametrize(
    "endpoint", [it for it in ENDPOINTS if getattr(it, "cap_member", None)], ids=lambda it: it.path
)
def test_the_cap_is_set_by_every_name_for_it(endpoint):
    """A body with the cap by another name must not raise it at Venice."""
    splice = SPLICES[endpoint.path]
    maxima = {name for name, effect in members.TEXT.items() if effect is members.Effect.MAXIMUM}

    assert endpoint.cap_member in splice.added
    assert maxima == (splice.added.keys() | splice.replaced.keys()) & maxima
