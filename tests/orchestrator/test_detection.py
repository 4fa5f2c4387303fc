"""Workspaces whose requests name a repository and no template, on a fake host."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, open_house
from vmd.providers.base import ProviderError
from vmd.providers.fake import FakeHost, Fault

URL = "https://example.test/shop.git"
DJANGO = {"requirements.txt": "Django\n", "manage.py": "", "a.py": "", ".python-version": "3.9\n"}
BOTH = {
    "backend/requirements.txt": "Django\n",
    "backend/a.py": "",
    "frontend/package.json": '{"dependencies": {"react": "19"}, "devDependencies": {"vite": "6"}}',
    "frontend/package-lock.json": "{}",
    "frontend/a.tsx": "",
}
DEVCONTAINER = ".devcontainer/devcontainer.json"
OTHER_BASE = "debian:12"


def host(files: dict[str, str] | None) -> FakeHost:
    made = FakeHost(repos={URL: "c" * 40}, trees={} if files is None else {URL: files})
    made.images.add(OTHER_BASE)
    return made


async def log_of(house: House, operation: Any) -> list[str]:
    answer = await house.api.get(f"/operations/{operation['id']}/logs")
    return [json.loads(line)["message"] for line in answer.text.splitlines()]


async def make(house: House, **wanted: Any) -> tuple[Any, Any, list[str]]:
    """Return a workspace of the repository, its create, and what that logged."""
    await house.ready()
    operation = await house.api.done(await house.api.post("/workspaces", {"repo": {"url": URL}, **wanted}))
    workspace = await house.api.workspace(operation["workspace_id"])
    return workspace, operation, await log_of(house, operation)


async def test_nothing_that_is_known_stays_with_the_default_template(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(None)) as house:
        workspace, operation, log = await make(house)
        assert (workspace["template"], workspace["ports"], workspace["provisioning"]) == ("base", [], [])
        assert operation["result"] == {"changed": True}
        assert "Nothing that is known was detected; the template base is used." in log
        assert house.fake.host.calls["create"] == 1


async def test_a_preset_is_picked_and_its_machine_replaces_the_first_one(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BOTH)) as house:
        workspace, operation, log = await make(house)
        assert workspace["template"] == "django+react"
        assert workspace["ports"] == [8000, 5173]
        assert [step.split("{")[0] for step in workspace["provisioning"]] == [
            "cd -- backend && ",
            "cd -- frontend && ",
        ]
        assert workspace["repo"]["commit"] == "c" * 40
        ((image, (recipe, _)),) = house.fake.host.builds.items()
        assert "nodejs" in recipe
        ((ref, spec),) = [
            (ref, spec) for ref, spec in house.fake.host.specs.items() if ref in house.fake.host.machines
        ]
        assert spec.image == image
        assert ref.endswith("-2")
        assert operation["result"]["detected"]["template"] == "django+react"
        assert "Detected django+react: Found Django in backend, React in frontend." in log
        assert "backend/requirements.txt depends on django." in log
        assert "These fit as well: django, react." in log
        listed = (await house.api.get("/workspaces", params={"template": "django+react"})).json["items"]
        assert [one["id"] for one in listed] == [workspace["id"]]


async def test_a_declared_version_that_is_not_there_is_said_in_log_and_answer(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(DJANGO)) as house:
        _, operation, log = await make(house)
        (note,) = operation["result"]["detected"]["notes"]
        assert note.startswith(".python-version asks for Python 3.9; the built-in image has 3.11.2.")
        assert note in log


async def test_what_a_request_says_wins(tmp_path: Path) -> None:
    files = {
        DEVCONTAINER: json.dumps(
            {
                "image": OTHER_BASE,
                "containerEnv": {"A": "theirs", "B": "theirs", "TOKEN": "theirs"},
                "forwardPorts": [1234],
                "postCreateCommand": "true",
                "hostRequirements": {"cpus": 2, "memory": "2gb"},
            }
        )
    }
    async with open_house(tmp_path, host=host(files)) as house:
        workspace, _, _ = await make(
            house,
            env={"A": "mine", "TOKEN": "hidden"},
            secrets=["TOKEN"],
            ports=[],
            provisioning=["echo mine"],
            resources={"cpus": 0.5},
        )
        assert workspace["env"] == {"A": "mine", "B": "theirs"}
        assert workspace["ports"] == []
        assert workspace["provisioning"] == ["true", "echo mine"]
        assert (workspace["resources"]["cpus"], workspace["resources"]["memory_mb"]) == (0.5, 2048)
        ref = next(iter(house.fake.host.machines))
        assert house.fake.host.secrets[ref] == {"TOKEN": "hidden"}
        assert house.fake.host.specs[ref].image == OTHER_BASE


async def test_a_template_that_is_named_is_not_second_guessed(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BOTH)) as house:
        workspace, _, log = await make(house, template="base")
        assert workspace["template"] == "base"
        assert not any("Detected" in line for line in log)


async def test_a_dry_run_says_that_the_template_will_be_detected(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BOTH)) as house:
        for wanted, is_detecting in (
            ({"repo": {"url": URL}}, True),
            ({"repo": {"url": URL}, "template": "base"}, False),
            ({}, False),
        ):
            plan = (await house.api.post("/workspaces", wanted, params={"dry_run": "true"})).json
            assert (plan["template"], plan["is_detecting"]) == ("base", is_detecting)
        assert house.fake.host.machines == {}


async def test_what_a_devcontainer_does_not_get_is_in_the_log(tmp_path: Path) -> None:
    files = {
        DEVCONTAINER: """{ // ours
            "image": "debian:12", "features": {"x": {}}, "mounts": ["/:/host"], "runArgs": ["--privileged"],
            "initializeCommand": "touch /pwned", "postCreateCommand": "echo ready", "remoteUser": "vscode",
        }"""
    }
    async with open_house(tmp_path, host=host(files)) as house:
        workspace, _, log = await make(house)
        assert (workspace["template"], workspace["provisioning"]) == ("devcontainer", ["echo ready"])
        for key in ("features", "mounts", "runArgs", "initializeCommand"):
            assert any(line.startswith(f"{DEVCONTAINER}: {key} is not honoured: ") for line in log)
        assert "ready" in log
        assert not any("no user vscode" in line for line in log)


async def test_a_user_that_the_image_has_not_is_said(tmp_path: Path) -> None:
    files = {
        DEVCONTAINER: '{"image": "debian:12", "postCreateCommand": "echo ready", "remoteUser": "nobody-here"}'
    }
    async with open_house(tmp_path, host=host(files)) as house:
        _, _, log = await make(house)
        assert "The image has no user nobody-here; provisioning runs as uid 1000." in log


async def test_more_than_the_quota_is_asked_for_in_vain(tmp_path: Path) -> None:
    files = {DEVCONTAINER: '{"image": "debian:12", "hostRequirements": {"cpus": 32}}'}
    async with open_house(tmp_path, host=host(files), quota__cpus=4) as house:
        workspace, operation, log = await make(house)
        assert workspace["resources"]["cpus"] == 1
        note = (
            "32 processors and 1024 MiB are asked for, and 1 and 1024 MiB stay, because the quota 'cpus' is "
            "4; 0 are in use and this would take 32 more."
        )
        assert note in log
        assert note in operation["result"]["detected"]["notes"]


async def test_an_image_that_cannot_be_made_leaves_the_default_one(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BOTH)) as house:
        house.fake.order("build", Fault(error=ProviderError("No such package.")))
        workspace, _, log = await make(house)
        assert workspace["template"] == "django+react"
        assert "No such package. The image of the template base is used instead." in log
        assert [spec.image for spec in house.fake.host.specs.values()] == ["vmd-base:bookworm"]


async def test_an_image_that_the_repository_names_and_nobody_has_fails_with_what_to_do(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, host=host({DEVCONTAINER: '{"image": "nowhere.test/x"}'})) as house:
        await house.ready()
        created = (await house.api.post("/workspaces", {"repo": {"url": URL}})).json
        operation = await house.api.wait(created)
        assert operation["status"] == "failed"
        assert f"{DEVCONTAINER} asks for it; name a template in the request" in operation["error"]["detail"]
        workspace = await house.api.workspace(created["workspace_id"])
        assert workspace["status"] == "failed"
        house.fake.host.images.add("nowhere.test/x:latest")
        await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
        assert (await house.api.workspace(workspace["id"]))["template"] == "devcontainer"


async def test_a_rebuild_detects_what_a_failed_create_did_not_come_to(tmp_path: Path) -> None:
    made = host(DJANGO)
    commit = made.repos.pop(URL)
    async with open_house(tmp_path, host=made) as house:
        await house.ready()
        created = (await house.api.post("/workspaces", {"repo": {"url": URL}, "ports": [1]})).json
        assert (await house.api.wait(created))["status"] == "failed"
        made.repos[URL] = commit
        path = f"/workspaces/{created['workspace_id']}"
        await house.api.done(await house.api.post(f"{path}/actions/rebuild"))
        workspace = await house.api.workspace(created["workspace_id"])
        assert (workspace["template"], workspace["ports"]) == ("django", [1])
        assert len(made.machines) == 1
        await house.api.done(await house.api.post(f"{path}/actions/rebuild"))
        again = await house.api.workspace(created["workspace_id"])
        assert again["provisioning"] == workspace["provisioning"]


BUILT = {
    DEVCONTAINER: '{"build": {"dockerfile": "Dockerfile"}, "postCreateCommand": "echo ready"}',
    ".devcontainer/Dockerfile": "FROM vmd-base:bookworm\nCOPY tool /bin/\n",
    ".devcontainer/tool": "",
}


async def test_an_image_is_built_from_the_repositorys_files(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BUILT)) as house:
        workspace, _, _ = await make(house)
        ((image, (recipe, context)),) = house.fake.host.builds.items()
        assert image.startswith(f"vmd-devcontainer:{workspace['id']}-")
        assert f'LABEL vmd.workspace="{workspace["id"]}"' in recipe
        assert b".devcontainer/tool" in context
        assert [spec.image for ref, spec in house.fake.host.specs.items() if ref.endswith("-2")] == [image]


async def test_a_rebuild_makes_an_image_anew_that_is_gone(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BUILT)) as house:
        workspace, _, _ = await make(house)
        (image,) = house.fake.host.builds
        house.fake.host.images.discard(image)
        await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
        assert image in house.fake.host.images
        (machine,) = house.fake.host.machines.values()
        assert house.fake.host.specs[machine.ref].image == image


@pytest.mark.parametrize("files", [BOTH, BUILT], ids=["detected", "built from its files"])
@pytest.mark.parametrize(
    ("method", "number"),
    [
        *(("create", 1), ("start", 1), ("execute", 1), ("execute", 2), ("execute", 3), ("build", 1)),
        *(("discard", 1), ("create", 2), ("start", 2), ("execute", 4), ("execute", 5)),
    ],
)
@pytest.mark.parametrize("has_effect", [False, True])
async def test_a_create_that_is_cut_off_at_any_step_goes_on(
    tmp_path: Path, files: dict[str, str], method: str, number: int, has_effect: bool
) -> None:
    made = host(files)
    async with open_house(tmp_path, host=made) as house:
        await house.ready()
        hung = Fault(delay_seconds=3600, has_effect=has_effect)
        house.fake.order(method, *([Fault()] * (number - 1)), hung)
        created = (await house.api.post("/workspaces", {"repo": {"url": URL}})).json
        async with asyncio.timeout(10):
            while made.calls[method] < number:
                await asyncio.sleep(0.01)
    made.faults.clear()
    async with open_house(tmp_path, host=made) as house:
        operation = await house.api.wait(created)
        assert operation["status"] == "succeeded", operation
        workspace = await house.api.workspace(created["workspace_id"])
        assert (workspace["template"], workspace["status"]) == (
            "devcontainer" if files is BUILT else "django+react",
            "running",
        )
        assert len(workspace["provisioning"]) == (1 if files is BUILT else 2)
        (machine,) = made.machines.values()
        assert made.specs[machine.ref].image in made.builds
        assert operation["result"]["detected"]["template"] == workspace["template"]
        await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
        assert (made.machines, made.files) == ({}, {})


async def test_a_create_that_is_cancelled_while_it_looks_leaves_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=host(BOTH)) as house:
        await house.ready()
        house.fake.order("build", Fault(delay_seconds=3600))
        created = (await house.api.post("/workspaces", {"repo": {"url": URL}})).json
        async with asyncio.timeout(5):
            while house.fake.host.calls["build"] == 0:
                await asyncio.sleep(0.01)
        await house.api.delete(f"/operations/{created['id']}")
        assert (await house.api.wait(created))["status"] == "cancelled"
        assert house.fake.host.machines == {}
