"""Generates values for a JSON schema, for tool arguments and formatted responses."""

from collections.abc import Callable
from typing import Any, Final

TEXT: Final = "simulated"
MAX_DEPTH: Final = 8
MAX_ELEMENTS: Final = 100
_FORMATS: Final = {
    "date": "2026-11-23",
    "date-time": "2026-11-23T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1S",
    "email": "simulated@sandbox.invalid",
    "hostname": "sandbox.invalid",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://sandbox.invalid/",
    "url": "https://sandbox.invalid/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def instance(schema: Any) -> Any:
    """Return the simplest value of a schema: required properties, one element per array."""
    return _value(schema, schema, MAX_DEPTH)


def _value(schema: Any, root: Any, depth: int) -> Any:
    schema = _resolve(schema, root)
    stated = schema.get("enum") or schema.get("examples")
    if isinstance(stated, list):
        return stated[0]
    if "default" in schema or depth == 0:
        return schema.get("default")
    values: dict[str, Callable[..., Any]] = {
        "object": _object,
        "array": _array,
        "string": lambda schema, *_: _string(schema),
        "integer": lambda schema, *_: _number(schema),
        "number": lambda schema, *_: _number(schema),
        "boolean": lambda *_: False,
    }
    make = values.get(_type(schema))
    return None if make is None else make(schema, root, depth - 1)


def _object(schema: dict[str, Any], root: Any, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = (name for name in schema.get("required", ()) if name in properties)
    return {name: _value(properties[name], root, depth) for name in required}


def _array(schema: dict[str, Any], root: Any, depth: int) -> list[Any]:
    count = schema.get("minItems", 1 if "items" in schema else 0)
    return [_value(schema.get("items"), root, depth)] * min(count, MAX_ELEMENTS)


def _string(schema: dict[str, Any]) -> str:
    text: str = _FORMATS.get(schema.get("format", ""), TEXT)
    return text.ljust(schema.get("minLength", 0))[: schema.get("maxLength")]


def _number(schema: dict[str, Any]) -> Any:
    """Return a number within the bounds: the least, or else 0 or the most."""
    if "minimum" in schema:
        return schema["minimum"]
    above = schema.get("exclusiveMinimum")
    if isinstance(above, int | float) and not isinstance(above, bool):
        return above + schema.get("multipleOf", 1)
    return min(0, schema.get("maximum", 0))


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
