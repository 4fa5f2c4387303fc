"""Plain data to attrs classes, strictly: no unknown keys, no coercion, every error with its place."""

import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import cattrs
from attrs import fields, has
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from msgspec import Meta, UnsetType

from vmd.model.errors import FieldError

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

MAX_ERRORS = 20  # that are told of; a body can hold a great many
MAX_SHOWN_CHARACTERS = 100  # of an unknown key
_JSON_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
}


class Unstructurable(Exception):
    """The data does not fit; `errors` says where and how."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__("; ".join(f"{error.pointer or '/'}: {error.detail}" for error in errors))
        self.errors = errors


def structure(data: object, cls: type[T]) -> T:
    """Return `data` as an instance of `cls`; raise Unstructurable with every error's JSON Pointer."""
    try:
        return _converter.structure(data, cls)
    except BaseValidationError as error:
        raise Unstructurable(tuple(_field_errors(error, "")[:MAX_ERRORS])) from None
    except _Misfit as error:
        raise Unstructurable((FieldError(pointer="", detail=str(error)),)) from None


class _Misfit(ValueError):
    """One value does not fit its type."""


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for cls in _JSON_NAMES:
        converter.register_structure_hook(cls, _structure_scalar)
    converter.register_structure_hook_factory(_is_optional, lambda cls: _optional_hook(converter, cls))
    converter.register_structure_hook_factory(_is_choice, lambda cls: _choice_hook(converter, cls))
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) in (tuple, dict), lambda cls: _container_hook(converter, cls)
    )
    converter.register_structure_hook_factory(has, lambda cls: _object_hook(converter, cls))
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) is Annotated, lambda cls: _annotated_hook(converter, cls)
    )
    return converter


def _origin(cls: Any) -> Any:
    return get_origin(cls)


def _structure_scalar(value: Any, cls: Any) -> Any:
    if issubclass(cls, Enum):  # a StrEnum is a str to the dispatch
        return _structure_enum(value, cls)
    if cls is float and type(value) is int:
        return float(value)
    if cls is int and type(value) is float and value.is_integer():
        return int(value)  # JSON has one kind of number, and 4.0 is a whole one
    if type(value) is not cls:
        raise _Misfit(f"must be {_JSON_NAMES[cls]}")
    return value


def _structure_enum(value: Any, cls: Any) -> Any:
    try:
        return cls(value)
    except (TypeError, ValueError):
        raise _Misfit(f"must be one of {', '.join(member.value for member in cls)}") from None


def _is_optional(cls: Any) -> bool:
    return get_origin(cls) in (Union, types.UnionType) and bool({type(None), UnsetType} & set(get_args(cls)))


def _is_choice(cls: Any) -> bool:
    return get_origin(cls) in (Union, types.UnionType) and not _is_optional(cls)


def _choice_hook(converter: cattrs.Converter, cls: Any) -> Hook:
    """Tell an array from a string: whichever comes is judged as the member of its kind."""
    members = get_args(cls)
    arrays = [member for member in members if _bare(member) is tuple]
    others = [member for member in members if _bare(member) is not tuple]

    def hook(value: Any, _: Any) -> Any:
        wanted = arrays if isinstance(value, list) else others
        if not wanted or not isinstance(value, list | str):
            raise _Misfit("must be a string or an array of strings")
        return converter.structure(value, wanted[0])

    return hook


def _bare(cls: Any) -> Any:
    """Return what a type is without its constraints and elements."""
    bare = get_args(cls)[0] if get_origin(cls) is Annotated else cls
    return get_origin(bare) or bare


def _optional_hook(converter: cattrs.Converter, cls: Any) -> Hook:
    members = [member for member in get_args(cls) if member not in (type(None), UnsetType)]
    nullable = type(None) in get_args(cls)
    inner: Any = members[0] if len(members) == 1 else Union[tuple(members)]  # noqa: UP007 - made at run time

    def hook(value: Any, _: Any) -> Any:
        if value is None and nullable:
            return None
        return converter.structure(value, inner)

    return hook


def _container_hook(converter: cattrs.Converter, cls: Any) -> Hook:
    is_tuple = get_origin(cls) is tuple
    plain: Any = converter.gen_structure_mapping(cls) if not is_tuple else None
    element = get_args(cls)[0]
    elements = list[element]  # type: ignore[valid-type]

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list if is_tuple else dict):
            raise _Misfit("must be an array" if is_tuple else "must be an object")
        if plain is not None:
            return plain(value, cls)
        return tuple(converter.structure(value, elements))

    return hook


def _object_hook(converter: cattrs.Converter, cls: Any) -> Hook:
    plain = converter.gen_structure_attrs_fromdict(cls)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit("must be an object")
        return plain(value, cls)

    return hook


def _annotated_hook(converter: cattrs.Converter, cls: Any) -> Hook:
    base, *metas = get_args(cls)
    checks = [meta for meta in metas if isinstance(meta, Meta)]

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, list | dict):
            for meta in checks:
                _check_length(value, meta)  # first, so that what is too long is not looked through
        result = converter.structure(value, base)
        for meta in checks:
            _check(result, meta)
        return result

    return hook


def _check(value: Any, meta: Meta) -> None:
    """Enforce what the JSON Schema of the type says (msgspec prints it from the same Meta)."""
    if meta.ge is not None and not value >= meta.ge:
        raise _Misfit(f"must be at least {meta.ge}")
    if meta.le is not None and not value <= meta.le:
        raise _Misfit(f"must be at most {meta.le}")
    _check_length(value, meta)
    if meta.pattern is not None and re.fullmatch(meta.pattern, value) is None:
        raise _Misfit(f"must be {meta.description}" if meta.description else f"must match {meta.pattern}")


def _check_length(value: Any, meta: Meta) -> None:
    if meta.min_length is not None and len(value) < meta.min_length:
        raise _Misfit(f"must have at least {meta.min_length} characters or items")
    if meta.max_length is not None and len(value) > meta.max_length:
        raise _Misfit(f"must have at most {meta.max_length} characters or items")


def _field_errors(error: Exception, pointer: str) -> list[FieldError]:
    if isinstance(error, BaseValidationError):
        found = []
        for inner in error.exceptions:
            step = next((note for note in getattr(inner, "__notes__", ()) if _is_step(note)), None)
            found += _field_errors(inner, pointer if step is None else f"{pointer}/{_step(step)}")
        return found
    if isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(attribute.name for attribute in fields(error.cl))
        return [
            FieldError(
                pointer=f"{pointer}/{escape_step(key[:MAX_SHOWN_CHARACTERS])}",
                detail=f"is not known here; known are {known}",
            )
            for key in sorted(error.extra_fields)[:MAX_ERRORS]
        ]
    if isinstance(error, KeyError):
        return [FieldError(pointer=pointer, detail="is missing")]
    if isinstance(error, _Misfit):
        return [FieldError(pointer=pointer, detail=str(error))]
    return [FieldError(pointer=pointer, detail="has the wrong type")]


def _is_step(note: object) -> bool:
    return isinstance(note, AttributeValidationNote | IterableValidationNote)


def _step(note: Any) -> str:
    return escape_step(str(note.name if isinstance(note, AttributeValidationNote) else note.index))


def escape_step(step: str) -> str:
    """Return a name as one step of a JSON Pointer (RFC 6901)."""
    return step.replace("~", "~0").replace("/", "~1")


_converter = _make_converter()
