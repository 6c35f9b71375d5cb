"""Generates values for a JSON schema, for tool arguments and formatted responses."""

from typing import Any, Final

TEXT: Final = "simulated"
MAX_DEPTH: Final = 8
MAX_ELEMENTS: Final = 100


def instance(schema: Any) -> Any:
    """Return the simplest value of a schema: every property, one element per array."""
    return _value(schema, schema, MAX_DEPTH)


def _value(schema: Any, root: Any, depth: int) -> Any:
    schema = _resolve(schema, root)
    if "enum" in schema or depth == 0:
        return next(iter(schema.get("enum", ())), None)
    match _type(schema):
        case "object":
            properties = schema.get("properties", {})
            return {name: _value(part, root, depth - 1) for name, part in properties.items()}
        case "array":
            count = schema.get("minItems", 1 if "items" in schema else 0)
            return [_value(schema.get("items"), root, depth - 1)] * min(count, MAX_ELEMENTS)
        case kind:
            return {
                "string": TEXT.ljust(schema.get("minLength", 0))[: schema.get("maxLength")],
                "integer": schema.get("minimum", 0),
                "number": schema.get("minimum", 0),
                "boolean": False,
            }.get(kind)


def _resolve(schema: Any, root: Any) -> dict[str, Any]:
    """Resolve references, and the first of alternatives."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, dict):
            return {}
        if "const" in schema:
            return {"enum": [schema["const"]]}
        options = next((schema[name] for name in ("anyOf", "oneOf", "allOf") if name in schema), ())
        if "$ref" in schema:
            schema = _follow_reference(str(schema["$ref"]), root)
        elif options:
            schema = options[0]
        else:
            return schema
    return {}


def _follow_reference(reference: str, root: Any) -> Any:
    found = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _type(schema: dict[str, Any]) -> str:
    named = schema.get("type", "object" if "properties" in schema else "null")
    return str(named[0] if isinstance(named, list) and named else named)
