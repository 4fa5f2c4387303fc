"""Time that does not pass as it should: what is noticed, and that nothing is lost by it."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.store.test_workspaces import NOW, add_workspace, open_books
from vmd.model.workspace import Status, Workspace
from vmd.orchestrator.lifetime import Lifetimes, Retention
from vmd.orchestrator.timekeeping import Timekeeper
from vmd.store.clocks import Clock
from vmd.store.database import Transaction
from vmd.store.workspaces import find_workspace

INTERVAL_SECONDS = 15
WARNING_SECONDS = 600
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class Clocks:
    """The two clocks of a computer, and books that go by the wall's."""

    def __init__(self) -> None:
        self.tx: Transaction = open_books()
        self.monotonic = 1000.0
        self.keeper = self.start()

    def start(self) -> Timekeeper:
        self.keeper = Timekeeper(INTERVAL_SECONDS, lambda: self.monotonic)
        return self.keeper

    def pass_time(self, seconds: float) -> None:
        self.monotonic += seconds
        self.tx.now += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        self.tx.now += timedelta(seconds=seconds)

    def gap(self) -> str | None:
        reading = self.keeper.read(self.tx)
        self.keeper.keep(reading)
        return reading.gap


def test_time_that_passes_is_no_gap() -> None:
    clocks = Clocks()
    for seconds in (0, 0, 15, 16, 1, 60, 300):
        clocks.pass_time(seconds)
        assert clocks.gap() is None
    assert clocks.keeper.is_settled


@pytest.mark.parametrize("seconds", [61, 86_400, -61, -86_400, 86_400 * 365])
def test_a_jump_is_a_gap_once_and_is_settled_in_an_hour(seconds: float) -> None:
    clocks = Clocks()
    clocks.gap()
    clocks.pass_time(15)
    clocks.jump(seconds)
    assert clocks.gap() == f"the clock jumped by {seconds} s"
    clocks.pass_time(15)
    assert clocks.gap() is None
    assert not clocks.keeper.is_settled
    clocks.pass_time(3600)
    assert clocks.keeper.is_settled


def test_small_jumps_add_up() -> None:
    clocks = Clocks()
    gaps = []
    for _ in range(6):
        clocks.gap()
        clocks.pass_time(15)
        clocks.jump(25)
        gaps.append(clocks.gap() is not None)
    assert gaps == [False, False, True, False, False, True]


def test_a_computer_that_was_suspended_has_a_gap() -> None:
    clocks = Clocks()
    clocks.gap()
    clocks.jump(8 * 3600)  # the monotonic clock stands still meanwhile
    assert clocks.gap() is not None


def test_a_process_that_was_stopped_has_a_gap() -> None:
    clocks = Clocks()
    clocks.gap()
    clocks.pass_time(3600)
    assert clocks.gap() == "nothing was swept for 3600 s"


@pytest.mark.parametrize(
    ("seconds", "is_gap"), [(0, False), (100, False), (200, True), (86_400 * 3, True), (-86_400, True)]
)
def test_a_daemon_that_was_away_has_a_gap(seconds: float, is_gap: bool) -> None:
    clocks = Clocks()
    clocks.gap()
    clocks.jump(seconds)
    clocks.monotonic = 5.0  # the computer was started again, too
    clocks.start()
    assert (clocks.gap() is not None) is is_gap
    clocks.pass_time(15)
    assert clocks.gap() is None


def test_a_reading_that_was_rolled_back_is_judged_again() -> None:
    clocks = Clocks()
    clocks.gap()
    clocks.jump(86_400)
    assert clocks.keeper.read(clocks.tx).gap == clocks.keeper.read(clocks.tx).gap == clocks.gap()
    assert clocks.gap() is None


def lifetimes(clocks: Clocks) -> Lifetimes:
    """Return the use cases of clocks as far as a sweep's transaction needs them."""

    class Looks:
        under_way: frozenset[str] = frozenset()

    nothing: Any = None
    looks: Any = Looks()
    return Lifetimes(
        nothing,
        nothing,
        nothing,
        looks,
        Retention(warning_seconds=WARNING_SECONDS, trash_grace_seconds=7 * 86_400),
        clocks.keeper,
        ahead_seconds=INTERVAL_SECONDS,
    )


def sweep(clocks: Clocks, swept: Lifetimes) -> None:
    clocks.keeper.keep(swept._sweep(clocks.tx).reading)


def latest(clocks: Clocks, workspace: Workspace) -> Workspace:
    found = find_workspace(clocks.tx, workspace.id)
    assert found is not None
    return found


ALL: dict[Clock, dict[str, Any]] = {
    Clock.TTL: {"status": Status.STOPPED, "ttl_seconds": 43_200, "expires_at": NOW + 12 * HOUR},
    Clock.IDLE: {"status": Status.RUNNING, "idle_timeout_seconds": 43_200},
    Clock.TRASH: {"status": Status.TRASHED, "trashed_at": NOW - 6.5 * DAY},
}


@pytest.mark.parametrize("clock", Clock)
@pytest.mark.parametrize("is_warned", [False, True])
def test_a_clock_that_jumps_a_day_fires_nothing_before_the_whole_warning_is_over(
    clock: Clock, is_warned: bool
) -> None:
    clocks = Clocks()
    workspace = add_workspace(clocks.tx, **ALL[clock])
    swept = lifetimes(clocks)
    sweep(clocks, swept)
    if is_warned:
        clocks.pass_time(12 * 3600 - 300)
        clocks.start()
        swept = lifetimes(clocks)
        sweep(clocks, swept)  # warned of, with the time left that a daemon that was away left it
    clocks.jump(86_400)
    told = len(clocks.tx.events)
    for _ in range(WARNING_SECONDS // INTERVAL_SECONDS):
        sweep(clocks, swept)
        assert latest(clocks, workspace).current_operation is None
        clocks.pass_time(INTERVAL_SECONDS)
    assert [event.type for event in clocks.tx.events[told:]] == ["workspace.expiring"]
    sweep(clocks, swept)
    assert latest(clocks, workspace).current_operation is not None


def test_purges_are_few_a_sweep_and_keep_no_other_clock_waiting() -> None:
    clocks = Clocks()
    trashed = [
        add_workspace(clocks.tx, **{**ALL[Clock.TRASH], "trashed_at": NOW - 9 * DAY}) for _ in range(25)
    ]
    stopped = add_workspace(clocks.tx, **ALL[Clock.TTL])
    swept = lifetimes(clocks)
    sweep(clocks, swept)
    for hour in range(73):
        clocks.pass_time(600)
        sweep(clocks, swept)
        begun = sum(latest(clocks, one).current_operation is not None for one in trashed)
        assert begun == min(25, 10 * (hour + 1))
    assert latest(clocks, stopped).current_operation is not None


class AnyTime(RuleBasedStateMachine):
    """Whatever the clocks do, nothing fires that was not warned of for the whole warning time.

    To within what is taken for no jump at all: twice the tolerance, and what a restart hides.
    """

    SLACK_SECONDS = 2 * 60
    RESTART_SLACK_SECONDS = 60 + 60 + INTERVAL_SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.clocks = Clocks()
        self.swept = lifetimes(self.clocks)
        self.workspaces = {add_workspace(self.clocks.tx, **values).id: clock for clock, values in ALL.items()}
        self.real = 0.0
        self.seen = 0
        self.restarts = 0
        self.warned: dict[str, tuple[float, int]] = {}

    @rule(seconds=st.sampled_from([1, 14, 15, 60, 300, 599, 600, 3600, 43_200]))
    def wait(self, seconds: float) -> None:
        self.clocks.pass_time(seconds)
        self.real += seconds

    @rule(count=st.integers(1, 60))
    def sweep_often(self, count: int) -> None:
        for _ in range(count):
            self.wait(INTERVAL_SECONDS)
            self.sweep()

    @rule(seconds=st.sampled_from([-86_400, -3600, -61, -59, 20, 59, 61, 590, 3600, 43_200, 86_400, 10**7]))
    def jump(self, seconds: float) -> None:
        self.clocks.jump(seconds)

    @rule(away=st.sampled_from([0, 5, 120, 86_400]))
    def restart(self, away: float) -> None:
        self.wait(away)
        self.clocks.start()
        self.swept = lifetimes(self.clocks)
        self.restarts += 1

    @rule()
    def sweep(self) -> None:
        sweep(self.clocks, self.swept)
        for event in self.clocks.tx.events[self.seen :]:
            if event.type == "workspace.expiring":
                self.warned[event.workspace_id or ""] = (self.real, self.restarts)
        self.seen = len(self.clocks.tx.events)

    @invariant()
    def nothing_fires_unwarned(self) -> None:
        for workspace_id in tuple(self.workspaces):
            workspace = find_workspace(self.clocks.tx, workspace_id)
            assert workspace is not None
            if workspace.current_operation is None:
                continue
            assert workspace_id in self.warned
            said, restarts = self.warned[workspace_id]
            slack = self.SLACK_SECONDS + (self.restarts - restarts) * self.RESTART_SLACK_SECONDS
            assert self.real - said >= WARNING_SECONDS - slack
            del self.workspaces[workspace_id]

    def teardown(self) -> None:
        self.clocks.tx._connection.close()


TestAnyTime = AnyTime.TestCase
TestAnyTime.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
