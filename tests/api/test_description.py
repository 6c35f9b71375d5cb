"""``GET /openapi.json`` describes every route and nothing else."""

import inspect
import json
import re
from pathlib import Path

import msgspec
import pytest
import schemathesis
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from service import errors
from service.accounts import OPERATOR, Organization
from service.api import add_routes, admin
from service.api.description import operator
from service.api.operations import Operation
from service.api.queries import PageQuery
from service.errors import ServiceError

pytestmark = pytest.mark.shares_service

SERVICE = Path(inspect.getfile(errors)).parent
REASON = re.compile(r'\bcode="(\w+)"')


def described_routes(app):
    """Return the route table that the application's routes were added from."""
    (handler,) = {
        route.handler
        for route in app.router.routes()
        if route.resource.canonical == "/openapi.json"
    }
    return handler.__self__


@pytest.fixture(scope="module")
def app():
    """An application with all routes and nothing else."""
    app = web.Application()
    add_routes(app)
    return app


@pytest.fixture(scope="module")
def routes(app):
    """The described routes."""
    return described_routes(app)


@pytest.fixture(scope="module")
def document(routes):
    """The description as a client reads it."""
    return json.loads(msgspec.json.encode(routes.document()))


def operations(document):
    """The operations by name, without those that repeat another under a second prefix."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "$ref":
                yield f"{method.upper()} {path}", operation


def test_it_is_openapi(document):
    """A validator of OpenAPI 3.1 accepts the description."""
    schemathesis.openapi.from_dict(document).validate()


def test_every_route_is_described(app, document):
    """The description has each method and path of the route table, except HEAD."""
    there = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD"
    }
    schema = schemathesis.openapi.from_dict(document)
    described = {found.ok().label for found in schema.get_all_operations()}

    assert described == {f"{method} {path}" for method, path in there}


def test_a_route_cannot_go_undescribed():
    """Adding a route without a description is an error."""
    app = web.Application()
    add_routes(app)
    routes = described_routes(app)
    app.router.add_get("/past-the-table", routes.describe)

    with pytest.raises(KeyError):
        routes.document()


def test_every_operation_has_a_summary(document):
    """Each operation has its own one-line summary, taken from its docstring."""
    for name, operation in operations(document):
        summary = operation["summary"]
        assert 4 < len(summary) < 100, name
        assert not summary[0].islower(), name
        assert "POST /" not in summary, name
        assert "GET /" not in summary, name


def test_operations_have_names_of_their_own(document):
    """No ``operationId`` occurs twice."""
    names = [operation["operationId"] for _, operation in operations(document)]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("GET /health", {"200", "500", "503"}),
        (
            "POST /admin/v1/ledger/{id}/credit",
            {"201", "400", "401", "403", "404", "408", "409", "413", "415", "429", "500", "503"},
        ),
        ("GET /v1/limits", {"200", "400", "401", "403", "429", "500", "503"}),
        (
            "DELETE /admin/v1/limits/{id}",
            {"204", "401", "403", "404", "409", "429", "500", "503"},
        ),
        (
            "POST /v1/chat/completions",
            {"200", "400", "401", "402", "403", "404", "408", "413", "415", "429", "4XX"}
            | {"500", "502", "503", "504"},
        ),
    ],
)
def test_errors_follow_from_the_kind_of_route(document, name, statuses):
    """The description derives an operation's errors from the kind of its route."""
    assert dict(operations(document))[name]["responses"].keys() == statuses


def test_messages_have_anthropics_errors(document):
    """The errors of each API format are described in that format."""
    found = {
        name: operation["responses"]["401"]["$ref"].rpartition("/")[2].partition("_")[0]
        for name, operation in operations(document)
        if "401" in operation["responses"]
    }

    assert {name for name, shape in found.items() if shape == "AnthropicError"} == {
        "POST /v1/messages",
        "POST /v1/messages/count_tokens",
    }
    assert set(found.values()) == {"Error", "AnthropicError"}


def test_every_code_is_in_the_tree():
    """Each code that is set where an error is raised is listed with its error class."""
    given = {
        code
        for path in SERVICE.rglob("*.py")
        if "sandbox" not in path.parts
        for code in REASON.findall(path.read_text())
    }
    classes = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    known = {code for kind in classes if issubclass(kind, ServiceError) for code in kind.codes()}

    assert given - known == set()
    assert len(given) > 5


def test_extra_members_are_allowed_on_paid_routes_only(document):
    """The description allows extra members in the bodies of paid routes, and forbids them on the
    operator's."""
    schemas = document["components"]["schemas"]

    assert "additionalProperties" not in schemas["ChatRequest"]
    assert schemas["NewLimit"]["additionalProperties"] is False


async def test_it_is_public_and_cached(service):
    """The description needs no key, and a client that has it already gets a 304."""
    async with service.http.get("/openapi.json") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        document = await response.json()
        etag = response.headers["ETag"]
    async with service.http.get("/openapi.json", headers={"If-None-Match": etag}) as response:
        assert response.status == 304
        assert await response.read() == b""
        assert response.headers["ETag"] == etag
    async with service.http.get("/openapi.json", headers={"If-None-Match": '"x"'}) as response:
        assert response.status == 200

    assert document["openapi"].startswith("3.1")
    assert document["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}


def test_queries_are_parsed_by_what_describes_them(document):
    """A parameter of an administrative route is described with all of its rule, be it a grammar
    of its own."""
    described = {
        parameter["name"]: parameter["schema"]
        for name, operation in operations(document)
        if name.startswith("GET /admin/v1/organizations/{id}/")
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    }

    assert described["limit"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    assert re.fullmatch(described["after"]["pattern"], "")
    assert not re.fullmatch(described["api_key_id"]["pattern"], "-" * 36)
    assert re.fullmatch(described["tag"]["pattern"], "team=a=b")
    assert described["format"]["enum"] == ["csv", "jsonl"]


async def test_a_handler_reads_what_its_route_is_described_with():
    """Another type is a mistake that no request survives, so any test of the route finds it."""
    about = operator(takes=admin.NewOrganization, gives=Organization, query=PageQuery)
    operation = Operation(make_mocked_request("GET", "/?limit=7&x=y"), OPERATOR, about)

    assert operation.read_query(PageQuery).limit == 7
    with pytest.raises(TypeError):
        operation.read_query(admin.LimitsQuery)
    with pytest.raises(TypeError):
        await operation.read_body(admin.OrganizationChange)
