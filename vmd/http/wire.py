"""Between HTTP and the model: bodies, queries, cursors, headers in; JSON out."""

import asyncio
import base64
import binascii
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from aiohttp import web
from attrs import fields

from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, FieldError, Problem, Refused
from vmd.model.ids import ID_PATTERN
from vmd.model.page import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page
from vmd.model.structuring import Unstructurable, structure
from vmd.store.idempotency import Once

T = TypeVar("T")

ACTOR: web.RequestKey[Actor] = web.RequestKey("actor", Actor)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)

Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE_SIZE, description="items on a page")]
Cursor = Annotated[str, msgspec.Meta(max_length=100, description="`next_cursor` of the page before")]
DEFAULT_LIMIT = DEFAULT_PAGE_SIZE

BODY_SECONDS = 15.0  # for a body to come in whole
SEND_SECONDS = 10.0  # a reader that takes longer for one frame is cut off
_JSON_TYPES = frozenset({"application/json", "application/merge-patch+json"})
_IDEMPOTENCY_KEY = re.compile(r"^[\x21-\x7e]{1,255}$")
_INTEGER = re.compile(r"^-?[0-9]{1,18}$")
_NUMBER = re.compile(r"^-?[0-9]{1,18}(\.[0-9]{1,18})?$")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_encode = msgspec.json.Encoder().encode


def respond(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a value as JSON."""
    return web.Response(
        body=_encode(value), status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


def respond_page(items: tuple[Any, ...], page: Page[Any]) -> web.Response:
    """Return the items of a page with the cursor of the next one."""
    return respond({"items": items, "next_cursor": _cursor(page.next_after)})


def respond_problem(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a problem document (RFC 9457), without the members that do not apply."""
    members = {name: value for name, value in _members(problem).items() if value is not None}
    return web.Response(
        body=_encode(members),
        status=problem.status,
        headers=headers,
        content_type="application/problem+json",
    )


def encode_json(value: object) -> bytes:
    """Return a value as JSON."""
    return _encode(value)


async def read_body(request: web.Request, cls: type[T]) -> T:
    """Return the request's JSON body as `cls`; an empty body is an empty object if all of it is optional.

    Raises Refused: malformed-request, too-large, or validation-failed with every error's JSON Pointer.
    """
    if "Content-Encoding" in request.headers:
        raise malformed("Send the body without Content-Encoding.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError:
        raise malformed(f"The body did not come within {BODY_SECONDS:g} s; send it again.") from None
    if not body and not request.can_read_body and all(f.default is not _NOTHING for f in fields(cls)):  # type: ignore[arg-type]
        return structure({}, cls)
    if request.content_type not in _JSON_TYPES:
        raise malformed("Send a JSON body with Content-Type: application/json.")
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise malformed(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise malformed("The body is nested too deeply.") from None
    try:
        return structure(data, cls)
    except Unstructurable as error:
        raise Refused(
            ErrorCode.VALIDATION_FAILED, f"Some values are wrong: {error}.", errors=error.errors
        ) from None


def read_query(request: web.Request, cls: type[T]) -> T:
    """Return the request's query parameters as `cls`; refuse unknown, repeated and wrong ones."""
    known = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    data: dict[str, Any] = {}
    for name in request.query:
        values = request.query.getall(name)
        if name not in known:
            listed = ", ".join(known) or "none"
            raise malformed(f"There is no query parameter '{name}' here; known are: {listed}.")
        kind = _plain(known[name])
        if get_origin(kind) is tuple:
            element = _plain(get_args(kind)[0])
            data[name] = [_parse(value, element) for value in values]
        elif len(values) > 1:
            raise malformed(f"The query parameter '{name}' may be given once.")
        else:
            data[name] = _parse(values[0], kind)
    try:
        return structure(data, cls)
    except Unstructurable as error:
        placed = tuple(
            FieldError(pointer=f"/query{wrong.pointer}", detail=wrong.detail) for wrong in error.errors
        )
        raise Refused(ErrorCode.MALFORMED_REQUEST, f"The query is wrong: {error}.", errors=placed) from None


def read_cursor(cursor: str | None, prefix: str) -> str | None:
    """Return the id to go on after; refuse a cursor that no list of such things gave."""
    return read_cursor_of(cursor, rf"(?={prefix}-){ID_PATTERN.removeprefix('^')}")


def read_cursor_of(cursor: str | None, pattern: str) -> str | None:
    """Return what to go on after, which must match a pattern."""
    if cursor is None:
        return None
    try:
        after = base64.urlsafe_b64decode(cursor.encode("ascii") + b"==").decode("ascii")
    except (binascii.Error, ValueError):
        after = ""
    if re.fullmatch(pattern, after) is None:
        raise malformed("This cursor is not from this list; take next_cursor of the page before.")
    return after


async def read_once(request: web.Request) -> Once | None:
    """Return what the Idempotency-Key header asks for."""
    key = read_key(request)
    if key is None:
        return None
    seen = f"{request.method} {request.path_qs}\n".encode() + await request.read()
    return Once(key=key, fingerprint=hashlib.sha256(seen).digest())


def read_key(request: web.Request) -> str | None:
    """Return the Idempotency-Key."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and _IDEMPOTENCY_KEY.match(key) is None:
        raise malformed("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return key


def read_if_match(request: web.Request) -> int | None:
    """Return the version that a change is meant for, None for any."""
    text = request.headers.get("If-Match")
    if text is None or text.strip() == "*":
        return None
    match = re.fullmatch(r'\s*"([0-9]{1,18})"\s*', text)
    if match is None:
        raise malformed('If-Match must be the ETag of the workspace, such as "7".')
    return int(match[1])


def malformed(detail: str) -> Refused:
    """Return the refusal of a request that cannot be read."""
    return Refused(ErrorCode.MALFORMED_REQUEST, detail)


async def write_or_abort(request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
    """Write, but never wait for a reader that does not read."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.write(chunk)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError from None


def _cursor(after: str | None) -> str | None:
    return None if after is None else base64.urlsafe_b64encode(after.encode()).decode().rstrip("=")


def _members(problem: Problem) -> dict[str, Any]:
    return {field.name: getattr(problem, field.name) for field in fields(Problem)}


def _plain(kind: Any) -> Any:
    """Return a type without its constraints and without None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return _plain(next(member for member in get_args(kind) if member is not type(None)))
    return kind


def _parse(text: str, kind: Any) -> Any:
    """Return the text as a JSON value of this type, or as it is when it is none."""
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    if kind is int and _INTEGER.match(text):
        return int(text)
    if kind is float and _NUMBER.match(text):
        return float(text)
    return text


_NOTHING = fields(FieldError).pointer.default
