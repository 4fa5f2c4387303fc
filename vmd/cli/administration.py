"""The administrator's commands: tokens, users and their quotas, doctor."""

import argparse
import re
from typing import Any
from urllib.parse import quote

from vmd.cli.client import request
from vmd.cli.failure import Failure
from vmd.cli.local import with_local_daemon
from vmd.cli.settings import add_arguments, data_dir_of, load_settings
from vmd.model.account import Role, Scope

_LIMITS = {
    "workspaces": "workspaces, with those in trash",
    "running": "workspaces that are on at once",
    "cpus": "processors of those that are on",
    "memory_mb": "memory of those that are on, in MiB",
    "disk_mb": "disk of all, in MiB",
    "snapshots": "snapshots",
    "max_ttl_seconds": "seconds that a workspace may live",
}
_HARMLESS = frozenset({"unused-image"})  # findings that cost nothing but space
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_commands(commands: Any) -> None:
    """Add token, user and doctor."""
    token = commands.add_parser("token", help="make, list and revoke API tokens").add_subparsers(
        metavar="COMMAND", required=True
    )
    create = _command(token, "create", "make a token and print its secret, this once", _create_token)
    create.add_argument("name")
    create.add_argument("--user", default="admin", help="whose token (default: admin)")
    create.add_argument("--scope", action="append", choices=[str(scope) for scope in Scope], dest="scopes")
    create.add_argument("--workspace", metavar="ID", help="the one workspace that it reaches")
    create.add_argument("--expires", type=_seconds, metavar="30d", help="lifetime, with unit s, m, h, d or w")
    listing = _command(token, "list", "list tokens", _list_tokens)
    listing.add_argument("--user", default="admin", help="whose tokens (default: admin)")
    revoke = _command(token, "revoke", "revoke a token", _revoke_token)
    revoke.add_argument("token", metavar="ID")
    revoke.add_argument("--user", default="admin", help="whose token (default: admin)")

    user = commands.add_parser("user", help="add and list users, and set their quotas").add_subparsers(
        metavar="COMMAND", required=True
    )
    add = _command(user, "add", "add a user", _add_user)
    add.add_argument("name")
    add.add_argument("--role", choices=[str(role) for role in Role], default=str(Role.MEMBER))
    _command(user, "list", "list users", _list_users)
    quota = _command(user, "quota", "show a user's limits and what they use, or set limits", _quota)
    quota.add_argument("name")
    for name, meaning in _LIMITS.items():
        quota.add_argument(
            f"--{name.replace('_', '-')}",
            type=_limit,
            metavar="N|none|default",
            help=f"the most {meaning}; none for no limit, default for what the settings say",
        )

    doctor = _command(commands, "doctor", "compare the books with what the providers hold", _doctor)
    doctor.add_argument(
        "--fix", action="store_true", help="destroy what belongs to no workspace, and images that nobody uses"
    )


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def _call(given: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    settings = load_settings(given).settings
    user = getattr(given, "user", "admin")
    return with_local_daemon(
        settings, data_dir_of(given), user, lambda endpoint: request(endpoint, method, path, body)
    )


def _list(given: argparse.Namespace, path: str) -> list[Any]:
    items, cursor = [], ""
    while True:
        page = _call(given, "GET", f"{path}?limit=200{cursor}")
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = f"&cursor={page['next_cursor']}"


def _create_token(given: argparse.Namespace) -> int:
    wanted = {"name": given.name, "workspace_id": given.workspace, "expires_in_seconds": given.expires}
    if given.scopes:
        wanted["scopes"] = given.scopes
    print(_call(given, "POST", "/api/v1/tokens", wanted)["secret"])
    return 0


def _list_tokens(given: argparse.Namespace) -> int:
    for token in _list(given, "/api/v1/tokens"):
        scopes = ",".join(token["scopes"])
        print(f"{token['id']}  {token['name']}  {scopes}  expires {token['expires_at'] or 'never'}")
    return 0


def _revoke_token(given: argparse.Namespace) -> int:
    _call(given, "DELETE", f"/api/v1/tokens/{quote(given.token, safe='')}")
    return 0


def _add_user(given: argparse.Namespace) -> int:
    print(_call(given, "POST", "/api/v1/users", {"name": given.name, "role": given.role})["id"])
    return 0


def _list_users(given: argparse.Namespace) -> int:
    for user in _list(given, "/api/v1/users"):
        print(f"{user['id']}  {user['name']}  {user['role']}")
    return 0


def _quota(given: argparse.Namespace) -> int:
    path = f"/api/v1/quota?owner={quote(given.name, safe='')}"
    quota = _call(given, "GET", path)
    wanted = {name: value for name in _LIMITS if (value := getattr(given, name)) is not None}
    if wanted:
        own = {**quota["own"], **wanted}
        body = {name: None if value == "none" else value for name, value in own.items() if value != "default"}
        quota = _call(given, "PUT", path, body)
    for name in _LIMITS:
        limit, used = quota["limits"][name], quota["use"].get(name)
        shown = "none" if limit is None else limit
        whose = "own" if name in quota["own"] else "default"
        print(f"{name}  {shown}  {whose}" + ("" if used is None else f"  {used} in use"))
    return 0


def _limit(text: str) -> Any:
    if text in ("none", "default"):
        return text
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,3}", text):
        return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no limit: give a number, none or default")


def _doctor(given: argparse.Namespace) -> int:
    fix = "true" if given.fix else "false"
    findings = _call(given, "POST", f"/control/doctor?fix={fix}")["findings"]
    for finding in findings:
        fixed = " (fixed)" if finding["is_fixed"] else ""
        print(f"{finding['kind']}: {finding['subject']}: {finding['detail']}{fixed}")
    if not findings:
        print("All is well: the books and the providers agree.")
    if all(finding["is_fixed"] or finding["kind"] in _HARMLESS for finding in findings):
        return 0
    raise Failure("not all is well; `vmd doctor --fix` destroys orphans, the rest needs a look")


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a lifetime such as 30d or 12h")
    return int(match[1]) * _UNITS[match[2]]
