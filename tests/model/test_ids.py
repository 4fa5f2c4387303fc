import re
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from vmd.model.ids import ID_PATTERN, IdFactory

CONTRACT_PATTERN = r"^[a-z]{2,4}-[0-9a-z]{10,26}$"  # as api.md has it
LATEST_MS = 36**9 - 1

prefixes = st.sampled_from(["ws", "op", "snap", "cmd", "tun", "tok", "usr", "req"])
clocks = st.lists(st.integers(min_value=0, max_value=LATEST_MS), min_size=1, max_size=100)
chances: dict[str, Callable[[int], int]] = {
    "smallest": lambda limit: 0,
    "greatest": lambda limit: limit - 1,
    "middle": lambda limit: limit // 2,
}


def factory(times: list[int], chance: str) -> IdFactory:
    readings = iter(times)
    return IdFactory(now_ms=lambda: next(readings), randbelow=chances[chance])


def test_the_pattern_is_that_of_the_contract() -> None:
    assert ID_PATTERN == CONTRACT_PATTERN


@settings(deadline=None)
@given(prefixes, clocks, st.sampled_from(sorted(chances)))
def test_every_id_matches_the_pattern(prefix: str, times: list[int], chance: str) -> None:
    ids = factory(times, chance)
    for _ in times:
        assert re.fullmatch(CONTRACT_PATTERN, ids.new(prefix))


@settings(deadline=None)
@given(clocks, st.sampled_from(sorted(chances)))
def test_ids_sort_as_they_were_made_whatever_the_clock_does(times: list[int], chance: str) -> None:
    ids = factory(times, chance)
    made = [ids.new("ws") for _ in times]
    assert made == sorted(set(made))


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=LATEST_MS), st.integers(min_value=2, max_value=300))
def test_ids_sort_as_they_were_made_while_the_clock_stands_still(now_ms: int, count: int) -> None:
    ids = IdFactory(now_ms=lambda: now_ms)
    made = [ids.new("op") for _ in range(count)]
    assert made == sorted(set(made))


@settings(deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=LATEST_MS), min_size=2, max_size=50, unique=True))
def test_ids_sort_as_they_were_made_while_the_clock_goes_back(times: list[int]) -> None:
    ids = factory(sorted(times, reverse=True), "smallest")
    made = [ids.new("op") for _ in times]
    assert made == sorted(set(made))


@settings(deadline=None)
@given(
    st.lists(st.integers(min_value=0, max_value=LATEST_MS), min_size=2, max_size=2, unique=True),
    st.sampled_from(sorted(chances)),
    st.sampled_from(sorted(chances)),
)
def test_ids_of_two_processes_sort_by_their_clocks(times: list[int], one: str, other: str) -> None:
    earlier, later = sorted(times)
    assert factory([earlier], one).new("ws") < factory([later], other).new("ws")


def test_ids_of_the_same_millisecond_in_two_processes_differ() -> None:
    made = {IdFactory(now_ms=lambda: 1_700_000_000_000).new("ws") for _ in range(1000)}
    assert len(made) == 1000
