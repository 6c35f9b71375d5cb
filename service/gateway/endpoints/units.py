"""The base of endpoints that charge by the piece: an image, a second, a request."""

import abc
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from service import money
from service.accounts import Caller
from service.catalog import Catalog
from service.errors import ClientError
from service.formats import body, multipart
from service.gateway.call import Bound, Call, Cost, Endpoint, Inbound
from service.ledger import CostSource
from service.upstream import Metered

T = TypeVar("T", bound=Call)
S = TypeVar("S")


class Form(NamedTuple, Generic[S]):
    """A body that was read, as JSON or as a form."""

    request: S
    json: body.JsonBody | None
    parts: Sequence[multipart.Part]
    """The fields of the form; empty for JSON."""

    @property
    def members(self) -> Mapping[str, Any]:
        """The members of the body. The value of a file is True."""
        if self.json is not None:
            return self.json.members
        return {part.name: True if part.text is None else part.text for part in self.parts}


def read_form(inbound: Inbound, shape: type[S], media: Collection[str] = ()) -> Form[S]:
    """Read a body of JSON or ``multipart/form-data`` as ``shape``. Fields whose names are in
    ``media`` are left out of the shape.

    :raises ClientError: naming the field and the rule.
    """
    content_type = inbound.read_type()
    if not multipart.is_multipart(content_type):
        json = body.read(inbound.content)
        return Form(body.convert(json.value, shape), json, ())
    parts = multipart.parse(inbound.content, content_type)
    texts: dict[str, str] = {}
    names: set[str] = set()
    for part in parts:
        if part.name in media:
            continue
        is_read = part.name in shape.__struct_fields__  # type: ignore[attr-defined]
        is_file = part.text is None
        if part.name in names and not is_file and not part.name.endswith("[]"):
            raise ClientError(f"{part.name}: is there twice.", param=part.name)
        names.add(part.name)
        if is_read and part.text is None:
            raise ClientError(
                f"{part.name}: must be a text of at most {multipart.TEXT_BYTES} bytes, not a file.",
                param=part.name,
            )
        if part.text is not None:
            texts[part.name] = part.text
    try:
        return Form(msgspec.convert(texts, shape, strict=False), None, parts)
    except msgspec.ValidationError as error:
        raise body.at_fault(str(error)) from None


class UnitEndpoint(Endpoint[T], Generic[T]):
    """An endpoint whose price follows from the request."""

    @abc.abstractmethod
    def nanos(self, call: T, catalog: Catalog, metered: Metered | None = None) -> int | None:
        """The most that the call can cost, or with ``metered`` its cost; None if unknown."""

    def bound(self, call: T, caller: Caller, catalog: Catalog) -> Bound:
        """See :meth:`Endpoint.bound`."""
        return Bound(nanos=self._all(call, catalog))

    def cost(self, call: T, bound: Bound, metered: Metered, catalog: Catalog) -> Cost:
        """The cost that Venice states, in full. Without one: the pieces that Venice states, else
        those of the request, at the catalogue's price."""
        if metered.cost_usd is not None:
            return Cost(None, money.parse_usd(metered.cost_usd), CostSource.REPORTED)
        nanos = self._all(call, catalog, metered)
        return Cost(None, nanos, CostSource.UNKNOWN if nanos is None else CostSource.COMPUTED)

    def _all(self, call: T, catalog: Catalog, metered: Metered | None = None) -> int | None:
        if not call.has_price:
            return None
        nanos = self.nanos(call, catalog, metered)
        return None if nanos is None else nanos + call.surcharge_nanos
