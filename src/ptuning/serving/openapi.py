"""The schema of request bodies that a route reads by itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def request_body(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """What an OpenAPI operation says about its body.

    Args:
        others: Content types that are taken, too, without a schema.
    """
    schema = model.model_json_schema()
    content: dict[str, Any] = {"application/json": {"schema": _inlined(schema, schema.pop("$defs", {}))}}
    for kind in others:
        content[kind] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """``schema`` with every reference replaced by what it refers to."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(target := schema.get("$ref"), str):
        return _inlined(definitions[target.rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}
