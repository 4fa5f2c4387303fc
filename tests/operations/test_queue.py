import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve

from vmd.model.account import Role, User
from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import Job, Operation, OperationStatus, OperationType, Verdict
from vmd.operations.queue import MAX_RECOVERIES, OperationQueue, Settle, Work
from vmd.operations.report import Report
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.store.accounts import insert_user
from vmd.store.database import Database, Transaction, connect
from vmd.store.operations import find_job, insert_operation, list_logs, update_job

Run = Callable[[Job, Report], Awaitable[Settle]]


def settled(result: dict[str, Any] | None = None) -> Settle:
    return lambda tx, job: result


async def succeed(job: Job, report: Report) -> Settle:
    return settled({"done": True})


class Bench:
    """A queue with one type of work, which each test gives."""

    def __init__(self) -> None:
        self.database = Database(connect(":memory:"))
        self.order: list[str] = []

    def queue(
        self, run: Run, *, recover: Run = succeed, concurrency: int = 2, deadline: float = 30
    ) -> OperationQueue:
        work = Work(
            run=run, recover=recover, give_up=lambda job: settled({"gave": "up"}), deadline_seconds=deadline
        )
        self.running = OperationQueue(
            self.database, {OperationType.CREATE: work}, concurrency=concurrency, retry_seconds=(0.01,)
        )
        return self.running

    async def add(self, *owners: str) -> list[str]:
        def unit(tx: Transaction) -> list[str]:
            ids = []
            for owner in owners:
                operation = Operation(
                    id=tx.new_id("op"),
                    type=OperationType.CREATE,
                    status=OperationStatus.PENDING,
                    workspace_id=None,
                    actor=owner,
                    created_at=tx.now,
                    may_cancel=True,
                )
                insert_operation(tx, operation, owner, {})
                ids.append(operation.id)
            return ids

        return await self.database.write(unit)

    async def job(self, operation_id: str) -> Job:
        found = await self.database.read(lambda tx: find_job(tx, operation_id))
        assert found is not None
        return found

    async def ended(self, *ids: str) -> list[Operation]:
        async with asyncio.timeout(10):
            while True:
                jobs = [await self.job(operation_id) for operation_id in ids]
                if all(job.operation.is_final for job in jobs):
                    return [job.operation for job in jobs]
                await asyncio.sleep(0.005)

    async def cancel(self, operation_id: str) -> None:
        def unit(tx: Transaction) -> None:
            job = find_job(tx, operation_id)
            assert job is not None
            cancelling = evolve(job.operation, status=OperationStatus.CANCELLING)
            update_job(tx, evolve(job, operation=cancelling, verdict=Verdict.CANCELLED))

        await self.database.write(unit)
        self.running.interrupt(operation_id)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    user = User(id="usr-1", name="one", role=Role.MEMBER, created_at=datetime.now(UTC))
    await made.database.write(lambda tx: insert_user(tx, user))
    yield made
    await made.running.stop()
    await made.database.close()


async def test_work_that_was_recorded_is_done(bench: Bench) -> None:
    [operation_id] = await bench.add("a")
    bench.queue(succeed).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, operation.result, operation.attempt) == ("succeeded", {"done": True}, 1)


async def test_no_more_than_concurrency_run_at_once(bench: Bench) -> None:
    now = most = 0

    async def run(job: Job, report: Report) -> Settle:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return settled()

    ids = await bench.add(*"abcdefghij")
    bench.queue(run, concurrency=3).start()
    await bench.ended(*ids)
    assert most == 3


async def test_one_owners_many_do_not_hold_up_anothers_one(bench: Bench) -> None:
    async def run(job: Job, report: Report) -> Settle:
        bench.order.append(job.owner_id)
        await asyncio.sleep(0.002)
        return settled()

    ids = await bench.add(*["greedy"] * 50, "modest")
    bench.queue(run, concurrency=2).start()
    await bench.ended(*ids)
    assert bench.order.index("modest") <= 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProviderError("the engine refused"), ErrorCode.PROVIDER_ERROR),
        (Refused(ErrorCode.INVALID_STATE, "no"), ErrorCode.INVALID_STATE),
        (ZeroDivisionError("inside"), ErrorCode.INTERNAL),
    ],
)
async def test_a_failure_is_recovered_from_and_told(bench: Bench, error: Exception, code: ErrorCode) -> None:
    recovered: list[Verdict | None] = []

    async def run(job: Job, report: Report) -> Settle:
        raise error

    async def recover(job: Job, report: Report) -> Settle:
        recovered.append(job.verdict)
        return settled()

    [operation_id] = await bench.add("a")
    bench.queue(run, recover=recover).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, recovered) == ("failed", [Verdict.FAILED])
    assert operation.error is not None
    assert operation.error.code is code
    assert "inside" not in operation.error.detail


async def test_work_waits_for_a_provider_that_is_away(bench: Bench) -> None:
    tries = 0

    async def run(job: Job, report: Report) -> Settle:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ProviderUnavailable("away")
        return settled()

    [operation_id] = await bench.add("a")
    bench.queue(run).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, operation.attempt) == ("succeeded", 4)


async def test_waiting_work_holds_no_worker(bench: Bench) -> None:
    async def run(job: Job, report: Report) -> Settle:
        if job.owner_id == "away":
            raise ProviderUnavailable("away")
        return settled()

    ids = await bench.add("away", "away", "here")
    bench.queue(run, concurrency=1).start()
    [operation] = await bench.ended(ids[2])
    assert operation.status == "succeeded"


async def test_a_deadline_ends_work_that_hangs(bench: Bench) -> None:
    async def run(job: Job, report: Report) -> Settle:
        await asyncio.Event().wait()
        return settled()

    [operation_id] = await bench.add("a")
    bench.queue(run, deadline=0.05).start()
    [operation] = await bench.ended(operation_id)
    assert operation.status == "failed"
    assert operation.error is not None
    assert "did not finish within 0.05 s" in operation.error.detail


async def test_a_cancel_interrupts_and_recovers(bench: Bench) -> None:
    begun = asyncio.Event()

    async def run(job: Job, report: Report) -> Settle:
        begun.set()
        await asyncio.Event().wait()
        return settled()

    [operation_id] = await bench.add("a")
    bench.queue(run).start()
    await begun.wait()
    await bench.cancel(operation_id)
    [operation] = await bench.ended(operation_id)
    assert operation.status == "cancelled"


async def test_a_cancel_at_the_last_moment_still_counts(bench: Bench) -> None:
    recovered = []

    async def run(job: Job, report: Report) -> Settle:
        await bench.cancel(job.id)
        return settled({"done": True})

    async def recover(job: Job, report: Report) -> Settle:
        recovered.append(job.id)
        return settled()

    [operation_id] = await bench.add("a")
    bench.queue(run, recover=recover).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, operation.result, recovered) == ("cancelled", None, [operation_id])


async def test_recovery_is_tried_again_and_given_up_in_the_end(bench: Bench) -> None:
    tries = 0

    async def run(job: Job, report: Report) -> Settle:
        raise ProviderError("first")

    async def recover(job: Job, report: Report) -> Settle:
        nonlocal tries
        tries += 1
        raise ProviderError("again")

    [operation_id] = await bench.add("a")
    bench.queue(run, recover=recover).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, operation.result, tries) == ("failed", {"gave": "up"}, MAX_RECOVERIES)


async def test_what_was_left_unfinished_goes_on_at_the_next_start(bench: Bench) -> None:
    attempts: list[tuple[int, Any]] = []
    begun = asyncio.Event()

    async def run(job: Job, report: Report) -> Settle:
        attempts.append((job.operation.attempt, job.checkpoint.get("step")))
        if len(attempts) == 1:
            await report.checkpoint(step="one")
            begun.set()
            await asyncio.Event().wait()
        return settled()

    [operation_id] = await bench.add("a")
    first = bench.queue(run)
    first.start()
    await begun.wait()
    await first.stop()
    assert (await bench.job(operation_id)).operation.status == "running"
    bench.queue(run).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, attempts) == ("succeeded", [(1, None), (2, "one")])


async def test_output_becomes_lines_in_order(bench: Bench) -> None:
    async def run(job: Job, report: Report) -> Settle:
        for piece in (b"one\ntw", b"o\r\nthr", b"ee \xc3", b"\xa9\n\xff\nlast"):
            await report.output("stdout", piece)
        return settled()

    [operation_id] = await bench.add("a")
    bench.queue(run).start()
    await bench.ended(operation_id)
    lines = await bench.database.read(lambda tx: list_logs(tx, operation_id, 0, 100))
    assert [line.message for line in lines] == ["one", "two", "three é", "\ufffd", "last"]
    assert [line.seq for line in lines] == [1, 2, 3, 4, 5]


async def test_a_settlement_that_fails_is_tried_again(bench: Bench) -> None:
    tries = 0

    async def run(job: Job, report: Report) -> Settle:
        def settle(tx: Transaction, job: Job) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise OSError("disk full")

        return settle

    [operation_id] = await bench.add("a")
    bench.queue(run).start()
    [operation] = await bench.ended(operation_id)
    assert (operation.status, operation.attempt) == ("succeeded", 2)
