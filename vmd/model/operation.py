"""Operations: pieces of long work, recorded before they are begun."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from attrs import field, frozen
from msgspec import Meta

from vmd.model.errors import Problem


class OperationType(StrEnum):
    """What an operation does to its workspace."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    REBUILD = "rebuild"
    DELETE = "delete"
    SNAPSHOT = "snapshot"
    SNAPSHOT_DELETE = "snapshot_delete"
    RESTORE = "restore"
    COMMAND = "command"
    EXPIRE = "expire"


class OperationStatus(StrEnum):
    """Where an operation stands."""

    PENDING = "pending"  # recorded, waiting for a worker
    RUNNING = "running"  # a worker has it
    CANCELLING = "cancelling"  # a worker undoes what can be undone
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATUSES = frozenset({OperationStatus.SUCCEEDED, OperationStatus.FAILED, OperationStatus.CANCELLED})


class Phase(StrEnum):
    """The part of an operation that is under way."""

    QUEUED = "queued"
    WAIT = "wait"  # for a provider that cannot be reached
    PULL = "pull"
    BUILD = "build"  # the image
    CREATE = "create"
    START = "start"
    CLONE = "clone"
    DETECT = "detect"  # which preset a repository wants
    PROVISION = "provision"
    RUN = "run"  # a command
    SNAPSHOT = "snapshot"
    STOP = "stop"
    RESTORE = "restore"  # the files of a snapshot
    SWAP = "swap"
    DESTROY = "destroy"
    CLEANUP = "cleanup"  # after a failure or a cancel
    DONE = "done"


@frozen(kw_only=True)
class Progress:
    """How far an operation is."""

    phase: Phase = Phase.QUEUED
    message: str = ""
    percent: Annotated[int, Meta(ge=0, le=100)] | None = None


@frozen(kw_only=True)
class Operation:
    """One piece of long work and its outcome."""

    id: str
    type: OperationType
    status: OperationStatus
    workspace_id: str | None
    snapshot_id: str | None = None
    command_id: str | None = None
    actor: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress = field(factory=Progress)
    result: dict[str, Any] | None = None
    error: Problem | None = None
    may_cancel: bool
    attempt: Annotated[int, Meta(ge=0)] = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL_STATUSES


class Verdict(StrEnum):
    """How an operation will end, decided before its cleaning up is done."""

    FAILED = "failed"
    CANCELLED = "cancelled"


@frozen(kw_only=True)
class Job:
    """An operation as its worker sees it: with what only the worker needs."""

    operation: Operation
    owner_id: str
    input: dict[str, Any]  # what the use case asked for, e.g. {"force": true}
    checkpoint: dict[str, Any]  # steps already done, written as they are
    verdict: Verdict | None

    @property
    def id(self) -> str:
        """The operation's id."""
        return self.operation.id


@frozen(kw_only=True)
class LogLine:
    """One line of an operation's log."""

    seq: int
    time: datetime
    stream: str  # stdout, stderr of what ran, or vmd
    message: str
