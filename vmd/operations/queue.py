"""The workers: claim an operation, run it, and end it, whatever happens meanwhile.

The books are the queue. A worker's outcome, the change it makes to its workspace and their events are one
transaction. What a dead process left unfinished is simply claimed again, and its work goes on from the
steps it recorded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from attrs import evolve, frozen

from vmd.model.errors import ErrorCode, Problem, Refused
from vmd.model.event import EventType
from vmd.model.operation import (
    Job,
    OperationStatus,
    OperationType,
    Phase,
    Progress,
    Verdict,
)
from vmd.operations.report import Report
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.store.database import Database, Transaction
from vmd.store.operations import claim_next, find_job, find_next_time, update_job

# Applies an outcome to the books, in the transaction that ends the operation; returns the result.
Settle = Callable[[Transaction, Job], Mapping[str, Any] | None]

RETRY_SECONDS = (1, 2, 5, 10, 30)  # between tries while a provider cannot be reached; the last repeats
RECOVERY_DEADLINE_SECONDS = 120
MAX_RECOVERIES = 5  # tries to clean up before an operation ends without
STOP_SECONDS = 5
SPARE_WORKERS = 2  # that one owner's operations leave to those of others

log = structlog.get_logger()


@frozen(kw_only=True)
class Work:
    """How one type of operation is done. Both functions may be run again after a crash at any point."""

    run: Callable[[Job, Report], Awaitable[Settle]]
    # After a failure or a cancel: undo what is half done, look, and settle on what is there.
    recover: Callable[[Job, Report], Awaitable[Settle]]
    # When recovering keeps failing too: settle without looking.
    give_up: Callable[[Job], Settle]
    claimed: Callable[[Transaction, Job], None] = lambda tx, job: None
    deadline_seconds: float


class OperationQueue:
    """Runs at most `concurrency` operations at once, fairly between owners, one at a time a workspace."""

    def __init__(
        self,
        database: Database,
        works: Mapping[OperationType, Work],
        *,
        concurrency: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        retry_seconds: tuple[float, ...] = RETRY_SECONDS,
    ) -> None:
        self._database = database
        self._works = works
        self._concurrency = concurrency
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, asyncio.Task[Settle]] = {}  # what a cancel may interrupt
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._scheduler: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, first on what an earlier process left."""
        self._scheduler = asyncio.create_task(self._schedule(), name="operation scheduler")

    @property
    def is_working(self) -> bool:
        """Whether operations are handed out."""
        return self._scheduler is not None and not self._scheduler.done()

    def wake(self) -> None:
        """Look for work: something was recorded, or may be tried again."""
        self._wake.set()

    def interrupt(self, operation_id: str) -> None:
        """Stop the run of an operation that was recorded as cancelling; its recovery follows."""
        run = self._runs.get(operation_id)
        if run is not None:
            run.cancel()
        self.wake()

    async def stop(self) -> None:
        """Stop all work where it stands; the next start goes on with it."""
        self._is_stopping = True
        if self._scheduler is not None:
            self._scheduler.cancel()
        for run in self._runs.values():
            run.cancel()
        workers = tuple(self._workers.values())
        if workers:
            _, late = await asyncio.wait(workers, timeout=STOP_SECONDS)
            for worker in late:
                worker.cancel()
        await asyncio.gather(*workers, *filter(None, [self._scheduler]), return_exceptions=True)

    async def _schedule(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause = await self._hand_out()
            except Exception:
                log.exception("the scheduler failed and goes on")
                pause = 1.0
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _hand_out(self) -> float | None:
        """Give workers to operations while there are both; return how many seconds to wait for more."""
        while len(self._workers) < self._concurrency:
            active = tuple(self._workers)
            job, next_time = await self._database.write(lambda tx: self._claim(tx, active))  # noqa: B023
            if job is None:
                return None if next_time is None else max(0.0, (next_time - self._clock()).total_seconds())
            worker = asyncio.create_task(self._attend(job), name=job.id)
            self._workers[job.id] = worker
            worker.add_done_callback(lambda _, done=job.id: self._dismiss(done))  # type: ignore[misc]
        return None

    def _claim(self, tx: Transaction, active: tuple[str, ...]) -> tuple[Job | None, datetime | None]:
        job = claim_next(tx, active, max(1, self._concurrency - SPARE_WORKERS))
        if job is None:
            return None, find_next_time(tx)
        self._works[job.operation.type].claimed(tx, job)
        _emit(tx, EventType.OPERATION_PROGRESS, job, progress=job.operation.progress)
        return job, None

    def _dismiss(self, operation_id: str) -> None:
        del self._workers[operation_id]
        self._wake.set()

    async def _attend(self, job: Job) -> None:
        """Bring one operation to its end, or leave it in the books to be claimed again."""
        with structlog.contextvars.bound_contextvars(operation_id=job.id):
            report = Report(self._database, job, self._clock)
            work = self._works[job.operation.type]
            try:
                while not self._is_stopping:
                    job = await self._reread(job)
                    attempt = self._run if job.verdict is None else self._recover
                    settle = await attempt(work, job, report)
                    await report.flush()
                    if settle is not None and await self._finish(job, settle):
                        return
                await report.flush()
            except ProviderUnavailable as error:
                await report.flush()
                await self._postpone(job, str(error))
            except Exception:
                log.exception("a worker failed; its operation is tried again")
                await self._postpone(job, "vmd failed; it tries again.")

    async def _run(self, work: Work, job: Job, report: Report) -> Settle | None:
        """Return how to settle a success, or None after deciding that it is none."""
        run = asyncio.ensure_future(work.run(job, report))
        self._runs[job.id] = run
        try:
            await asyncio.wait({run}, timeout=work.deadline_seconds)
        finally:
            del self._runs[job.id]
            is_late = not run.done()
            run.cancel()
        await asyncio.wait({run})
        if is_late:
            detail = (
                f"The operation did not finish within {work.deadline_seconds:g} s and was stopped; "
                "try again, or ask the administrator to raise operations.deadlines."
            )
            await self._decide(job, Refused(ErrorCode.PROVIDER_ERROR, detail).problem())
            return None
        if run.cancelled():
            return None
        error = run.exception()
        if error is None:
            return run.result()
        if isinstance(error, ProviderUnavailable):
            raise error
        await self._decide(job, _problem_of(error))
        return None

    async def _recover(self, work: Work, job: Job, report: Report) -> Settle | None:
        """Return how to settle a failure or a cancel."""
        tries = int(job.checkpoint.get("recoveries", 0)) + 1
        await report.checkpoint(recoveries=tries)
        try:
            async with asyncio.timeout(RECOVERY_DEADLINE_SECONDS):
                return await work.recover(job, report)
        except ProviderUnavailable:
            await report.checkpoint(recoveries=tries - 1)
            raise
        except Exception as error:
            log.warning("cleaning up after an operation failed", error=repr(error), tries=tries)
            if tries < MAX_RECOVERIES:
                raise ProviderUnavailable(f"Cleaning up failed: {error}") from error
            return work.give_up(job)

    async def _decide(self, job: Job, problem: Problem) -> None:
        """Record that the operation will fail, before anything is cleaned up."""

        def unit(tx: Transaction) -> None:
            latest = find_job(tx, job.id)
            if latest is not None and latest.verdict is None:
                failed = evolve(latest.operation, error=problem, may_cancel=False)
                update_job(tx, evolve(latest, operation=failed, verdict=Verdict.FAILED))

        await self._database.write(unit)

    async def _reread(self, job: Job) -> Job:
        latest = await self._database.read(lambda tx: find_job(tx, job.id))
        return job if latest is None else latest

    async def _finish(self, job: Job, settle: Settle) -> bool:
        """End the operation and apply its outcome, in one transaction.

        Return False when it was cancelled at the last moment, so that its outcome no longer counts.
        """

        def unit(tx: Transaction) -> bool:
            latest = find_job(tx, job.id)
            if latest is None or latest.operation.is_final:
                return True
            if latest.verdict is not job.verdict:
                return False
            finish(tx, latest, settle)
            return True

        return await self._database.write(unit)

    async def _postpone(self, job: Job, reason: str) -> None:
        """Put the operation back until its provider may be there again."""
        pauses = self._retry_seconds

        def unit(tx: Transaction) -> None:
            latest = find_job(tx, job.id)
            if latest is None or latest.operation.is_final:
                return
            pause = pauses[min(latest.operation.attempt, len(pauses)) - 1]
            progress = Progress(phase=Phase.WAIT, message=reason)
            waiting = evolve(latest.operation, progress=progress)
            if latest.verdict is not Verdict.CANCELLED:
                waiting = evolve(waiting, status=OperationStatus.PENDING)
            changed = evolve(latest, operation=waiting)
            update_job(tx, changed, not_before=tx.now + timedelta(seconds=pause))
            _emit(tx, EventType.OPERATION_PROGRESS, changed, progress=progress)

        await self._database.write(unit)


def finish(tx: Transaction, job: Job, settle: Settle) -> Job:
    """End an operation as its verdict says, and apply its outcome; return it as it was left."""
    status = {
        None: OperationStatus.SUCCEEDED,
        Verdict.FAILED: OperationStatus.FAILED,
        Verdict.CANCELLED: OperationStatus.CANCELLED,
    }[job.verdict]
    result = settle(tx, job)
    ended = evolve(
        job.operation,
        status=status,
        finished_at=tx.now,
        may_cancel=False,
        progress=Progress(phase=Phase.DONE, message=f"The operation {status}.", percent=100),
        result=None if result is None else dict(result),
    )
    job = evolve(job, operation=ended)
    update_job(tx, job)
    _emit(tx, EventType.OPERATION_FINISHED, job, type=ended.type, result=ended.result, error=ended.error)
    return job


def _emit(tx: Transaction, kind: EventType, job: Job, **data: Any) -> None:
    tx.emit(
        kind,
        actor=job.operation.actor,
        owner_id=job.owner_id,
        workspace_id=job.operation.workspace_id,
        operation_id=job.id,
        status=job.operation.status,
        **data,
    )


def _problem_of(error: BaseException) -> Problem:
    if isinstance(error, Refused):
        return error.problem()
    if isinstance(error, ProviderError):
        return Refused(ErrorCode.PROVIDER_ERROR, str(error)).problem()
    log.error("an operation failed inside vmd", exc_info=error)
    detail = "vmd failed at this operation; its log says why. Try again, or ask the administrator."
    return Refused(ErrorCode.INTERNAL, detail).problem()
