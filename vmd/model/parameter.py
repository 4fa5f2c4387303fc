"""Parameters of templates: what a create may choose, and within which limits."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from attrs import frozen
from msgspec import Meta

from vmd.model.workspace import NO_NUL, NO_NUL_MEANING

PARAMETER_NAME_PATTERN = r"[a-z][a-z0-9_]{0,39}"
DEFAULT_MAX_LENGTH = 1000
MAX_SAFE_INTEGER = 2**53 - 1  # what every reader of JSON has without loss

# Text in a recipe is read by the engine and then by a shell, as root: nothing that either gives a meaning to,
# no dash in front, which would make it an option, and no tilde there, which would make it a home.
_PLAIN = re.compile(r"([A-Za-z0-9_./:@=+^,%][A-Za-z0-9_./:@=+^,%~-]*)?")
_NO_NUL = re.compile(NO_NUL)

Value = str | int | float | bool


class ParameterType(StrEnum):
    """What a value is."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


class Unacceptable(Exception):
    """A value is none for this parameter; the message, as in "must be …", says what would be."""


_Limit = Annotated[float, Meta(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]


@frozen(kw_only=True)
class Parameter:
    """One parameter; whoever makes a workspace must give it if it has no default."""

    type: ParameterType = ParameterType.STRING
    description: Annotated[str, Meta(max_length=1000, pattern=NO_NUL, description=NO_NUL_MEANING)] = ""
    default: Any = None
    choices: tuple[Any, ...] = ()  # all values there are; none: any within the limits
    minimum: _Limit | None = None
    maximum: _Limit | None = None
    pattern: Annotated[str, Meta(max_length=1000)] | None = None  # which a text matches from end to end
    max_length: Annotated[int, Meta(ge=1, le=10_000)] | None = None  # in characters

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is None

    def accept(self, value: Any) -> Value:
        """Return a value as this parameter has it; raise Unacceptable for any other."""
        accepted = _typed(self.type, value)
        if self.choices and accepted not in self.choices:
            raise Unacceptable(f"must be one of {', '.join(map(text_of, self.choices))}")
        if isinstance(accepted, str):
            self._require_text(accepted)
        elif not isinstance(accepted, bool):
            if self.minimum is not None and accepted < self.minimum:
                raise Unacceptable(f"must be at least {self.minimum:.15g}")
            if self.maximum is not None and accepted > self.maximum:
                raise Unacceptable(f"must be at most {self.maximum:.15g}")
        return accepted

    def _require_text(self, text: str) -> None:
        longest = DEFAULT_MAX_LENGTH if self.max_length is None else self.max_length
        if len(text) > longest:
            raise Unacceptable(f"must have at most {longest} characters")
        if _NO_NUL.fullmatch(text) is None:
            raise Unacceptable(f"must be {NO_NUL_MEANING}")
        if self.pattern is not None and re.fullmatch(self.pattern, text) is None:
            raise Unacceptable(f"must match {self.pattern}")


def require_plain(value: Value) -> None:
    """Raise Unacceptable for a text that could mean something to the engine or a shell."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) is None:
        raise Unacceptable(
            "goes into the recipe of an image, so it must be of letters, digits and _./:@=+^,% alone, "
            "and of - and ~ that are not in front"
        )


def text_of(value: Value) -> str:
    """Return a value as a machine gets it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def json_schema(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an object with these parameters."""
    return {
        "type": "object",
        "properties": {name: _schema(parameter) for name, parameter in parameters.items()},
        "required": [name for name, parameter in parameters.items() if parameter.is_required],
        "additionalProperties": False,
    }


def _schema(parameter: Parameter) -> dict[str, Any]:
    longest = parameter.max_length
    if parameter.type is ParameterType.STRING and longest is None and not parameter.choices:
        longest = DEFAULT_MAX_LENGTH
    members = {
        "type": parameter.type,
        "description": parameter.description or None,
        "default": parameter.default,
        "enum": parameter.choices or None,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "pattern": None if parameter.pattern is None else f"^(?:{parameter.pattern})$",
        "maxLength": longest,
    }
    return {name: member for name, member in members.items() if member is not None}


def _typed(kind: ParameterType, value: Any) -> Value:
    match kind:
        case ParameterType.STRING if isinstance(value, str):
            return value
        case ParameterType.BOOLEAN if isinstance(value, bool):
            return value
        case ParameterType.INTEGER if _is_number(value) and float(value).is_integer():
            return int(value)
        case ParameterType.NUMBER if _is_number(value):
            return value  # type: ignore[no-any-return]
    raise Unacceptable(f"must be {_MEANINGS[kind]}")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= MAX_SAFE_INTEGER  # and so it is finite


_MEANINGS: Mapping[ParameterType, str] = {
    ParameterType.STRING: "a string",
    ParameterType.INTEGER: "a whole number",
    ParameterType.NUMBER: "a number",
    ParameterType.BOOLEAN: "true or false",
}
