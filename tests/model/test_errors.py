import pytest

from vmd.model.errors import (
    STATUS_AND_TITLE,
    ErrorCode,
    FieldError,
    Problem,
    Refused,
    invalid_value,
    not_found,
)

# The contract's table.
STATUSES = {
    "malformed-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "quota-exceeded": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "invalid-state": 409,
    "operation-in-progress": 409,
    "name-taken": 409,
    "version-mismatch": 412,
    "too-large": 413,
    "validation-failed": 422,
    "idempotency-mismatch": 422,
    "rate-limited": 429,
    "internal": 500,
    "provider-error": 502,
    "provider-unavailable": 503,
    "not-ready": 503,
}


def test_the_codes_are_those_of_the_contract() -> None:
    assert {str(code) for code in ErrorCode} == set(STATUSES)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_its_status_and_a_title_of_its_own(code: ErrorCode) -> None:
    status, title = STATUS_AND_TITLE[code]
    assert status == STATUSES[code]
    assert [entry[1] for entry in STATUS_AND_TITLE.values()].count(title) == 1


@pytest.mark.parametrize("code", ErrorCode)
def test_a_refusal_becomes_a_problem_document(code: ErrorCode) -> None:
    problem = Refused(code, "Do that instead.").problem("req-1")
    assert problem.type == f"/problems/{code}"
    assert (problem.code, problem.status) == (code, STATUSES[code])
    assert problem.detail == "Do that instead."
    assert problem.request_id == "req-1"


def test_what_does_not_apply_to_a_problem_is_absent() -> None:
    problem = Refused(ErrorCode.FORBIDDEN, "No.").problem()
    absent = (problem.request_id, problem.errors, problem.allowed_actions, problem.operation_id)
    assert absent == (None, None, None, None)


def test_a_refusal_keeps_what_helps_its_caller() -> None:
    wrong = FieldError(pointer="/name", detail="must be a string")
    refused = Refused(
        ErrorCode.OPERATION_IN_PROGRESS,
        "Wait.",
        errors=[wrong],
        allowed_actions=["cancel", "delete"],
        operation_id="op-0000000000",
        retry_after_seconds=5,
    )
    assert refused.retry_after_seconds == 5
    assert refused.problem() == Problem(
        type="/problems/operation-in-progress",
        title="Another operation is in progress",
        status=409,
        detail="Wait.",
        code=ErrorCode.OPERATION_IN_PROGRESS,
        errors=(wrong,),
        allowed_actions=("cancel", "delete"),
        operation_id="op-0000000000",
    )


def test_that_no_action_is_allowed_is_told() -> None:
    assert Refused(ErrorCode.INVALID_STATE, "No.", allowed_actions=[]).problem().allowed_actions == ()


def test_a_refusal_reads_as_its_detail() -> None:
    assert str(Refused(ErrorCode.INTERNAL, "It broke.")) == "It broke."


def test_a_thing_that_cannot_be_seen_is_named() -> None:
    refused = not_found("workspace", "ws-0000000000")
    assert refused.code is ErrorCode.NOT_FOUND
    assert "workspace 'ws-0000000000'" in refused.detail


def test_a_wrong_value_is_named_by_its_pointer() -> None:
    refused = invalid_value("/ttl_seconds", "must be at most 60")
    assert refused.code is ErrorCode.VALIDATION_FAILED
    assert refused.errors == (FieldError(pointer="/ttl_seconds", detail="must be at most 60"),)
