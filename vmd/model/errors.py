"""The error codes of the contract, and the one exception that carries them."""

from collections.abc import Sequence
from enum import StrEnum

from attrs import frozen


class ErrorCode(StrEnum):
    """Why a request or an operation was refused; each member's meaning is in `STATUS_AND_TITLE`."""

    MALFORMED_REQUEST = "malformed-request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    QUOTA_EXCEEDED = "quota-exceeded"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    INVALID_STATE = "invalid-state"
    OPERATION_IN_PROGRESS = "operation-in-progress"
    NAME_TAKEN = "name-taken"
    VERSION_MISMATCH = "version-mismatch"
    TOO_LARGE = "too-large"
    VALIDATION_FAILED = "validation-failed"
    IDEMPOTENCY_MISMATCH = "idempotency-mismatch"
    RATE_LIMITED = "rate-limited"
    PROVIDER_ERROR = "provider-error"
    PROVIDER_UNAVAILABLE = "provider-unavailable"
    NOT_READY = "not-ready"
    INTERNAL = "internal"


STATUS_AND_TITLE: dict[ErrorCode, tuple[int, str]] = {
    ErrorCode.MALFORMED_REQUEST: (400, "The request cannot be read"),
    ErrorCode.UNAUTHENTICATED: (401, "A valid credential is needed"),
    ErrorCode.FORBIDDEN: (403, "The caller may not do this"),
    ErrorCode.QUOTA_EXCEEDED: (403, "A quota would be exceeded"),
    ErrorCode.NOT_FOUND: (404, "There is no such thing"),
    ErrorCode.METHOD_NOT_ALLOWED: (405, "The method is not allowed here"),
    ErrorCode.INVALID_STATE: (409, "The state forbids it"),
    ErrorCode.OPERATION_IN_PROGRESS: (409, "Another operation is in progress"),
    ErrorCode.NAME_TAKEN: (409, "The name is taken"),
    ErrorCode.VERSION_MISMATCH: (412, "The version does not match"),
    ErrorCode.TOO_LARGE: (413, "The request is too large"),
    ErrorCode.VALIDATION_FAILED: (422, "The request has wrong values"),
    ErrorCode.IDEMPOTENCY_MISMATCH: (422, "The idempotency key was used for another request"),
    ErrorCode.RATE_LIMITED: (429, "Too many requests"),
    ErrorCode.INTERNAL: (500, "A fault inside vmd"),
    ErrorCode.PROVIDER_ERROR: (502, "The engine or host refused or failed"),
    ErrorCode.PROVIDER_UNAVAILABLE: (503, "The engine or host cannot be reached"),
    ErrorCode.NOT_READY: (503, "The daemon is not ready"),
}


@frozen(kw_only=True)
class FieldError:
    """One wrong value of a request."""

    pointer: str  # JSON Pointer (RFC 6901) into the request
    detail: str


@frozen(kw_only=True)
class Problem:
    """An error as clients see it (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: ErrorCode
    request_id: str | None = None
    errors: tuple[FieldError, ...] | None = None
    allowed_actions: tuple[str, ...] | None = None
    operation_id: str | None = None


class Refused(Exception):
    """A request or a piece of work cannot be done; `detail` says why and what to do next."""

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        allowed_actions: Sequence[str] | None = None,
        operation_id: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.allowed_actions = None if allowed_actions is None else tuple(allowed_actions)
        self.operation_id = operation_id
        self.retry_after_seconds = retry_after_seconds

    def problem(self, request_id: str | None = None) -> Problem:
        """Return this refusal as a problem document."""
        status, title = STATUS_AND_TITLE[self.code]
        return Problem(
            type=f"/problems/{self.code}",
            title=title,
            status=status,
            detail=self.detail,
            code=self.code,
            request_id=request_id,
            errors=self.errors or None,
            allowed_actions=self.allowed_actions,
            operation_id=self.operation_id,
        )


def not_found(what: str, identifier: str) -> Refused:
    """Return the refusal for a thing that is not there, or is somebody else's."""
    return Refused(ErrorCode.NOT_FOUND, f"There is no {what} '{identifier}' that you can see.")


def invalid_value(pointer: str, detail: str) -> Refused:
    """Return the refusal for one wrong value at this JSON Pointer."""
    return Refused(ErrorCode.VALIDATION_FAILED, detail, errors=[FieldError(pointer=pointer, detail=detail)])
