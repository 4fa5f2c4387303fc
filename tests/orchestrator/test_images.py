"""Images are built on first use, once for all who want them, and again where they are gone."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, open_house
from vmd.providers.base import ProviderError
from vmd.providers.fake import Fault

RECIPE = "recipe = '''\nFROM {{base}}\nRUN echo made\nRUN sleep 0.05\n'''\n"


async def log_of(house: House, operation: Any) -> list[str]:
    text = (await house.api.get(f"/operations/{operation['id']}/logs")).text
    return [json.loads(line)["message"] for line in text.splitlines()]


def write(house: House, name: str, text: str) -> None:
    directory = house.data_dir / "templates"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.toml").write_text(text)


async def test_an_image_is_built_on_first_use_with_its_steps_in_the_log(house: House) -> None:
    write(house, "web", RECIPE)
    created = (await house.api.post("/workspaces", {"template": "web"})).json
    seen = []
    while (operation := (await house.api.get(f"/operations/{created['id']}")).json)["finished_at"] is None:
        seen.append((operation["progress"]["phase"], operation["progress"]["percent"]))
        await asyncio.sleep(0.005)
    assert operation["status"] == "succeeded"
    assert ("build", 66) in seen
    log = await log_of(house, created)
    assert log[1:5] == [
        "Step 1/3: FROM vmd-base:bookworm",
        "Step 2/3: RUN echo made",
        "made",
        "Step 3/3: RUN sleep 0.05",
    ]
    (image,) = house.fake.host.builds
    assert log[0] == f"Building the image {image}."
    assert image.startswith("vmd-template:web-")
    again = await house.api.done(await house.api.post("/workspaces", {"template": "web"}))
    assert house.fake.host.calls["build"] == 1
    assert "Building" not in " ".join(await log_of(house, again))


async def test_a_built_in_template_is_built_and_base_is_not(house: House) -> None:
    await house.api.make(template="rust")
    (recipe, context) = next(iter(house.fake.host.builds.values()))
    assert recipe.strip().startswith("FROM vmd-base:bookworm\n")
    assert (" cargo " in recipe, context) == (True, b"")
    await house.api.make()
    assert house.fake.host.calls["build"] == 1


async def test_of_several_who_want_an_image_one_builds_it(house: House) -> None:
    write(house, "web", "recipe = '''\nFROM {{base}}\nRUN sleep 0.3\n'''\n")
    answers = [await house.api.post("/workspaces", {"template": "web"}) for _ in range(4)]
    done = [await house.api.done(answer) for answer in answers]
    assert house.fake.host.calls["build"] == 1
    logs = [" / ".join(await log_of(house, operation)) for operation in done]
    assert sum("Building the image" in log for log in logs) == 1
    waited = [log for log in logs if "Waiting for another operation that makes the image" in log]
    assert len(waited) == 3
    assert all("is there now" in log for log in waited)


async def test_who_waits_takes_over_from_who_fails(house: House) -> None:
    write(house, "web", RECIPE)
    house.fake.order("build", Fault(error=ProviderError("The engine coughed."), delay_seconds=0.2))
    answers = [(await house.api.post("/workspaces", {"template": "web"})).json for _ in range(2)]
    done = [await house.api.wait(answer) for answer in answers]
    assert sorted(operation["status"] for operation in done) == ["failed", "succeeded"]
    failed = next(operation for operation in done if operation["status"] == "failed")
    assert failed["error"]["detail"] == "The engine coughed."
    assert house.fake.host.calls["build"] == 2


async def test_who_waits_takes_over_from_who_is_cancelled(house: House) -> None:
    write(house, "web", "recipe = '''\nFROM {{base}}\nRUN sleep 0.5\n'''\n")
    first = (await house.api.post("/workspaces", {"template": "web"})).json
    await house.api.until_phase(first["id"], "build")
    second = (await house.api.post("/workspaces", {"template": "web"})).json
    await house.api.until_phase(second["id"], "build")
    await house.api.delete(f"/operations/{first['id']}")
    assert (await house.api.wait(first))["status"] == "cancelled"
    assert (await house.api.wait(second))["status"] == "succeeded"
    assert house.fake.host.calls["build"] == 2


async def test_a_build_that_fails_is_the_workspaces_reason(house: House) -> None:
    write(house, "web", "recipe = '''\nFROM {{base}}\nRUN exit 3\n'''\n")
    created = (await house.api.post("/workspaces", {"template": "web"})).json
    operation = await house.api.wait(created)
    assert (operation["status"], operation["error"]["code"]) == ("failed", "provider-error")
    assert "at step 2 of 2, `RUN exit 3`" in operation["error"]["detail"]
    workspace = await house.api.workspace(created["workspace_id"])
    assert workspace["status"] == "failed"
    assert "`RUN exit 3`" in workspace["last_error"]["detail"]
    assert house.fake.host.machines == {}


async def test_a_rebuild_builds_an_image_that_is_gone(house: House) -> None:
    write(house, "web", RECIPE)
    workspace = await house.api.make(template="web")
    (image,) = house.fake.host.builds
    built = dict(house.fake.host.builds)
    house.fake.host.images.discard(image)
    house.fake.host.builds.clear()
    (house.data_dir / "templates" / "web.toml").unlink()
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
    assert house.fake.host.builds == built


async def test_a_create_goes_on_with_the_build_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "web.toml").write_text("recipe = '''\nFROM {{base}}\nRUN sleep 0.5\n'''\n")
    async with open_house(tmp_path) as house:
        created = (await house.api.post("/workspaces", {"template": "web"})).json
        await house.api.until_phase(created["id"], "build")
        host = house.fake.host
    assert host.builds == {}
    async with open_house(tmp_path, host=host) as house:
        assert (await house.api.wait(created))["status"] == "succeeded"
        assert len(host.builds) == 1


@pytest.mark.parametrize("is_used", [True, False])
async def test_a_changed_recipe_is_another_image(house: House, is_used: bool) -> None:
    write(house, "web", RECIPE)
    before = (await house.api.get("/templates/web")).json["image"]
    if is_used:
        await house.api.make(template="web")
    write(house, "web", RECIPE.replace("made", "changed"))
    after = (await house.api.get("/templates/web")).json["image"]
    assert before != after
    await house.api.make(template="web")
    assert house.fake.host.builds.keys() == ({before, after} if is_used else {after})
