from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.api import Api
from tests.support.house import House, open_house


@pytest.fixture
def plugin_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    for plugin_id, text in {
        "alpha": 'name = "Alpha"\nversion = "3"\ndescription = "First."',
        "zulu": 'env = { Z = "1" }\nports = [9000]\nprovisioning = ["touch zulu"]',
        "broken": "colour = 1",
    }.items():
        (directory / plugin_id).mkdir(parents=True)
        (directory / plugin_id / "plugin.toml").write_text(text)
    return directory


async def test_plugins_are_listed_page_by_page(tmp_path: Path, plugin_dir: Path) -> None:
    async with open_house(tmp_path) as house:
        everything = (await house.api.get("/plugins")).json
        assert [found["id"] for found in everything["items"]] == ["alpha", "postgresql", "redis", "zulu"]
        assert everything["next_cursor"] is None
        assert everything["items"][0] == {
            "id": "alpha",
            "name": "Alpha",
            "description": "First.",
            "version": "3",
        }
        first = (await house.api.get("/plugins", params={"limit": 3})).json
        rest = (await house.api.get("/plugins", params={"limit": 3, "cursor": first["next_cursor"]})).json
        assert first["items"] + rest["items"] == everything["items"]
        assert rest["next_cursor"] is None
        for cursor in ("!", "L2V0Yw"):  # the last is /etc
            refused = await house.api.get("/plugins", params={"cursor": cursor})
            assert (refused.status, refused.json["code"]) == (400, "malformed-request")


async def test_who_may_read_may_list_plugins(house: House) -> None:
    reader = await house.member("reader", scopes=("workspaces:read",))
    assert (await reader.get("/plugins")).status == 200
    executor = await house.member("executor", scopes=("exec",))
    assert (await executor.get("/plugins")).status == 403


async def test_what_results_is_recorded_in_the_workspace(tmp_path: Path, plugin_dir: Path) -> None:
    async with open_house(tmp_path) as house:
        workspace = await house.api.make(plugins=["zulu"], env={"Y": "2"}, provisioning=["touch mine"])
        assert workspace["plugins"] == ["zulu"]
        assert workspace["env"] == {"Z": "1", "Y": "2"}
        assert workspace["ports"] == [9000]
        assert workspace["provisioning"] == ["touch zulu", "touch mine"]
        assert sorted(house.fake.host.files[workspace["id"]]) == ["mine", "zulu"]
        hidden = await house.api.make(plugins=["zulu"], env={"Z": "own"}, secrets=["Z"])
        assert hidden["env"] == {}


@pytest.mark.parametrize(
    ("plugins", "pointer", "why"),
    [
        (["zulu", "none"], "/plugins/1", "is unknown; there are: alpha, postgresql, redis, zulu"),
        (["broken"], "/plugins/0", "is broken: broken/plugin.toml: /colour: is not known here"),
        (["zulu", "zulu"], "/plugins/1", "is there twice"),
    ],
)
async def test_a_create_refuses_what_there_is_not(
    tmp_path: Path, plugin_dir: Path, plugins: list[str], pointer: str, why: str
) -> None:
    async with open_house(tmp_path) as house:
        for path in ("/workspaces", "/workspaces?dry_run=true"):
            refused = await house.api.post(path, {"plugins": plugins})
            assert (refused.status, refused.json["code"]) == (422, "validation-failed")
            assert refused.json["errors"][0]["pointer"] == pointer
            assert why in refused.json["detail"]
        assert (await house.api.get("/workspaces")).json["items"] == []


async def test_a_broken_one_is_named_by_the_doctor(tmp_path: Path, plugin_dir: Path) -> None:
    async with open_house(tmp_path) as house:
        await house.ready()
        connector = aiohttp.UnixConnector(str(house.data_dir / "control.sock"))
        async with Api("http://localhost", None, connector) as local:
            findings: Any = (await local.post("/control/doctor")).json["findings"]
        assert [(found["kind"], found["subject"]) for found in findings] == [("broken-plugin", "broken")]
        assert "/colour: is not known here" in findings[0]["detail"]
