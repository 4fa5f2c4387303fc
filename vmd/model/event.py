"""What happened, as it is told to those who listen."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import field, frozen


class EventType(StrEnum):
    """The kinds of event; what `data` holds is said beside each."""

    WORKSPACE_CREATED = "workspace.created"  # name, status
    WORKSPACE_UPDATED = "workspace.updated"  # the names of the changed fields with their values
    WORKSPACE_STATUS = "workspace.status"  # status, previous, reason
    WORKSPACE_EXPIRING = (
        "workspace.expiring"  # clock, at, leads_to, git, is_looked_at, final_snapshot, message
    )
    WORKSPACE_EXPIRED = "workspace.expired"  # clock
    WORKSPACE_DELETED = "workspace.deleted"  # name
    OPERATION_CREATED = "operation.created"  # type, status
    OPERATION_PROGRESS = "operation.progress"  # status, progress
    OPERATION_LOG = "operation.log"  # lines: [{seq, time, stream, message}]
    OPERATION_FINISHED = "operation.finished"  # type, status, result, error
    SNAPSHOT_CREATED = "snapshot.created"  # snapshot_id, name
    SNAPSHOT_READY = "snapshot.ready"  # snapshot_id, name, size_bytes
    SNAPSHOT_FAILED = "snapshot.failed"  # snapshot_id, name
    SNAPSHOT_RESTORED = "snapshot.restored"  # snapshot_id, name
    SNAPSHOT_DELETED = "snapshot.deleted"  # snapshot_id, name
    COMMAND_STARTED = "command.started"  # command_id, command
    COMMAND_FINISHED = "command.finished"  # command_id, status, exit_code, signal
    SHELL_STARTED = "shell.started"  # session_id, command
    SHELL_ATTACHED = "shell.attached"  # session_id
    SHELL_DETACHED = "shell.detached"  # session_id: nobody is attached any more
    SHELL_FINISHED = "shell.finished"  # session_id, exit_code


@frozen(kw_only=True, cache_hash=True)
class Event:
    """One event. `seq` rises by commit order and is never used twice."""

    seq: int
    type: EventType
    time: datetime
    actor: str
    owner_id: str | None
    workspace_id: str | None
    operation_id: str | None
    data: dict[str, Any] = field(hash=False)  # a dict has none, and `seq` tells events apart
