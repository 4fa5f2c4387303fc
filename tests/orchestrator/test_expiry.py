"""Before a clock fires: the look at work that would be lost, the warning that names it, and what is kept."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attrs import field, mutable

from tests.orchestrator.test_lifetime import HOUR_MS, age
from tests.support.house import House, open_house
from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import Job
from vmd.model.workspace import Workspace
from vmd.operations.report import Report
from vmd.orchestrator import git_looks
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.fake import FakeHost, Fault
from vmd.store.database import Transaction

DIRTY = "repo 3 2 1 main\nend\n"
CLEAN = "repo 0 0 0 main\nend\n"
TTL = {"ttl_seconds": 1800}


@mutable
class Keeper:
    """Records what it was asked to keep, and in which state its machine was then."""

    host: FakeHost = field(factory=FakeHost)
    kept: list[tuple[str, str]] = field(factory=list)
    error: Exception | None = None

    async def __call__(self, job: Job, report: Report, workspace: Workspace) -> None:
        if self.error is not None:
            raise self.error
        self.kept.append((workspace.id, self.host.machines[workspace.provider_ref or ""].power))


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
async def house(tmp_path: Path, keeper: Keeper) -> AsyncIterator[House]:
    """A daemon that sweeps when it is told to, warns at the last moment, and keeps final snapshots."""
    async with open_house(
        tmp_path,
        host=keeper.host,
        parts={"keep_final": keeper},
        janitor__interval_seconds=600,
        janitor__warning_seconds=0,
    ) as opened:
        await opened.ready()
        yield opened


async def sweep(house: House) -> None:
    """Sweep, and wait for the looks that this began."""
    await house.daemon._lifetimes.sweep()
    await house.daemon._looks.wait()


async def warnings(house: House, workspace_id: str) -> list[Any]:
    rows = await house.daemon._database.read(
        lambda tx: tx.execute(
            "SELECT data FROM events WHERE workspace_id = :id AND type = 'workspace.expiring' ORDER BY seq",
            {"id": workspace_id},
        ).fetchall()
    )
    return [msgspec.json.decode(row["data"]) for row in rows]


async def lifetime(house: House, workspace_id: str) -> Any:
    answer = await house.api.get(f"/workspaces/{workspace_id}/lifetime")
    assert answer.status == 200, answer.text
    return answer.json


async def expire(house: House, workspace_id: str) -> Any:
    """Have the ttl of a workspace end, and return its last operation."""
    await age(house, workspace_id, "expires_at")
    await sweep(house)
    await sweep(house)
    found = (await house.api.get(f"/operations?workspace_id={workspace_id}&type=expire")).json["items"]
    return await house.api.wait(found[0])


async def stop(house: House, workspace_id: str) -> None:
    await house.api.done(await house.api.post(f"/workspaces/{workspace_id}/actions/stop"))


# The look and its warning.


async def test_work_that_no_remote_has_is_named_in_the_warning_and_in_lifetime(house: House) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = DIRTY
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    [warning] = await warnings(house, workspace["id"])
    assert (warning["clock"], warning["leads_to"], warning["is_looked_at"]) == ("ttl", "trash", True)
    found = {name: warning["git"][name] for name in ("branch", "uncommitted", "unpushed", "stashes")}
    assert found == {"branch": "main", "uncommitted": 3, "unpushed": 2, "stashes": 1}
    assert "No remote has: 3 files changed or new, 2 commits not pushed, 1 stash." in warning["message"]
    assert warning["message"].endswith("A final snapshot is kept.")
    shown = await lifetime(house, workspace["id"])
    assert shown["git"] == warning["git"]
    assert shown["final_snapshot"] is True


async def test_a_clean_workspace_is_said_to_be_clean(house: House) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = CLEAN
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    [warning] = await warnings(house, workspace["id"])
    assert "Nothing in it is without a remote." in warning["message"]
    assert warning["final_snapshot"] is False
    assert (await lifetime(house, workspace["id"]))["final_snapshot"] is False


async def test_each_warning_looks_once_and_the_clocks_of_a_workspace_share_a_look(tmp_path: Path) -> None:
    async with open_house(tmp_path, janitor__interval_seconds=3600, janitor__warning_seconds=600) as house:
        await house.ready()
        workspace = await house.api.make(ttl_seconds=7200, idle_timeout_seconds=3600)
        await age(house, workspace["id"], "expires_at", 2 * HOUR_MS - 300_000)
        await age(house, workspace["id"], "last_activity_at", HOUR_MS - 300_000)
        for _ in range(4):
            await sweep(house)
        clocks = [warning["clock"] for warning in await warnings(house, workspace["id"])]
        assert sorted(clocks) == ["idle", "ttl"]
        assert house.fake.host.calls["look"] == 1
        assert (await lifetime(house, workspace["id"]))["next"]["warned_at"] is not None


@pytest.mark.parametrize(
    "fault", [ProviderError("no exec"), ProviderUnavailable("away"), RuntimeError("a bug")], ids=str
)
async def test_a_machine_that_cannot_be_looked_at_is_warned_of_all_the_same(
    house: House, fault: Exception
) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.order("look", Fault(error=fault))
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    [warning] = await warnings(house, workspace["id"])
    assert (warning["git"], warning["is_looked_at"], warning["final_snapshot"]) == (None, False, True)
    assert "cannot be looked at (its machine does not answer)" in warning["message"]


async def test_a_machine_that_is_off_is_judged_by_the_last_look(house: House) -> None:
    workspace = await house.api.make(ttl_seconds=3600, idle_timeout_seconds=1800)
    house.fake.host.git[workspace["id"]] = DIRTY
    await age(house, workspace["id"], "last_activity_at")
    await sweep(house)  # warned of idleness, with a look
    await sweep(house)
    await house.api.until(workspace["id"], status="stopped")
    await age(house, workspace["id"], "expires_at", 2 * HOUR_MS)
    await sweep(house)
    idle, ttl = await warnings(house, workspace["id"])
    assert (idle["is_looked_at"], ttl["is_looked_at"]) == (True, False)
    assert ttl["git"] == idle["git"]
    assert "(its machine is off)" in ttl["message"]
    assert "no remote had: 3 files changed or new" in ttl["message"]


async def test_a_look_that_hangs_keeps_nobody_waiting(house: House) -> None:
    hung = await house.api.make(**TTL)
    house.fake.order("look", Fault(delay_seconds=3600))
    await age(house, hung["id"], "expires_at")
    await house.daemon._lifetimes.sweep()
    async with asyncio.timeout(5):
        while house.fake.host.calls["look"] == 0:
            await asyncio.sleep(0)
    other = await house.api.make(**TTL)
    await age(house, other["id"], "expires_at")
    async with asyncio.timeout(5):
        while not await warnings(house, other["id"]):
            await house.daemon._lifetimes.sweep()
    await house.daemon._lifetimes.sweep()
    await house.api.until(other["id"], status="trashed")
    assert await warnings(house, hung["id"]) == []
    assert house.fake.host.calls["look"] >= 2


async def test_a_look_that_takes_too_long_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_looks, "ANSWER_SECONDS", 0.05)
    workspace = await house.api.make(**TTL)
    house.fake.order("look", Fault(delay_seconds=3600))
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    [warning] = await warnings(house, workspace["id"])
    assert warning["is_looked_at"] is False


async def test_those_behind_many_that_hang_are_warned_of_without_a_look(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_looks, "TURN_SECONDS", 0.05)
    made = [await house.api.make(**TTL) for _ in range(git_looks.MAX_LOOKS_AT_ONCE + 2)]
    house.fake.order("look", *[Fault(delay_seconds=3600)] * len(made))
    for workspace in made:
        await age(house, workspace["id"], "expires_at")
    await house.daemon._lifetimes.sweep()
    async with asyncio.timeout(5):
        while sum([len(await warnings(house, workspace["id"])) for workspace in made]) < 2:
            await asyncio.sleep(0.01)
    assert house.fake.host.calls["look"] == git_looks.MAX_LOOKS_AT_ONCE


async def test_a_look_is_no_use_of_the_workspace(house: House) -> None:
    workspace = await house.api.make(idle_timeout_seconds=1800)
    [ref] = house.fake.host.machines
    await sweep(house)
    await age(house, workspace["id"], "last_activity_at")
    house.fake.order("look", Fault(delay_seconds=0.2))
    await house.daemon._lifetimes.sweep()
    async with asyncio.timeout(5):
        while house.fake.host.calls["look"] == 0:
            await asyncio.sleep(0)
    house.fake.host.cpu_seconds[ref] = 1000.0  # what git takes
    await house.daemon._lifetimes.sweep()
    await house.daemon._looks.wait()
    house.fake.host.cpu_seconds[ref] = 2000.0
    await sweep(house)
    await house.api.until(workspace["id"], status="stopped")


async def test_use_during_a_look_takes_its_warning_back(house: House) -> None:
    workspace = await house.api.make(idle_timeout_seconds=1800)
    await age(house, workspace["id"], "last_activity_at")
    house.fake.order("look", Fault(delay_seconds=0.2))
    await house.daemon._lifetimes.sweep()
    await house.api.patch(f"/workspaces/{workspace['id']}", {"description": "still here"})
    await house.daemon._looks.wait()
    assert await warnings(house, workspace["id"]) == []


# What is kept.


async def test_a_final_snapshot_is_kept_before_the_machine_is_stopped(house: House, keeper: Keeper) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = DIRTY
    assert (await expire(house, workspace["id"]))["status"] == "succeeded"
    assert keeper.kept == [(workspace["id"], "running")]
    assert (await house.api.workspace(workspace["id"]))["status"] == "trashed"


async def test_nothing_is_kept_of_what_is_all_on_remotes(house: House, keeper: Keeper) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = CLEAN
    assert (await expire(house, workspace["id"]))["status"] == "succeeded"
    assert keeper.kept == []


async def test_work_that_came_after_the_warning_is_seen_and_kept(house: House, keeper: Keeper) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = CLEAN
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    house.fake.host.git[workspace["id"]] = DIRTY
    await sweep(house)
    await house.api.until(workspace["id"], status="trashed")
    assert keeper.kept == [(workspace["id"], "running")]


async def test_files_without_a_repository_are_kept_and_an_empty_workspace_is_not(
    house: House, keeper: Keeper
) -> None:
    empty = await house.api.make(**TTL)
    filled = await house.api.make(**TTL)
    house.fake.host.files[filled["id"]]["notes"] = "x"
    for workspace in (empty, filled):
        await expire(house, workspace["id"])
    assert keeper.kept == [(filled["id"], "running")]


async def test_a_stopped_workspace_is_kept_unless_it_was_clean_when_last_in_use(
    house: House, keeper: Keeper
) -> None:
    unknown = await house.api.make(**TTL)
    await stop(house, unknown["id"])
    rested = await house.api.make(ttl_seconds=1800, idle_timeout_seconds=1800)
    house.fake.host.git[rested["id"]] = CLEAN
    await age(house, rested["id"], "last_activity_at")
    await sweep(house)
    await sweep(house)
    await house.api.until(rested["id"], status="stopped")
    used_again = await house.api.make(ttl_seconds=1800, idle_timeout_seconds=1800)
    house.fake.host.git[used_again["id"]] = CLEAN
    await age(house, used_again["id"], "last_activity_at")
    await sweep(house)  # looked at, and used after that
    await stop(house, used_again["id"])
    for workspace in (unknown, rested, used_again):
        assert (await expire(house, workspace["id"]))["status"] == "succeeded"
    assert keeper.kept == [(unknown["id"], "stopped"), (used_again["id"], "stopped")]


@pytest.mark.parametrize("answer", [CLEAN, DIRTY], ids=["clean", "dirty"])
async def test_a_machine_that_hangs_at_last_is_judged_by_the_look_before(
    house: House, keeper: Keeper, answer: str
) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = answer
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    house.fake.order("look", Fault(error=ProviderError("hung")))
    await sweep(house)
    await house.api.until(workspace["id"], status="trashed")
    assert len(keeper.kept) == (answer == DIRTY)


async def test_what_cannot_be_kept_is_not_taken_away_and_is_warned_of_again(
    house: House, keeper: Keeper
) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = DIRTY
    keeper.error = Refused(ErrorCode.PROVIDER_ERROR, "The disk is full.")
    failed = await expire(house, workspace["id"])
    assert (failed["status"], failed["error"]["detail"]) == ("failed", "The disk is full.")
    kept = await house.api.workspace(workspace["id"])
    assert (kept["status"], kept["last_error"]["detail"]) == ("running", "The disk is full.")
    keeper.error = None
    assert len(await warnings(house, workspace["id"])) == 1
    await sweep(house)
    assert len(await warnings(house, workspace["id"])) == 2
    await sweep(house)
    await house.api.until(workspace["id"], status="trashed")
    assert keeper.kept == [(workspace["id"], "running")]


async def test_an_expiry_that_is_tried_again_keeps_once(house: House, keeper: Keeper) -> None:
    workspace = await house.api.make(**TTL)
    house.fake.host.git[workspace["id"]] = DIRTY
    house.fake.order("stop", Fault(error=ProviderUnavailable("away")))
    operation = await expire(house, workspace["id"])
    assert (operation["status"], operation["attempt"]) == ("succeeded", 2)
    assert keeper.kept == [(workspace["id"], "running")]


async def test_a_workspace_without_a_machine_expires_without_a_snapshot(house: House, keeper: Keeper) -> None:
    house.fake.order("create", Fault(error=ProviderError("no")))
    created = (await house.api.post("/workspaces", TTL)).json
    await house.api.wait(created)
    assert (await lifetime(house, created["workspace_id"]))["final_snapshot"] is False
    assert (await expire(house, created["workspace_id"]))["status"] == "succeeded"
    assert keeper.kept == []


# What lifetime says.


async def test_lifetime_explains_what_fired_and_what_is_next(house: House) -> None:
    workspace = await house.api.make(**TTL)
    before = await lifetime(house, workspace["id"])
    assert (before["last_fired"], before["git"]) == (None, None)
    assert before["message"].startswith("Its time is over: it goes to trash at")
    await expire(house, workspace["id"])
    after = await lifetime(house, workspace["id"])
    assert after["last_fired"]["clock"] == "ttl"
    assert after["last_fired"]["why"].startswith("Its ttl_seconds were over at")
    assert (after["next"]["clock"], after["next"]["leads_to"]) == ("trash", "delete")
    assert "deleted from trash" in after["message"]


@pytest.mark.parametrize(
    ("changes", "held", "said"),
    [
        ({"pinned": True}, ["pinned"], "It is pinned"),
        ({"ttl_seconds": None}, [], "has no clock that runs"),
    ],
)
async def test_lifetime_says_why_nothing_fires(
    house: House, changes: dict[str, Any], held: list[str], said: str
) -> None:
    workspace = await house.api.make(**TTL)
    await house.api.patch(f"/workspaces/{workspace['id']}", changes)
    shown = await lifetime(house, workspace["id"])
    assert (shown["next"], shown["held_by"]) == (None, held)
    assert said in shown["message"]


async def test_an_operation_holds_the_clocks(house: House) -> None:
    created = (await house.api.post("/workspaces", {**TTL, "provisioning": ["sleep 60"]})).json
    await house.api.until_phase(created["id"], "provision")
    await age(house, created["workspace_id"], "expires_at")
    await sweep(house)
    shown = await lifetime(house, created["workspace_id"])
    assert (shown["next"], shown["held_by"]) == (None, ["operation"])
    assert await warnings(house, created["workspace_id"]) == []


async def test_what_comes_out_of_trash_has_a_new_time_and_new_warnings(house: House) -> None:
    workspace = await house.api.make(**TTL)
    await expire(house, workspace["id"])
    await house.api.post(f"/workspaces/{workspace['id']}/actions/undelete")
    back = await lifetime(house, workspace["id"])
    left = datetime.fromisoformat(back["next"]["at"]) - datetime.fromisoformat(
        back["activity"]["last_activity_at"]
    )
    assert (back["next"]["clock"], back["next"]["warned_at"]) == ("ttl", None)
    assert left == timedelta(seconds=1800)
    for _ in range(3):
        await sweep(house)
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    assert [w["clock"] for w in await warnings(house, workspace["id"])] == ["ttl"]
    await age(house, workspace["id"], "expires_at")
    await sweep(house)
    assert [w["clock"] for w in await warnings(house, workspace["id"])] == ["ttl", "ttl"]


# Clocks that jump, in a whole daemon.


@mutable
class Skewed:
    """A wall clock that a test can put forward and back."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.mark.parametrize("days", [1, -1, 365])
async def test_a_daemon_whose_clock_jumps_takes_nothing_away(tmp_path: Path, days: int) -> None:
    skewed = Skewed()
    async with open_house(
        tmp_path,
        parts={"clock": skewed.now},
        janitor__interval_seconds=3600,
        janitor__warning_seconds=600,
        janitor__trash_grace_seconds=86_400,
        shell__detach_seconds=900,
    ) as house:
        await house.ready()
        running = await house.api.make(ttl_seconds=7200, idle_timeout_seconds=7200)
        trashed = await house.api.make(**TTL)
        await stop(house, trashed["id"])

        def trash(tx: Transaction) -> None:
            tx.execute(
                "UPDATE workspaces SET status = 'trashed', trashed_at = expires_at, version = version + 1"
                " WHERE id = :id",
                {"id": trashed["id"]},
            )

        await house.daemon._database.write(trash)
        async with house.api.session.ws_connect(f"/ws/workspaces/{running['id']}/shell") as socket:
            await socket.receive()
        count = await _count(house)
        await sweep(house)
        skewed.ahead = timedelta(days=days)
        for _ in range(3):
            for swept in house.daemon._sweeps:
                await swept()
            await house.daemon._looks.wait()
        assert (await house.api.workspace(running["id"]))["status"] == "running"
        assert (await house.api.workspace(trashed["id"]))["status"] == "trashed"
        assert await _count(house) >= count
        [shell] = (await house.api.get(f"/workspaces/{running['id']}/shells")).json["items"]
        assert shell["status"] == "running"
        expected = ["ttl", "idle"] if days > 0 else []
        assert sorted(w["clock"] for w in await warnings(house, running["id"])) == sorted(expected)


async def _count(house: House) -> int:
    """Return how many operations and events are on record."""

    def unit(tx: Transaction) -> int:
        sql = "SELECT (SELECT count(*) FROM operations) + (SELECT count(*) FROM events) AS count"
        return int(tx.execute(sql).fetchone()["count"])

    return await house.daemon._database.read(unit)
