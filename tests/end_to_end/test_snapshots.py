"""Snapshots on a real engine: everything that makes a file survives, and nothing is left behind."""

import asyncio
import gzip
import io
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.process import Process, daemon_process, labelled
from tests.support.snapshots import (
    images_of,
    list_tree,
    make_tree,
    path_of,
    restore,
    run_as_root,
    take,
)

pytestmark = pytest.mark.usefixtures("engine_url")

CANARY = "canary-4711-secret"


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with daemon_process(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def api(process: Process) -> AsyncIterator[Api]:
    async with await process.start() as client:
        yield client


async def test_hostile_files_survive_everything(process: Process, tmp_path: Path) -> None:
    async with await process.start() as api:
        workspace = await api.make(name="first", env={"TOKEN": CANARY, "PLAIN": "1"}, secrets=["TOKEN"])
        await make_tree(api, workspace["id"])
        await run_as_root(api, workspace["id"], "sh", "-c", "echo disk >/opt/marker; test $TOKEN")
        tree = await list_tree(api, workspace["id"])
        snapshot = await take(api, workspace["id"], name="one", description="the first")
        assert (snapshot["status"], snapshot["name"], snapshot["description"]) == (
            "ready",
            "one",
            "the first",
        )
        assert snapshot["size_bytes"] > 2_000_000
        assert str(snapshot["manifest"]["entries"]) == tree.split()[0]
        assert await list_tree(api, workspace["id"]) == tree

        # Into another workspace, while the first runs.
        second = await restore(api, snapshot, name="second")
        assert (second["status"], second["env"], second["template"]) == ("running", {"PLAIN": "1"}, "base")
        assert await list_tree(api, second["id"]) == tree
        assert await run_as_root(api, second["id"], "cat", "/opt/marker") == "disk"
        assert await run_as_root(api, second["id"], "sh", "-c", "echo ${TOKEN-none}") == "none"

        # Back in place.
        await run_as_root(
            api, workspace["id"], "sh", "-c", "rm -rf /workspace/a* /opt/marker; echo >/workspace/new"
        )
        before = await api.workspace(workspace["id"])
        after = await restore(api, snapshot)
        assert (after["id"], after["status"]) == (workspace["id"], "running")
        assert after["connection"]["address"]
        assert after["version"] > before["version"]
        assert await list_tree(api, workspace["id"]) == tree
        assert await run_as_root(api, workspace["id"], "cat", "/opt/marker") == "disk"
        assert await run_as_root(api, workspace["id"], "sh", "-c", "echo $TOKEN") == CANARY

        # Rebuilt: the files that were restored stay, the disk is the template's.
        await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
        assert await list_tree(api, workspace["id"]) == tree
        assert await run_as_root(api, workspace["id"], "sh", "-c", "ls /opt") == ""

        # Exported, and the workspace gone.
        exported = tmp_path / "snapshot.tar"
        async with api.session.get(f"/api/v1{path_of(snapshot)}/export") as response:
            assert response.status == 200
            exported.write_bytes(await response.read())
        assert CANARY.encode() not in exported.read_bytes()
        names = subprocess.run(
            ["tar", "tf", exported], check=True, capture_output=True, text=True
        ).stdout.split()
        assert names[:3] == ["vmd-snapshot.json", "files.tar", "disk/00000000"]
        await api.done(await api.delete(f"/workspaces/{workspace['id']}", params={"keep_snapshots": "true"}))
        await api.done(await api.delete(f"/workspaces/{second['id']}"))
        kept = (await api.get(f"/workspaces/{workspace['id']}/snapshots")).json["items"]
        assert [item["id"] for item in kept] == [snapshot["id"]]
        third = await restore(api, snapshot, name="third")
        assert await list_tree(api, third["id"]) == tree
        await api.done(await api.delete(f"/workspaces/{third['id']}"))
        await api.done(await api.delete(path_of(snapshot)))
        assert labelled(process.data_dir) == []
        assert images_of(process.data_dir) == []

    async with daemon_process(tmp_path / "elsewhere") as other, await other.start() as api:
        imported = await _import(api, exported)
        assert (imported["name"], imported["status"]) == ("one", "ready")
        assert imported["manifest"] == snapshot["manifest"]
        fourth = await restore(api, imported, name="fourth")
        assert await list_tree(api, fourth["id"]) == tree
        assert await run_as_root(api, fourth["id"], "cat", "/opt/marker") == "disk"
        assert fourth["env"] == {"PLAIN": "1"}
        again = await take(api, fourth["id"])
        assert again["manifest"] == snapshot["manifest"]
        for gone in (path_of(again), path_of(imported), f"/workspaces/{fourth['id']}"):
            await api.done(await api.delete(gone))
        assert labelled(other.data_dir) == []
        assert images_of(other.data_dir) == []


async def _import(api: Api, file: Path, **params: str) -> Any:
    with file.open("rb") as content:
        answer = await api.call("POST", "/snapshots/import", data=content, params=params)
    assert answer.status == 201, answer.text
    return answer.json


async def test_a_stopped_workspace_and_what_is_made_from_its_snapshot(api: Api, process: Process) -> None:
    workspace = await api.make()
    await run_as_root(api, workspace["id"], "sh", "-c", "echo kept >/workspace/file")
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    snapshot = await take(api, workspace["id"])
    assert (await api.workspace(workspace["id"]))["status"] == "stopped"
    await api.done(await api.post(f"{path_of(snapshot)}/restore"))
    assert (await api.workspace(workspace["id"]))["status"] == "stopped"
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/start"))
    assert await run_as_root(api, workspace["id"], "cat", "/workspace/file") == "kept"
    # The snapshot goes, and the machine that was made from it goes on, also through a snapshot of its own.
    await api.done(await api.delete(path_of(snapshot)))
    await run_as_root(api, workspace["id"], "sh", "-c", "echo more >/opt/more")
    second = await take(api, workspace["id"])
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/restart"))
    another = await restore(api, second, name="another")
    assert await run_as_root(api, another["id"], "cat", "/workspace/file", "/opt/more") == "kept\nmore"
    for gone in (workspace["id"], another["id"]):
        await api.done(await api.delete(f"/workspaces/{gone}"))
    assert labelled(process.data_dir) == []
    assert images_of(process.data_dir) == []


async def test_programs_go_on_after_a_snapshot_and_what_they_wrote_is_of_one_moment(api: Api) -> None:
    workspace = await api.make()
    count = "i=0; while :; do i=$((i+1)); echo $i >>a; echo $i >>b; done"
    begun = (await api.post(f"/workspaces/{workspace['id']}/commands", {"command": count})).json
    await asyncio.sleep(0.5)
    snapshot = await take(api, workspace["id"])
    command = (await api.get(f"/workspaces/{workspace['id']}/commands/{begun['command_id']}")).json
    assert command["status"] == "running"
    before = await run_as_root(api, workspace["id"], "tail", "-n1", "/workspace/b")
    copy = await restore(api, snapshot, name="copy")
    first, second = [
        await run_as_root(api, copy["id"], "tail", "-n1", f"/workspace/{name}") for name in ("a", "b")
    ]
    assert int(first) - int(second) in (0, 1)
    assert int(before) > int(second)


async def test_an_import_that_is_wrong_leaves_nothing(api: Api, process: Process, tmp_path: Path) -> None:
    workspace = await api.make()
    snapshot = await take(api, workspace["id"])
    exported = tmp_path / "snapshot.tar"
    async with api.session.get(f"/api/v1{path_of(snapshot)}/export") as response:
        exported.write_bytes(await response.read())
    await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
    whole = exported.read_bytes()
    with tarfile.open(exported) as archive:
        members = {member.name: member for member in archive.getmembers()}
    files_at = members["files.tar"].offset_data
    disk_at = members["disk/00000000"].offset_data
    cases: dict[str, bytes] = {
        "nothing": b"",
        "cut off in the files": whole[: files_at + 700],
        "cut off in the disk": whole[: disk_at + 5_000_000],
        "without its end": whole[: members["end.json"].offset],
        "changed in the files": _changed(whole, files_at + 600),
        "changed in the disk": _changed(whole, disk_at + 3_000_000),
        "of another format": whole.replace(b'"format":1', b'"format":9', 1),
        "compressed": gzip.compress(whole[:1_000_000]),
        "a disk with a path outside": whole[:disk_at] + _outside() + whole[disk_at + len(_outside()) :],
        "something else": b"x" * 5000,
    }
    for name, content in cases.items():
        answer = await api.call("POST", "/snapshots/import", data=io.BytesIO(content))
        assert answer.status == 422, (name, answer.text)
        assert answer.json["code"] == "validation-failed", name
        assert "Traceback" not in answer.text
        assert (await api.get("/snapshots")).json["items"] == [], name
        assert labelled(process.data_dir) == [], name
        assert images_of(process.data_dir) == [], name


def _changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _outside() -> bytes:
    entry = tarfile.TarInfo("../../outside")
    return entry.tobuf(tarfile.USTAR_FORMAT)
