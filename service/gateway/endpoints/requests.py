"""Endpoints that charge by the request: searches, pages, documents, blockchains, and paths that
Rialto does not know."""

import re
from typing import Annotated, Any, ClassVar, Final

import msgspec

from service.catalog import Catalog
from service.errors import ClientError, NotFound
from service.formats import body
from service.gateway.call import Call, Inbound, Relay, check_model
from service.gateway.endpoints import members
from service.gateway.endpoints.units import UnitEndpoint
from service.gateway.endpoints.unlisted_prices import AUGMENT_NANOS, RPC_NANOS
from service.upstream import Metered

MAX_RPC_REQUESTS: Final = 100
RPC_PATH: Final = re.compile(r"/crypto/rpc/[a-z0-9]{1,20}(?:-[a-z0-9]{1,20}){0,3}")
"""The form of network names. The ledger keeps the path, which must not be arbitrary text."""

Query = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]


class RequestCall(Call, frozen=True, kw_only=True):
    """A call that is charged by the request. In a batch each request is charged."""

    count: int = 1


class RequestEndpoint(UnitEndpoint[RequestCall]):
    """``nanos_each`` is the most that one request costs; None if unknown."""

    nanos_each: ClassVar[int | None] = AUGMENT_NANOS

    def parse(self, inbound: Inbound) -> RequestCall:
        """Accepts any body."""
        return RequestCall(
            endpoint=self,
            **inbound.facts(),
            content_type=inbound.content_type,
            model=self.path.lstrip("/"),
            has_model=False,
            relay=Relay.PASSED,
        )

    def _of_json(self, inbound: Inbound, shape: Any, table: members.Table) -> RequestCall:
        """Parse a call whose body must be JSON of this shape."""
        json = body.read(inbound.content, self.body_limits)
        body.convert(json.value, shape)
        return msgspec.structs.replace(
            RequestEndpoint.parse(self, inbound),
            content_type=inbound.read_type(takes_form=False),
            **members.price_facts(json.members, table),
        )

    def nanos(
        self,
        call: RequestCall,
        catalog: Catalog,
        metered: Metered | None = None,
    ) -> int | None:
        """See :meth:`UnitEndpoint.nanos`."""
        return None if self.nanos_each is None else self.nanos_each * call.count


class SearchRequest(msgspec.Struct):
    """The members of ``POST /augment/search`` that are read here."""

    query: Query


class SearchEndpoint(RequestEndpoint):
    """``POST /augment/search``: a web search."""

    path = "/augment/search"
    request_type = SearchRequest

    def parse(self, inbound: Inbound) -> RequestCall:
        """:raises ClientError: without a query."""
        return self._of_json(inbound, SearchRequest, members.AUGMENT_SEARCH)


class ScrapeRequest(msgspec.Struct):
    """The members of ``POST /augment/scrape`` that are read here."""

    url: str


class ScrapeEndpoint(RequestEndpoint):
    """``POST /augment/scrape``: a page as text."""

    path = "/augment/scrape"
    request_type = ScrapeRequest

    def parse(self, inbound: Inbound) -> RequestCall:
        """:raises ClientError: without a URL."""
        return self._of_json(inbound, ScrapeRequest, members.AUGMENT_SCRAPE)


class TextParserEndpoint(RequestEndpoint):
    """``POST /augment/text-parser``: a document as text."""

    path = "/augment/text-parser"
    reads_body = False
    file_names = ("file",)


class RpcRequest(msgspec.Struct, gc=False):
    """One request of JSON-RPC."""

    method: str


REQUEST_OR_BATCH: Final[Any] = RpcRequest | list[RpcRequest]


class RpcEndpoint(RequestEndpoint):
    """``POST /crypto/rpc/{network}``: one request of JSON-RPC, or a batch."""

    path = "/crypto/rpc/{network}"
    request_type = REQUEST_OR_BATCH
    nanos_each = RPC_NANOS
    may_state_error = True

    def parse(self, inbound: Inbound) -> RequestCall:
        """:raises ClientError: when the body is not JSON-RPC, or a batch is too large.
        :raises NotFound: when no network can have this name.
        """
        if not RPC_PATH.fullmatch(inbound.path):
            raise NotFound("There is no such network. GET /crypto/rpc/networks lists them.")
        requests = body.decode(inbound.content, REQUEST_OR_BATCH, self.body_limits)
        count = len(requests) if isinstance(requests, list) else 1
        if not 1 <= count <= MAX_RPC_REQUESTS:
            raise ClientError(f"A batch has 1 to {MAX_RPC_REQUESTS} requests.")
        return RequestCall(
            endpoint=self,
            **inbound.facts(),
            model=inbound.path.lstrip("/"),
            path=inbound.path,
            has_model=False,
            relay=Relay.PASSED,
            count=count,
        )


class OtherEndpoint(RequestEndpoint):
    """Any path that Rialto does not know, so its cost is unknown, too."""

    path = "/{other}"
    is_known = False
    reads_body = False
    nanos_each = None

    def parse(self, inbound: Inbound) -> RequestCall:
        """:raises ClientError: when the path is malformed."""
        check_model(inbound.path.partition("?")[0].lstrip("/"), "path")
        return RequestCall(
            endpoint=self,
            **inbound.facts(),
            content_type=inbound.content_type,
            model=(inbound.opened_by or inbound.path.partition("?")[0]).lstrip("/"),
            path=inbound.path,
            method=inbound.method,
            has_model=False,
            relay=Relay.PASSED,
        )


ENDPOINTS: Final = (SearchEndpoint(), ScrapeEndpoint(), TextParserEndpoint(), RpcEndpoint())
OTHER: Final = OtherEndpoint()
