"""What tests of snapshots do again and again."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.api import Api
from tests.support.process import instance_of
from tests.support.trees import LIST, MAKE


async def run_as_root(api: Api, workspace_id: str, *command: str, stdin: str = "") -> str:
    """Return what a command prints, which must succeed."""
    wanted = {"command": list(command), "user": "root", "stdin": stdin}
    operation = await api.wait((await api.post(f"/workspaces/{workspace_id}/commands", wanted)).json)
    output = f"/workspaces/{workspace_id}/commands/{operation['command_id']}/output"
    assert operation["result"] is not None, operation
    said = await api.get(output, params={"stream": "stdout"})
    if operation["result"]["exit_code"] != 0:
        raise AssertionError((await api.get(output, params={"stream": "stderr"})).text)
    return said.text.strip()


async def make_tree(api: Api, workspace_id: str) -> None:
    """Fill the workspace with hostile and ordinary files."""
    await run_as_root(api, workspace_id, "python3", "-", "/workspace", stdin=MAKE)


async def list_tree(api: Api, workspace_id: str) -> str:
    """Return what there is to see of the workspace's files."""
    return await run_as_root(api, workspace_id, "python3", "-", "/workspace", stdin=LIST)


async def take(api: Api, workspace_id: str, **wanted: Any) -> Any:
    """Return a snapshot that is ready."""
    operation = await api.done(await api.post(f"/workspaces/{workspace_id}/snapshots", wanted))
    return (await api.get(f"/workspaces/{workspace_id}/snapshots/{operation['snapshot_id']}")).json


def path_of(snapshot: Any) -> str:
    return f"/workspaces/{snapshot['workspace_id']}/snapshots/{snapshot['id']}"


async def restore(api: Api, snapshot: Any, **new_workspace: Any) -> Any:
    """Return the workspace that a snapshot was restored to."""
    body = {"new_workspace": new_workspace} if new_workspace else {}
    operation = await api.done(await api.post(f"{path_of(snapshot)}/restore", body))
    return await api.workspace(operation["workspace_id"])


def images_of(data_dir: Path) -> list[str]:
    """Return the names of the images that the engine holds for this daemon's snapshots."""
    command = ["docker", "images", "--format", "{{json .}}"]
    for label in (f"vmd.instance={instance_of(data_dir)}", "vmd.snapshot"):
        command += ["--filter", f"label={label}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [f"{image['Repository']}:{image['Tag']}" for image in map(json.loads, lines)]
