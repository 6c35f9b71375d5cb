"""The reference of the API, as pages show it: made from its OpenAPI document."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from markupsafe import Markup, escape

Json = Mapping[str, Any]

GROUPS: Final = {
    "public": "For everybody",
    "caller": "For callers, with a key of any role",
    "administrator": "For administrators of an organization, and the operator",
    "operator": "For the operator",
}
METHODS: Final = ("get", "post", "put", "patch", "delete")
REF: Final = "#/components/schemas/"
MAX_VALUES: Final = 12
"""Values of a text that are written out."""
CONTAINERS: Final = (
    ("array", "items", "list of "),
    ("object", "additionalProperties", "object of "),
)
"""Types that have others, the name of those in the schema, and the words for it."""
_CODE: Final = re.compile(r"`([^`]+)`")


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter, or a member of an object."""

    name: str
    type: Markup
    is_required: bool
    where: str = ""
    text: str = ""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """An object that a body has, by the name of its schema."""

    name: str
    text: str
    fields: Sequence[Field]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer by its status."""

    status: str
    text: str
    type: Markup


class ApiOperation(msgspec.Struct, frozen=True, kw_only=True):
    """A method of a path."""

    name: str
    method: str
    path: str
    group: str
    summary: str
    text: str
    parameters: Sequence[Field]
    takes: Markup
    answers: Sequence[Answer]
    shapes: Sequence[Shape]
    """The objects of its body and of its good answers, and those within them."""


class Reference:
    """Every operation of the API, by name."""

    def __init__(self, document: Json) -> None:
        self._schemas: Json = document["components"]["schemas"]
        self._refusals: Json = document["components"]["responses"]
        self.operations = {
            operation.name: operation for operation in self._operations(document["paths"])
        }

    def groups(self) -> dict[str, list[ApiOperation]]:
        """The operations by who may use them, in the order of the document."""
        found: dict[str, list[ApiOperation]] = {title: [] for title in GROUPS.values()}
        for operation in self.operations.values():
            found[operation.group].append(operation)
        return {title: operations for title, operations in found.items() if operations}

    def _operations(self, paths: Json) -> Iterator[ApiOperation]:
        for path, item in paths.items():
            for method in METHODS:
                if method in item:
                    yield self._operation(method, path, item[method])

    def _operation(self, method: str, path: str, described: Json) -> ApiOperation:
        names: dict[str, None] = {}
        parameters = [
            Field(
                name=parameter["name"],
                type=self._type(parameter["schema"], {}),
                is_required=parameter["required"],
                where=parameter["in"],
                text=parameter["schema"].get("description", ""),
            )
            for parameter in described.get("parameters", ())
        ]
        takes = self._content(described.get("requestBody", {}).get("content", {}), names)
        answers = [
            self._answer(status, answer, names) for status, answer in described["responses"].items()
        ]
        return ApiOperation(
            name=described["operationId"],
            method=method.upper(),
            path=path,
            group=GROUPS[described["tags"][0]],
            summary=described["summary"],
            text=described["description"],
            parameters=parameters,
            takes=takes,
            answers=answers,
            shapes=self._shapes(names),
        )

    def _answer(self, status: str, answer: Json, names: dict[str, None]) -> Answer:
        if "$ref" in answer:
            refusal = self._refusals[answer["$ref"].rpartition("/")[2]]
            return Answer(status=status, text=refusal["description"], type=Markup(""))
        content = self._content(answer.get("content", {}), names)
        return Answer(status=status, text=answer["description"], type=content)

    def _content(self, content: Json, names: dict[str, None]) -> Markup:
        kinds = []
        for media_type, value in content.items():
            schema = value.get("schema")
            kind = self._type(schema, names) if schema else Markup("")
            if media_type == "application/json" and kind:
                kinds.append(kind)
            else:
                kinds.append(Markup("<code>{}</code> {}").format(media_type, kind))
        return Markup(" or ").join(kinds)

    def _shapes(self, names: dict[str, None]) -> list[Shape]:
        """The objects that are named, and those that they name in turn, each once."""
        shapes: list[Shape] = []
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            schema = self._schemas[name]
            within: dict[str, None] = {}
            required = schema.get("required", ())
            fields = [
                Field(
                    name=field,
                    type=self._type(member, within),
                    is_required=field in required,
                    text=member.get("description", ""),
                )
                for field, member in schema.get("properties", {}).items()
            ]
            shapes.append(Shape(name=name, text=schema.get("description", ""), fields=fields))
            for other in within:
                if other not in names:
                    names[other] = None
                    waiting.append(other)
        return shapes

    def _type(self, schema: Json, names: dict[str, None]) -> Markup:
        """The type in words. Objects that it names are added to ``names``."""
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(REF)
            names[name] = None
            return Markup('<a href="#{0}">{0}</a>').format(name)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                between = escape(" and " if several == "allOf" else " or ")
                return between.join(self._type(one, names) for one in schema[several])
        if "enum" in schema:
            values = schema["enum"]
            shown = Markup(", ").join(
                Markup("<code>{}</code>").format(value) for value in values[:MAX_VALUES]
            )
            return shown + Markup(", …") if len(values) > MAX_VALUES else shown
        kind = schema.get("type", schema.get("const", "any value"))
        if isinstance(kind, list):
            kind = " or ".join(kind)
        for container, member, words in CONTAINERS:
            if kind == container and isinstance(schema.get(member), Mapping):
                return escape(words) + self._type(schema[member], names)
        return escape(f"{kind}{_bounds(schema)}")


def _bounds(schema: Json) -> str:
    """The bounds of a type, as `` from 1 to 100``."""
    low = schema.get("minimum", schema.get("minLength", schema.get("minItems")))
    high = schema.get("maximum", schema.get("maxLength", schema.get("maxItems")))
    text = f" ({schema['format']})" if "format" in schema else ""
    if low is not None and high is not None:
        return f"{text}, {low} to {high}"
    if low is not None:
        return f"{text}, at least {low}"
    return text if high is None else f"{text}, at most {high}"


def with_code(text: str) -> Markup:
    """Text with its parts in backticks as code."""
    pieces = _CODE.split(text.replace("``", "`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else escape(piece)
        for index, piece in enumerate(pieces)
    )
