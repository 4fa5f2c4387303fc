import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmd.model.parameter import (
    MAX_SAFE_INTEGER,
    Parameter,
    ParameterType,
    Unacceptable,
    json_schema,
    require_plain,
    text_of,
)

WHOLE = Parameter(type=ParameterType.INTEGER, minimum=1, maximum=10)
NUMBER = Parameter(type=ParameterType.NUMBER, minimum=0.5)
FLAG = Parameter(type=ParameterType.BOOLEAN)
TEXT = Parameter(pattern="[a-z]*", max_length=5)
CHOICE = Parameter(choices=("a", "b"))


@pytest.mark.parametrize(
    ("parameter", "value", "accepted"),
    [
        (WHOLE, 1, 1),
        (WHOLE, 10.0, 10),
        (NUMBER, 1, 1),
        (NUMBER, 0.5, 0.5),
        (FLAG, True, True),
        (TEXT, "", ""),
        (TEXT, "abcde", "abcde"),
        (CHOICE, "b", "b"),
        (Parameter(), "'; rm -rf /\n$(id)", "'; rm -rf /\n$(id)"),
    ],
)
def test_values_within_the_limits_are_accepted(parameter: Parameter, value: Any, accepted: Any) -> None:
    result = parameter.accept(value)
    assert (result, type(result)) == (accepted, type(accepted))


@pytest.mark.parametrize(
    ("parameter", "value", "why"),
    [
        (WHOLE, 0, "must be at least 1"),
        (WHOLE, 11, "must be at most 10"),
        (WHOLE, 1.5, "must be a whole number"),
        (WHOLE, "1", "must be a whole number"),
        (WHOLE, True, "must be a whole number"),
        (WHOLE, None, "must be a whole number"),
        (Parameter(type=ParameterType.INTEGER), 10**400, "must be a whole number"),
        (Parameter(type=ParameterType.INTEGER), MAX_SAFE_INTEGER + 1, "must be a whole number"),
        (NUMBER, float("nan"), "must be a number"),
        (NUMBER, float("inf"), "must be a number"),
        (NUMBER, [1], "must be a number"),
        (FLAG, 1, "must be true or false"),
        (FLAG, "true", "must be true or false"),
        (TEXT, "abcdef", "must have at most 5 characters"),
        (TEXT, "abc\n", r"must match \[a-z\]\*"),
        (TEXT, 1, "must be a string"),
        (Parameter(), "a\0b", "must be text without NUL"),
        (Parameter(), "x" * 1001, "must have at most 1000 characters"),
        (CHOICE, "c", "must be one of a, b"),
    ],
)
def test_other_values_are_refused_with_what_would_do(parameter: Parameter, value: Any, why: str) -> None:
    with pytest.raises(Unacceptable, match=f"^{why}"):
        parameter.accept(value)


@given(st.text())
def test_text_for_a_recipe_means_nothing_to_an_engine_or_a_shell(text: str) -> None:
    try:
        require_plain(text)
    except Unacceptable:
        return
    assert not text.startswith(("-", "~"))
    assert re.search(r"""[\s"'`$\\;&|<>(){}\[\]*?#!]|[^\x21-\x7e]""", text) is None


@pytest.mark.parametrize("text", ["", "3.11", "1.0~rc1", "@scope/name@^1.2", "a-b", "18+dfsg:amd64", "x=y,z"])
def test_versions_and_names_may_go_into_a_recipe(text: str) -> None:
    require_plain(text)


@pytest.mark.parametrize(
    "text", ["-o x", "-o", "~root", "a\nRUN id", "a b", "$(id)", "a;id", "ä", "a\n", "#"]
)
def test_what_could_mean_something_may_not(text: str) -> None:
    with pytest.raises(Unacceptable):
        require_plain(text)


def test_a_form_can_be_drawn_from_the_schema() -> None:
    parameters = {"count": WHOLE, "text": Parameter(description="Why.", default="x"), "flag": FLAG}
    schema = json.loads(json.dumps(json_schema({**parameters, "choice": CHOICE, "short": TEXT})))
    assert schema == {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "minimum": 1, "maximum": 10},
            "text": {"type": "string", "description": "Why.", "default": "x", "maxLength": 1000},
            "flag": {"type": "boolean"},
            "choice": {"type": "string", "enum": ["a", "b"]},
            "short": {"type": "string", "pattern": "^(?:[a-z]*)$", "maxLength": 5},
        },
        "required": ["count", "flag", "choice", "short"],
        "additionalProperties": False,
    }


def test_a_machine_gets_values_as_text() -> None:
    assert [text_of(value) for value in (True, False, 3, 0.5, "x")] == ["true", "false", "3", "0.5", "x"]
