from pathlib import Path
from typing import Any

import aiohttp

from tests.support.api import Api
from tests.support.house import House, open_house
from tests.support.snapshots import take
from vmd.model.workspace import Resources
from vmd.providers.base import MachineSpec, ProviderError
from vmd.providers.fake import Fault


async def examine(house: House, *, fix: bool = False) -> Any:
    connector = aiohttp.UnixConnector(str(house.data_dir / "control.sock"))
    async with Api("http://localhost", None, connector) as local:
        answer = await local.post(f"/control/doctor?fix={str(fix).lower()}")
        assert answer.status == 200, answer.text
        return [(found["kind"], found["subject"], found["is_fixed"]) for found in answer.json["findings"]]


async def test_orphans_are_found_and_on_demand_destroyed(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        await house.ready()
        kept = await house.api.make()
        spec = MachineSpec(
            workspace_id="ws-orphan00000",
            operation_id="op-1",
            hostname="x",
            node="local",
            image="vmd-base:bookworm",
            resources=Resources(),
        )
        await house.fake.create(spec)
        assert await examine(house) == [("orphan", "ws-orphan00000", False)]
        assert await examine(house, fix=True) == [("orphan", "ws-orphan00000", True)]
        assert await examine(house) == []
        assert {machine.workspace_id for machine in house.fake.host.machines.values()} == {kept["id"]}


async def test_what_a_forced_delete_left_is_found(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.daemon._queue._retry_seconds = (0.01,)
        workspace = await house.api.make()
        house.fake.order("destroy", *[Fault(error=ProviderError("busy"))] * 3)
        await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}?force=true"))
        assert await examine(house, fix=True) == [("orphan", workspace["id"], True)]
        assert house.fake.host.machines == {}


async def test_a_missing_machine_and_an_unreachable_provider_are_named(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        await house.ready()
        workspace = await house.api.make()
        house.fake.host.machines.clear()
        assert await examine(house) == [("missing", workspace["id"], False)]
        house.fake.host.is_reachable = False
        assert await examine(house) == [("unreachable", "fake", False)]


async def test_what_is_left_of_snapshots_is_found_and_what_is_missing(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        await house.ready()
        snapshot = await take(house.api, (await house.api.make())["id"])
        held = house.fake.host.snapshots
        held["snap-000000000000"] = held[snapshot["id"]]
        assert await examine(house) == [("orphan", "snap-000000000000", False)]
        assert await examine(house, fix=True) == [("orphan", "snap-000000000000", True)]
        assert set(held) == {snapshot["id"]}
        held.clear()
        assert await examine(house) == [("missing", snapshot["id"], False)]


async def test_images_that_nobody_uses_are_named_and_on_demand_removed(house: House) -> None:
    await house.ready()
    templates = house.data_dir / "templates"
    templates.mkdir()
    recipe = "FROM {{base}}\\nENV A={{version}}"
    (templates / "web.toml").write_text(f'recipe = "{recipe}"\n[parameters.version]\ndefault = "1"\n')
    default = await house.api.make(template="web")
    (first,) = house.fake.host.builds
    other = await house.api.make(template="web", parameters={"version": "2"})
    (second,) = house.fake.host.builds.keys() - {first}
    assert await examine(house) == []
    await house.api.done(await house.api.delete(f"/workspaces/{other['id']}"))
    assert await examine(house) == [("unused-image", second, False)]
    house.fake.order("remove_image", Fault(error=ProviderError("It is used.")))
    assert await examine(house, fix=True) == [("unused-image", second, False)]
    assert await examine(house, fix=True) == [("unused-image", second, True)]
    (templates / "web.toml").unlink()
    assert await examine(house, fix=True) == []
    await house.api.done(await house.api.delete(f"/workspaces/{default['id']}"))
    assert await examine(house, fix=True) == [("unused-image", first, True)]
    assert house.fake.host.images == {"vmd-base:bookworm"}
