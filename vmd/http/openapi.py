"""The specification: handlers' documentation and attrs classes to OpenAPI 3.1, and nothing else does that."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import yaml
from aiohttp import web
from aiohttp_apispec import docs as apispec_docs
from apispec import APISpec
from attrs import field, frozen

from vmd import __version__
from vmd.model.errors import STATUS_AND_TITLE, ErrorCode, Problem

__all__ = ["docs", "refuses", "returns", "specification", "takes", "to_yaml"]

H = TypeVar("H", bound=Callable[..., Any])

JSON = "application/json"
_REF = "#/components/schemas/{name}"
# What any request to a protected route may be answered with.
_ALWAYS = (
    ErrorCode.MALFORMED_REQUEST,
    ErrorCode.UNAUTHENTICATED,
    ErrorCode.FORBIDDEN,
    ErrorCode.TOO_LARGE,
    ErrorCode.RATE_LIMITED,
    ErrorCode.INTERNAL,
    ErrorCode.NOT_READY,
)
_HEADERS = {
    "X-Request-Id": ("The id of this request, also in problem documents and in the daemon's log.", True),
    "Location": ("Where the operation, or what was made, is.", True),
    "ETag": ("The workspace's version.", True),
    "Content-Disposition": ("A name for the file.", True),
    "Vmd-Offset": ("The offset of the first byte of this answer.", True),
}
_DESCRIPTION = """\
Transient development workspaces for a team.

Long work answers 202 with an Operation, which is recorded before the answer is sent; wait for it, follow its
log, or listen to events. Errors are RFC 9457 problem documents whose `detail` says what to do next. Unknown
fields and query parameters are errors. Every POST takes `Idempotency-Key`.
"""


@frozen(kw_only=True)
class _Answer:
    status: int
    kind: Any  # an attrs class, a type, or None for no body
    description: str
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()


@frozen(kw_only=True)
class _Wire:
    """What a handler takes and returns; kept on the function beside aiohttp-apispec's notes."""

    body: Any = None
    body_type: str = JSON
    is_body_required: bool = True
    query: Any = None
    answers: list[_Answer] = field(factory=list)
    codes: list[ErrorCode] = field(factory=list)


def docs(
    *, tags: list[str], summary: str, description: str = "", parameters: Sequence[dict[str, Any]] = ()
) -> Callable[[H], H]:
    """Note on a handler what the specification says of it; `parameters` are its headers."""
    notes: dict[str, Any] = {"tags": tags, "summary": summary, "parameters": list(parameters)}
    if description:
        notes["description"] = description
    mark: Callable[[H], H] = apispec_docs(**notes)
    return mark


def takes(
    *, body: Any = None, query: Any = None, is_body_required: bool = True, body_type: str = JSON
) -> Callable[[H], H]:
    """Say which attrs classes a handler reads its body and query into; bytes are no JSON."""

    def mark(handler: H) -> H:
        wire = _wire(handler)
        handler.__wire__ = _Wire(  # type: ignore[attr-defined]
            body=body or wire.body,
            body_type=body_type,
            is_body_required=is_body_required,
            query=query or wire.query,
            answers=wire.answers,
            codes=wire.codes,
        )
        return handler

    return mark


def returns(
    status: int,
    kind: Any,
    description: str,
    *,
    content_type: str = JSON,
    headers: tuple[str, ...] = (),
) -> Callable[[H], H]:
    """Say what a handler answers with."""

    def mark(handler: H) -> H:
        answer = _Answer(
            status=status, kind=kind, description=description, content_type=content_type, headers=headers
        )
        _wire(handler).answers.append(answer)
        return handler

    return mark


def refuses(*codes: ErrorCode) -> Callable[[H], H]:
    """Say which problems a handler answers with, besides those that any may."""

    def mark(handler: H) -> H:
        _wire(handler).codes.extend(codes)
        return handler

    return mark


def specification(routes: Iterable[web.RouteDef], public_paths: frozenset[str]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these routes."""
    documented = [route for route in routes if hasattr(route.handler, "__apispec__")]
    spec = APISpec(
        title="vmd",
        version=__version__,
        openapi_version="3.1.0",
        info={"description": _DESCRIPTION, "license": {"name": "MIT", "identifier": "MIT"}},
        servers=[{"url": "/"}],
        security=[{"token": []}],
    )
    spec.components.security_scheme("token", {"type": "http", "scheme": "bearer"})
    kinds = list(_kinds(documented))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    queries = {
        _component_name(schema_of[id(_wire(route.handler).query)])
        for route in documented
        if _wire(route.handler).query
    }
    for name in sorted(set(components) - queries):
        spec.components.schema(name, components[name])
    for route in documented:
        operation = _operation(route, schema_of, components, is_public=route.path in public_paths)
        spec.path(path=re.sub(r":[^}]*}", "}", route.path), operations={route.method.lower(): operation})
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec.to_dict()))
    return document


def to_yaml(document: dict[str, Any]) -> str:
    """Return the document as it is committed."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    return text


def _kinds(routes: Iterable[web.RouteDef]) -> Iterator[Any]:
    yield Problem
    for route in routes:
        wire = _wire(route.handler)
        yield from (kind for kind in (wire.body, wire.query) if kind is not None)
        yield from (answer.kind for answer in wire.answers if answer.kind is not None)


def _operation(
    route: web.RouteDef, schema_of: dict[int, Any], components: dict[str, Any], *, is_public: bool
) -> dict[str, Any]:
    handler: Any = route.handler
    wire = _wire(handler)
    notes = {
        name: handler.__apispec__[name]
        for name in ("tags", "summary", "description")
        if name in handler.__apispec__
    }
    operation: dict[str, Any] = {"operationId": _operation_id(handler), **notes}
    if is_public:
        operation["security"] = []
    operation["parameters"] = [
        *_path_parameters(route.path),
        *_query_parameters(wire.query, schema_of, components),
    ]
    operation["parameters"] += [
        {
            "in": parameter["in"],
            "name": parameter["name"],
            "required": False,
            "description": parameter["description"],
            "schema": parameter["schema"],
        }
        for parameter in handler.__apispec__["parameters"]
    ]
    if wire.body is not None:
        content = {wire.body_type: {"schema": schema_of[id(wire.body)]}}
        operation["requestBody"] = {"required": wire.is_body_required, "content": content}
    operation["responses"] = {
        **{str(answer.status): _response(answer, schema_of) for answer in wire.answers},
        **_problems(
            wire.codes if is_public else [*_ALWAYS, *wire.codes], schema_of, has_path=("{" in route.path)
        ),
    }
    return operation


def _operation_id(handler: Any) -> str:
    room = handler.__module__.rpartition(".")[2]
    return f"{room}_{handler.__name__}"


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"in": "path", "name": name, "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)", path)
    ]


def _query_parameters(
    kind: Any, schema_of: dict[int, Any], components: dict[str, Any]
) -> list[dict[str, Any]]:
    if kind is None:
        return []
    properties: dict[str, Any] = components[_component_name(schema_of[id(kind)])]["properties"]
    return [
        {"in": "query", "name": name, "required": False, "schema": _query_schema(schema)}
        for name, schema in properties.items()
    ]


def _component_name(schema: dict[str, Any]) -> str:
    name: str = schema["$ref"].rpartition("/")[2]
    return name


def _query_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a query parameter, which is absent where a field would be null."""
    options: list[dict[str, Any]] = [
        option for option in schema.get("anyOf", ()) if option != {"type": "null"}
    ]
    if len(options) != 1:
        return schema
    return options[0] | {key: value for key, value in schema.items() if key not in ("anyOf", "default")}


def _response(answer: _Answer, schema_of: dict[int, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": answer.description,
        "headers": _header_specs(("X-Request-Id", *answer.headers)),
    }
    if answer.kind is not None:
        response["content"] = {answer.content_type: {"schema": schema_of[id(answer.kind)]}}
    return response


def _header_specs(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: {"description": _HEADERS[name][0], "required": _HEADERS[name][1], "schema": {"type": "string"}}
        for name in names
    }


def _problems(codes: Iterable[ErrorCode], schema_of: dict[int, Any], *, has_path: bool) -> dict[str, Any]:
    by_status: dict[int, list[ErrorCode]] = {}
    for code in (*codes, *((ErrorCode.NOT_FOUND,) if has_path else ())):
        listed = by_status.setdefault(STATUS_AND_TITLE[code][0], [])
        if code not in listed:
            listed.append(code)
    return {
        str(status): {
            "description": ", ".join(f"`{code}`: {STATUS_AND_TITLE[code][1].lower()}" for code in listed),
            "headers": _header_specs(("X-Request-Id",)),
            "content": {"application/problem+json": {"schema": schema_of[id(Problem)]}},
        }
        for status, listed in sorted(by_status.items())
    }


def _wire(handler: Any) -> _Wire:
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__wire__"):
        function.__wire__ = _Wire()
    wire: _Wire = function.__wire__
    return wire
