import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmd.model.operation import FINAL_STATUSES, Operation, OperationStatus, OperationType
from vmd.model.structuring import Unstructurable, structure
from vmd.model.workspace import (
    BRANCH_PATTERN,
    POWERED,
    REPO_URL_PATTERN,
    TRANSITIONAL,
    TRANSITIONS,
    Action,
    Repo,
    Status,
    allowed_actions,
    may_lead_to,
)

# The design's table: what is allowed, as far as it is implemented; where force is meant, stop is asked again.
ALLOWED = {
    Status.PENDING: {"cancel"},
    Status.CREATING: {"cancel"},
    Status.STARTING: {"cancel", "stop"},
    Status.RUNNING: {"stop", "restart", "rebuild", "snapshot", "restore"},
    Status.STOPPING: {"stop"},
    Status.STOPPED: {"start", "rebuild", "snapshot", "restore"},
    Status.REBUILDING: {"cancel"},
    Status.RESTORING: {"cancel"},
    Status.FAILED: {"rebuild", "restore", "start"},
    Status.TRASHED: {"undelete"},
    Status.DELETING: set(),
}
LEADS_TO = {
    Status.PENDING: {"creating"},
    Status.CREATING: {"running", "failed"},
    Status.STARTING: {"running", "stopped"},
    Status.RUNNING: {"stopping", "rebuilding", "restoring", "stopped"},
    Status.STOPPING: {"stopped"},
    Status.STOPPED: {"starting", "rebuilding", "restoring", "trashed", "running"},
    Status.REBUILDING: {"running", "stopped"},
    Status.RESTORING: {"running", "stopped"},
    Status.FAILED: {"rebuilding", "restoring", "starting"},
    Status.TRASHED: {"stopped", "deleting"},
    Status.DELETING: set(),
}
# The status that each action on a free workspace begins with.
BEGINS_WITH = {
    Action.START: Status.STARTING,
    Action.STOP: Status.STOPPING,
    Action.RESTART: Status.STOPPING,
    Action.REBUILD: Status.REBUILDING,
    Action.RESTORE: Status.RESTORING,
    Action.UNDELETE: Status.STOPPED,
    Action.DELETE: Status.DELETING,
}

statuses = st.sampled_from(list(Status))
kinds = st.sampled_from(list(OperationType))


def operation(kind: OperationType, *, may_cancel: bool = False) -> Operation:
    return Operation(
        id="op-0000000000",
        type=kind,
        status=OperationStatus.RUNNING,
        workspace_id="ws-0000000000",
        actor="admin",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        may_cancel=may_cancel,
    )


def test_every_status_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert set(ALLOWED) == set(LEADS_TO) == set(Status)


@pytest.mark.parametrize("status", Status)
def test_every_status_leads_where_the_design_says(status: Status) -> None:
    assert LEADS_TO[status] <= TRANSITIONS[status]


def test_every_status_can_be_reached_from_the_first() -> None:
    reached = {Status.PENDING}
    while further := {after for status in reached for after in TRANSITIONS[status]} - reached:
        reached |= further
    assert reached == set(Status)


@pytest.mark.parametrize("status", set(Status) - {Status.DELETING})
def test_deleting_can_be_reached_from_every_other_status(status: Status) -> None:
    assert Status.DELETING in TRANSITIONS[status]


def test_nothing_comes_back_from_deleting() -> None:
    assert TRANSITIONS[Status.DELETING] == frozenset()


def test_nothing_becomes_pending_again() -> None:
    assert may_lead_to(Status.PENDING) == ()


@pytest.mark.parametrize("status", Status)
def test_no_status_leads_to_itself(status: Status) -> None:
    assert status not in TRANSITIONS[status]


@pytest.mark.parametrize("status", TRANSITIONAL - {Status.DELETING})
def test_every_transitional_status_can_be_settled(status: Status) -> None:
    assert TRANSITIONS[status] - TRANSITIONAL


@given(statuses, statuses)
def test_what_may_lead_to_a_status_is_what_the_transitions_say(before: Status, after: Status) -> None:
    assert (before in may_lead_to(after)) == (after in TRANSITIONS[before])


def test_a_machine_uses_processors_only_while_it_may_be_on() -> None:
    assert set(Status) - POWERED == {Status.STOPPED, Status.FAILED, Status.TRASHED, Status.DELETING}


@pytest.mark.parametrize("status", Status)
def test_a_free_workspace_allows_what_the_design_says(status: Status) -> None:
    assert set(allowed_actions(status, None)) == (ALLOWED[status] - {"cancel"}) | {"delete"}


@pytest.mark.parametrize("status", Status)
def test_what_a_free_workspace_allows_begins_with_a_status_it_may_go_to(status: Status) -> None:
    for action in set(allowed_actions(status, None)) - {Action.SNAPSHOT}:  # which changes no status
        assert BEGINS_WITH[action] is status or BEGINS_WITH[action] in TRANSITIONS[status]


def test_a_failed_workspace_without_a_machine_cannot_be_started() -> None:
    assert set(allowed_actions(Status.FAILED, None, has_machine=False)) == {"rebuild", "restore", "delete"}


@settings(deadline=None)
@given(statuses, st.none() | kinds, st.booleans(), st.booleans())
def test_delete_is_always_allowed(
    status: Status, kind: OperationType | None, may_cancel: bool, has_machine: bool
) -> None:
    current = None if kind is None else operation(kind, may_cancel=may_cancel)
    actions = allowed_actions(status, current, has_machine=has_machine)
    assert Action.DELETE in actions
    assert list(actions) == [action for action in Action if action in actions]


@settings(deadline=None)
@given(statuses, kinds, st.booleans())
def test_a_current_operation_leaves_nothing_that_the_status_forbids(
    status: Status, kind: OperationType, may_cancel: bool
) -> None:
    assert set(allowed_actions(status, operation(kind, may_cancel=may_cancel))) <= ALLOWED[status] | {
        "delete"
    }


@settings(deadline=None)
@given(statuses, kinds, st.booleans())
def test_cancel_is_allowed_exactly_while_the_operation_and_the_status_allow_it(
    status: Status, kind: OperationType, may_cancel: bool
) -> None:
    actions = allowed_actions(status, operation(kind, may_cancel=may_cancel))
    assert (Action.CANCEL in actions) == (may_cancel and "cancel" in ALLOWED[status])


@settings(deadline=None)
@given(statuses, kinds)
def test_no_operation_leaves_room_for_another_start_restart_rebuild_or_undelete(
    status: Status, kind: OperationType
) -> None:
    left = set(allowed_actions(status, operation(kind, may_cancel=True)))
    assert left <= {"cancel", "stop", "delete"}


@pytest.mark.parametrize(
    ("status", "kind", "may_cancel", "left"),
    [
        (Status.PENDING, OperationType.CREATE, True, {"cancel", "delete"}),
        (Status.CREATING, OperationType.CREATE, True, {"cancel", "delete"}),
        (Status.CREATING, OperationType.CREATE, False, {"delete"}),
        (Status.STARTING, OperationType.START, True, {"cancel", "stop", "delete"}),
        (Status.STARTING, OperationType.START, False, {"stop", "delete"}),
        (Status.STARTING, OperationType.RESTART, False, {"stop", "delete"}),
        (Status.STOPPING, OperationType.STOP, False, {"stop", "delete"}),
        (Status.STOPPING, OperationType.RESTART, False, {"stop", "delete"}),
        (Status.REBUILDING, OperationType.REBUILD, True, {"cancel", "delete"}),
        (Status.REBUILDING, OperationType.REBUILD, False, {"delete"}),
        (Status.STOPPING, OperationType.EXPIRE, False, {"stop", "delete"}),
        (Status.STOPPED, OperationType.EXPIRE, False, {"delete"}),
        (Status.DELETING, OperationType.DELETE, False, {"delete"}),
    ],
)
def test_a_current_operation_leaves_allowed_what_the_design_says(
    status: Status, kind: OperationType, may_cancel: bool, left: set[str]
) -> None:
    assert set(allowed_actions(status, operation(kind, may_cancel=may_cancel))) == left


def test_final_operations_are_those_that_ended() -> None:
    assert {"succeeded", "failed", "cancelled"} == FINAL_STATUSES


ACCEPTED_URLS = [
    "https://github.com/octocat/hello-world",
    "https://github.com/octocat/hello-world.git",
    "https://github.com/octocat/hello-world/",
    "http://gitea.local:3000/a/b.git",
    "http://127.0.0.1:8080/x.git",
    "http://[::1]:8080/x.git",
    "https://example.com",
    "https://example.com/",
    "https://example.com/~ann/repo",
    "https://example.com/a%20b",
    "https://example.com/repo?service=x",
    "https://dev.azure.com/org/project/_git/repo",
    "https://example.com/a@b",
    "https://EXAMPLE.com/X",
    "ssh://git@github.com/octocat/hello.git",
    "ssh://git@example.com:2222/octocat/hello.git",
    "ssh://example.com/srv/git/x",
    "ssh://git@[2001:db8::1]/x.git",
    "ssh://my_user.name-2@example.com/~/x",
    "git@github.com:octocat/hello.git",
    "git@example.com:/srv/git/hello.git",
    "git@example.com:~ann/hello.git",
    "example.com:hello.git",
    "git@host-1.example.com:x",
    "git@example.com:./x",
]
REFUSED_URLS = [
    "",
    " ",
    "hello",
    "/srv/git/hello.git",
    "./hello",
    "../hello",
    "~/hello",
    "file:///srv/git/hello.git",
    "file://localhost/srv/git/hello.git",
    "FILE:///srv/git",
    "ext::sh -c id",
    "ext::sh",
    "ext::ssh%20-oProxyCommand=id",
    "fd::17",
    "transport::https://example.com/x",
    "git://example.com/x.git",
    "ftp://example.com/x.git",
    "ftps://example.com/x",
    "rsync://example.com/x",
    "git+ssh://git@example.com/x",
    "ssh+git://git@example.com/x",
    "javascript://example.com/x",
    "HTTPS://example.com/x",
    "--upload-pack=id",
    "-oProxyCommand=id",
    "--",
    "-u:x",
    "ssh://-oProxyCommand=id/x",
    "ssh://-oProxyCommand=id@example.com/x",
    "ssh://git@-oProxyCommand=id/x",
    "ssh://example.com",
    "ssh:///x",
    "git@-oProxyCommand=id:x",
    "-oProxyCommand=id@example.com:x",
    "git@example.com:-x",
    "git@example.com:/-x",
    "git@example.com:",
    "git@example.com",
    "@example.com:x",
    "https://",
    "https:///x",
    "https://-x/y",
    "https://user@example.com/x",
    "https://user:secret@example.com/x",
    "https://:secret@example.com/x",
    "http://token@example.com/x",
    "https://user:se/cret@example.com:80:x y",
    "ssh://git:secret@example.com/x",
    "git:secret@example.com:x",
    "https://example.com\\@evil.example/x",
    "https://example.com?x",
    "https://example.com/a b",
    "https://example.com/a\tb",
    "https://example.com/a\nb",
    "https://example.com/x\n",
    "\nhttps://example.com/x",
    " https://example.com/x",
    "https://example.com/x ",
    "https://example.com/x\r\n",
    "https://example.com/\0",
    "https://example.com/\x1b[31m",
    "https://example.com/\x7f",
    "https://exämple.com/x",
    "https://example.com/ü",
    "https://example.com/\u202e",
    "https://еxample.com/x",
    "git@example.com:x\n",
    "git@example.com:x y",
    "ssh://git@example.com/x\n",
    "https://example.com/" + "x" * 2000,
]
ACCEPTED_BRANCHES = [
    "main",
    "master",
    "HEAD",
    "v1.0",
    "1.0",
    "0",
    "a",
    "_x",
    "feature/login",
    "feature/a/b/c",
    "release-2026.10",
    "a.b",
    "a.locked",
    "lock",
    "a-lock",
    "fix#42",
    "a@b",
    "x@",
    "a+b",
    "a=b",
    "a%b",
    "a,b",
    "UPPER",
    "refs/heads/main",
    "dependabot/npm_and_yarn/x-1.2.3",
    "a/-b",
    "x" * 255,
]
REFUSED_BRANCHES = [
    "",
    " ",
    "-",
    "-x",
    "--upload-pack=id",
    "--",
    ".",
    "..",
    ".x",
    "a..b",
    "a/../b",
    "a.",
    "a/",
    "/a",
    "a//b",
    "a/.b",
    "a.lock",
    "a.lock/b",
    "a/b.lock",
    "@",
    "@{-1}",
    "a@{1}",
    "a b",
    "a~1",
    "a^",
    "a:b",
    "a?",
    "a*",
    "a[b",
    "a\\b",
    "a'b",
    'a"b',
    "a;b",
    "a|b",
    "a&b",
    "a$b",
    "a`b",
    "a(b",
    "a<b",
    "+refs/heads/x",
    "#x",
    "a\tb",
    "a\nb",
    "main\n",
    "\nmain",
    "main\r",
    "main\0",
    "main\x1b",
    "main\x7f",
    "mäin",
    "main\u202e",
    "分支",
    "x" * 256,
]


def test_the_patterns_are_tried_with_forty_examples_each() -> None:
    assert len(ACCEPTED_URLS) + len(REFUSED_URLS) >= 40
    assert len(ACCEPTED_BRANCHES) + len(REFUSED_BRANCHES) >= 40


@pytest.mark.parametrize("url", ACCEPTED_URLS)
def test_a_url_that_git_reads_over_http_or_ssh_is_accepted(url: str) -> None:
    assert structure({"url": url}, Repo).url == url


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(Unstructurable) as caught:
        structure({"url": url}, Repo)
    assert [error.pointer for error in caught.value.errors] == ["/url"]


@pytest.mark.parametrize("branch", ACCEPTED_BRANCHES)
def test_a_name_that_git_takes_for_a_branch_is_accepted(branch: str) -> None:
    assert structure({"url": "https://example.com/x", "branch": branch}, Repo).branch == branch


@pytest.mark.parametrize("branch", REFUSED_BRANCHES)
def test_any_other_branch_is_refused(branch: str) -> None:
    with pytest.raises(Unstructurable) as caught:
        structure({"url": "https://example.com/x", "branch": branch}, Repo)
    assert [error.pointer for error in caught.value.errors] == ["/branch"]


@settings(deadline=None, max_examples=500)
@given(st.from_regex(REPO_URL_PATTERN, fullmatch=True))
def test_no_accepted_url_can_be_an_option_another_transport_or_more_than_a_line(url: str) -> None:
    assert not url.startswith("-")
    assert not re.match(r"[A-Za-z0-9]+::", url)
    assert not re.match(r"(?!https?://|ssh://)[A-Za-z0-9+.-]*://", url)
    assert re.fullmatch(r"[!-~]+", url.removesuffix("\n"))


@settings(deadline=None, max_examples=500)
@given(st.from_regex(BRANCH_PATTERN, fullmatch=True))
def test_no_accepted_branch_can_be_an_option_or_a_range(branch: str) -> None:
    assert not branch.startswith(("-", ".", "/"))
    assert ".." not in branch
    assert "@{" not in branch
    assert re.fullmatch(r"[!-~]+", branch.removesuffix("\n"))
