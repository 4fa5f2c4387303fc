from enum import StrEnum
from typing import Annotated, Any

import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from vmd.model.account import NewToken, NewUser
from vmd.model.structuring import Unstructurable, structure
from vmd.model.workspace import ActionRequest, NewWorkspace, WorkspacePatch


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@frozen(kw_only=True)
class Inner:
    depth: int
    note: str = ""


@frozen(kw_only=True)
class Outer:
    required: str
    flag: bool = False
    count: int = 0
    share: float = 0.0
    colour: Colour = Colour.RED
    few: Annotated[int, Meta(ge=1, le=3)] = 1
    word: Annotated[str, Meta(pattern=r"^[a-z]+$", min_length=2, max_length=4)] = "abc"
    told: Annotated[str, Meta(pattern=r"^[0-9]+$", description="digits alone")] = "0"
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    table: dict[Annotated[str, Meta(pattern=r"^[^!]*$", max_length=20)], int] = field(factory=dict)
    nested: dict[str, Inner] = field(factory=dict)
    maybe: int | None = 7
    absent: int | UnsetType = UNSET
    either: int | None | UnsetType = UNSET


def refusal(data: object, cls: type = Outer) -> dict[str, str]:
    with pytest.raises(Unstructurable) as caught:
        structure(data, cls)
    found = {error.pointer: error.detail for error in caught.value.errors}
    assert len(found) == len(caught.value.errors)
    return found


def outer(**values: Any) -> Outer:
    return structure({"required": "x", **values}, Outer)


def refused(**values: Any) -> dict[str, str]:
    return refusal({"required": "x", **values})


def test_what_fits_is_returned() -> None:
    data = {"inner": {"depth": 1}, "inners": [{"depth": 2, "note": "n"}], "table": {"a": 3}, "colour": "blue"}
    assert outer(**data) == Outer(
        required="x",
        inner=Inner(depth=1),
        inners=(Inner(depth=2, note="n"),),
        table={"a": 3},
        colour=Colour.BLUE,
    )


def test_a_missing_value_is_named() -> None:
    assert refusal({}) == {"/required": "is missing"}
    assert refused(inner={}) == {"/inner/depth": "is missing"}


@pytest.mark.parametrize("data", [None, True, 1, "x", [], [{}]])
def test_what_is_no_object_is_refused_at_the_root(data: object) -> None:
    assert refusal(data) == {"": "must be an object"}


def test_the_root_is_shown_as_a_slash_in_the_message() -> None:
    with pytest.raises(Unstructurable, match=r"^/: must be an object$"):
        structure([], Outer)


def test_unknown_keys_are_refused_one_by_one() -> None:
    found = refused(colur="red", flags=True)
    assert list(found) == ["/colur", "/flags"]
    assert "known are required, flag, count" in found["/colur"]


def test_unknown_keys_are_refused_within_objects_too() -> None:
    assert list(refused(inner={"depth": 1, "hight": 2})) == ["/inner/hight"]
    assert list(refused(inners=[{"depth": 1}, {"depth": 1, "x": 1}])) == ["/inners/1/x"]


def test_every_error_is_told_at_once() -> None:
    found = refused(flag=1, count="5", inners=[{"depth": "a"}, {"depth": 1}, {"depth": None}], other=1)
    assert set(found) == {"/flag", "/count", "/inners/0/depth", "/inners/2/depth", "/other"}


@pytest.mark.parametrize("value", [True, False, "5", "", 4.5, None, [], {}, float("inf"), float("nan")])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    assert refused(count=value) == {"/count": "must be a whole number"}


@pytest.mark.parametrize(("value", "count"), [(4.0, 4), (-2.0, -2), (0, 0), (2**70, 2**70)])
def test_a_number_without_a_fraction_is_a_whole_one(value: float, count: int) -> None:
    made = outer(count=value).count
    assert (made, type(made)) == (count, int)


@pytest.mark.parametrize("value", [0, 1, "true", "", None, [], 1.0])
def test_what_is_neither_true_nor_false_is_refused(value: object) -> None:
    assert refused(flag=value) == {"/flag": "must be true or false"}


@pytest.mark.parametrize("value", [True, "1.5", None, []])
def test_what_is_no_number_is_refused(value: object) -> None:
    assert refused(share=value) == {"/share": "must be a number"}


def test_a_whole_number_is_a_number() -> None:
    made = outer(share=3).share
    assert (made, type(made)) == (3.0, float)


@pytest.mark.parametrize("value", [1, 1.0, True, None, ["x"], {"x": 1}])
def test_what_is_no_text_is_refused(value: object) -> None:
    assert refusal({"required": value}) == {"/required": "must be a string"}


@pytest.mark.parametrize("value", ["green", "RED", 1, True, None, [], {}])
def test_what_is_none_of_the_choices_is_refused_with_the_choices(value: object) -> None:
    assert refused(colour=value) == {"/colour": "must be one of red, blue"}


@pytest.mark.parametrize("value", [None, "ab", {"0": {"depth": 1}}, 1])
def test_what_is_no_array_is_refused(value: object) -> None:
    assert refused(inners=value) == {"/inners": "must be an array"}


@pytest.mark.parametrize("value", [None, "ab", [["a", 1]], 1])
def test_what_is_no_table_is_refused(value: object) -> None:
    assert refused(table=value) == {"/table": "must be an object"}


def test_limits_are_refused_with_the_limit() -> None:
    assert refused(few=0) == {"/few": "must be at least 1"}
    assert refused(few=4) == {"/few": "must be at most 3"}
    assert refused(word="a") == {"/word": "must have at least 2 characters or items"}
    assert refused(word="abcde") == {"/word": "must have at most 4 characters or items"}
    assert (outer(few=1).few, outer(few=3).few) == (1, 3)


def test_a_limit_is_checked_after_the_type() -> None:
    assert refused(few=True) == {"/few": "must be a whole number"}


def test_a_pattern_is_told_by_its_description_if_it_has_one() -> None:
    assert refused(word="A-") == {"/word": "must match ^[a-z]+$"}
    assert refused(told="x") == {"/told": "must be digits alone"}


def test_a_newline_at_the_end_does_not_slip_through_a_pattern() -> None:
    assert list(refused(word="abc\n")) == ["/word"]
    assert list(refused(told="1\n")) == ["/told"]


def test_a_newline_at_the_end_is_kept_where_the_pattern_allows_it() -> None:
    assert outer(table={"line\n": 1}).table == {"line\n": 1}


def test_a_secret_that_ends_with_a_newline_is_accepted_as_it_is() -> None:
    key = "-----BEGIN KEY-----\nabc\n-----END KEY-----\n"
    made = structure({"env": {"KEY": key}, "provisioning": ["make\n"], "description": "one\n"}, NewWorkspace)
    assert (made.env, made.provisioning, made.description) == ({"KEY": key}, ("make\n",), "one\n")


@pytest.mark.parametrize(
    ("key", "pointer"),
    [("a!", "/table/a!"), ("a/b!", "/table/a~1b!"), ("a~b!", "/table/a~0b!"), ("~1!", "/table/~01!")],
)
def test_a_wrong_key_of_a_table_is_named_with_its_escapes(key: str, pointer: str) -> None:
    assert list(refused(table={key: 1, "right": 2})) == [pointer]


def test_a_wrong_value_of_a_table_is_named_with_its_escapes() -> None:
    assert refused(table={"x~/y": "1"}) == {"/table/x~0~1y": "must be a whole number"}
    assert refused(nested={"a/b": {"depth": []}}) == {"/nested/a~1b/depth": "must be a whole number"}


def test_an_unknown_key_is_named_with_its_escapes() -> None:
    assert list(refused(**{"~/": 1})) == ["/~0~1"]
    assert list(refused(**{"": 1})) == ["/"]


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda key: "!" not in key and len(key) <= 20))
def test_a_pointer_leads_back_to_the_key(key: str) -> None:
    (pointer,) = refused(nested={key: {"depth": None}})
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    assert steps == ["nested", key, "depth"]


def test_null_is_taken_where_it_is_allowed() -> None:
    assert outer(maybe=None).maybe is None
    assert outer(inner=None).inner is None
    assert outer(either=None).either is None


def test_null_is_refused_where_only_absence_is_allowed() -> None:
    assert refused(absent=None) == {"/absent": "must be a whole number"}


def test_what_is_absent_is_told_from_null() -> None:
    made = outer()
    assert (made.maybe, made.absent, made.either) == (7, UNSET, UNSET)
    assert outer(absent=1, either=2) == Outer(required="x", absent=1, either=2)


def test_an_optional_value_is_as_strict_as_any() -> None:
    assert refused(maybe="7") == {"/maybe": "must be a whole number"}
    assert refused(either=True) == {"/either": "must be a whole number"}
    assert refused(inner=[]) == {"/inner": "must be an object"}


def test_a_patch_tells_absent_from_null() -> None:
    patch = structure({"ttl_seconds": None, "labels": {"a": None, "b": "c"}}, WorkspacePatch)
    assert patch == WorkspacePatch(ttl_seconds=None, labels={"a": None, "b": "c"})
    assert patch.description is UNSET


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"name": None}, "/name"),
        ({"name": "Upper"}, "/name"),
        ({"name": "a" * 41}, "/name"),
        ({"ttl_seconds": 59}, "/ttl_seconds"),
        ({"pinned": "yes"}, "/pinned"),
        ({"ports": [80, 0]}, "/ports/1"),
        ({"ports": [True]}, "/ports/0"),
        ({"labels": {"a/b": 1}}, "/labels/a~1b"),
        ({"labels": {"-a": "x"}}, "/labels/-a"),
        ({"labels": {"a": "x\0"}}, "/labels/a"),
        ({"status": "running"}, "/status"),
    ],
)
def test_a_wrong_patch_is_refused_at_its_place(data: object, pointer: str) -> None:
    assert list(refusal(data, WorkspacePatch)) == [pointer]


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"repo": {"branch": "main"}}, "/repo/url"),
        ({"repo": {"url": "ext::sh"}}, "/repo/url"),
        ({"repo": {"url": "https://example.com/x", "commit": "XYZ"}}, "/repo/commit"),
        ({"repo": "https://example.com/x"}, "/repo"),
        ({"resources": {"cpus": 0}}, "/resources/cpus"),
        ({"resources": {"memory_mb": 64.5}}, "/resources/memory_mb"),
        ({"resources": {"gpus": 1}}, "/resources/gpus"),
        ({"env": {"1A": "x"}}, "/env/1A"),
        ({"env": {"A": 1}}, "/env/A"),
        ({"env": {"A": "\0"}}, "/env/A"),
        ({"secrets": ["A", "B-C"]}, "/secrets/1"),
        ({"provisioning": ["make", ""]}, "/provisioning/1"),
        ({"provisioning": "make"}, "/provisioning"),
        ({"plugins": [""]}, "/plugins/0"),
        ({"template": ""}, "/template"),
        ({"owner": "admin"}, "/owner"),
    ],
)
def test_a_wrong_workspace_is_refused_at_its_place(data: object, pointer: str) -> None:
    assert list(refusal(data, NewWorkspace)) == [pointer]


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"name": "t", "scopes": []}, "/scopes"),
        ({"name": "t", "scopes": ["exec", "root"]}, "/scopes/1"),
        ({"name": "t", "expires_in_seconds": 1}, "/expires_in_seconds"),
        ({"name": ""}, "/name"),
        ({}, "/name"),
    ],
)
def test_a_wrong_token_is_refused_at_its_place(data: object, pointer: str) -> None:
    assert list(refusal(data, NewToken)) == [pointer]


@pytest.mark.parametrize("name", ["", "Ann", "-a", "a-", "a b", "ann\n", "ä", "a" * 65])
def test_a_wrong_name_of_a_user_is_refused(name: str) -> None:
    assert list(refusal({"name": name}, NewUser)) == ["/name"]


def test_an_empty_request_is_all_defaults() -> None:
    assert structure({}, ActionRequest) == ActionRequest()
    assert structure({}, NewWorkspace) == NewWorkspace()
