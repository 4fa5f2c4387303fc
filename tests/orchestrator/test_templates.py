import os
from pathlib import Path

import pytest
from attrs import evolve

from tests.support.house import House, open_house
from vmd.model.template import TemplateKind
from vmd.model.workspace import Resources
from vmd.orchestrator.templates import Catalogue


async def test_team_templates_are_read_and_a_broken_one_breaks_only_itself(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "web.toml").write_text(
        'description = "Web"\nports = [8080]\nprovisioning = ["touch made"]\nttl_seconds = 7200\n'
        'env = { MODE = "dev", OTHER = "x" }\n[resources]\nmemory_mb = 2048\n'
    )
    (templates / "broken.toml").write_text("ports = [99999]\n")
    (templates / "worse.toml").write_text("= nonsense")
    async with open_house(tmp_path) as house:
        workspace = await house.api.make(template="web", env={"OTHER": "y"}, provisioning=["touch mine"])
        assert workspace["template"] == "web"
        assert workspace["resources"]["memory_mb"] == 2048
        assert (workspace["ports"], workspace["ttl_seconds"]) == ([8080], 7200)
        assert workspace["env"] == {"MODE": "dev", "OTHER": "y"}
        assert workspace["parameters"] == {}
        assert sorted(house.fake.host.files[workspace["id"]]) == ["made", "mine"]
        forever = await house.api.make(template="web", ttl_seconds=None)
        assert forever["expires_at"] is None
        broken = await house.api.post("/workspaces", {"template": "broken"})
        assert (broken.status, broken.json["errors"][0]["pointer"]) == (422, "/template")
        assert "broken.toml: /ports/0: must be at most 65535" in broken.json["detail"]
        unknown = await house.api.post("/workspaces", {"template": "none"})
        assert "there are base, go, java, node, python, rust, web" in unknown.json["detail"]
        assert (await house.api.post("/workspaces", {"template": "worse"})).status == 422


GREETER = """
env = { GREETING = "Hello, {{who}}" }
provisioning = ["echo {{who}}"]
[parameters.who]
[parameters.count]
type = "integer"
default = 2
minimum = 1
"""


def write(house: House, name: str, text: str) -> Path:
    directory = house.data_dir / "templates"
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


async def test_parameters_are_recorded_and_shown(house: House) -> None:
    write(house, "greeter", GREETER)
    wanted = {"template": "greeter", "parameters": {"who": "'; rm -rf /"}}
    planned = await house.api.post("/workspaces?dry_run=true", wanted)
    assert planned.json["parameters"] == {"who": "'; rm -rf /", "count": 2}
    workspace = await house.api.make(**wanted)
    assert workspace["parameters"] == {"who": "'; rm -rf /", "count": 2}
    assert workspace["env"]["GREETING"] == "Hello, '; rm -rf /"
    assert workspace["provisioning"] == ['echo "${VMD_PARAM_WHO}"']
    (listed,) = (await house.api.get("/workspaces")).json["items"]
    assert listed["parameters"] == workspace["parameters"]


async def test_wrong_parameters_are_refused_with_their_pointers(house: House) -> None:
    write(house, "greeter", GREETER)
    wanted = {"template": "greeter", "parameters": {"count": 0, "x/y": 1}}
    answer = await house.api.post("/workspaces", wanted)
    assert (answer.status, answer.json["code"]) == (422, "validation-failed")
    assert [error["pointer"] for error in answer.json["errors"]] == [
        "/parameters/x~1y",
        "/parameters/who",
        "/parameters/count",
    ]
    none = await house.api.post("/workspaces", {"parameters": {"who": "x"}})
    assert none.status == 422
    assert "the parameters of the template 'base' are: none" in none.json["detail"]
    for wrong in ("text", [1], None):
        answer = await house.api.post("/workspaces", {"template": "greeter", "parameters": wrong})
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/parameters")
    assert (await house.api.get("/workspaces")).json["items"] == []


@pytest.mark.parametrize(
    "text", ["", "'; rm -rf /", '"$(id)`id`\\', "a\n\tb ", "{{count}} {{who}} ${HOME}", "ä€😀"]
)
async def test_the_machine_gets_exactly_the_given_text(house: House, text: str) -> None:
    write(house, "greeter", GREETER)
    await house.api.make(template="greeter", parameters={"who": text})
    (wanted,) = house.fake.host.specs.values()
    assert wanted.env["VMD_PARAM_WHO"] == text
    assert wanted.env["GREETING"] == f"Hello, {text}"


async def test_a_change_of_the_directory_takes_effect_at_once(house: House) -> None:
    async def ids() -> list[str]:
        return [item["id"] for item in (await house.api.get("/templates?kind=template")).json["items"]]

    built_in = ["base", "go", "java", "node", "python", "rust"]
    assert await ids() == built_in
    path = write(house, "web", 'name = "One"\n')
    assert await ids() == [*built_in, "web"]
    before = path.stat()
    path.write_text('name = "Two"\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (await house.api.get("/templates/web")).json["name"] == "Two"
    path.write_text("broken")
    assert await ids() == built_in
    assert (await house.api.post("/workspaces?dry_run=true", {"template": "web"})).status == 422
    path.unlink()
    answer = await house.api.post("/workspaces?dry_run=true", {"template": "web"})
    assert "is unknown" in answer.json["detail"]


async def test_a_team_template_takes_the_place_of_a_built_in_one(house: House) -> None:
    write(house, "python", 'name = "Ours"\nimage = "vmd-base:bookworm"\n')
    assert (await house.api.get("/templates/python")).json["name"] == "Ours"
    assert (await house.api.make(template="python"))["template"] == "python"
    assert house.fake.host.builds == {}
    write(house, "python", "broken")
    assert (await house.api.get("/templates/python")).status == 404
    refused = await house.api.post("/workspaces", {"template": "python"})
    assert "python.toml: " in refused.json["detail"]


async def test_presets_are_made_out_of_templates_and_listed_with_them(tmp_path: Path) -> None:
    catalogue = Catalogue(
        tmp_path,
        "base:1",
        Resources(),
        presets=lambda templates: [
            evolve(templates["python"], id=name, kind=TemplateKind.PRESET) for name in ("django", "python")
        ],
    )
    await catalogue.refresh()
    django = catalogue.find("django")
    assert django is not None
    assert django.kind is TemplateKind.PRESET
    assert django.image == catalogue.resolve("python").image
    assert catalogue.resolve("python").kind is TemplateKind.TEMPLATE
    assert [template.id for template in catalogue.list_after("python", 2)] == ["rust", "django"]


async def test_templates_come_before_presets_and_pages_join(house: House) -> None:
    found: list[tuple[str, str]] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": "7", **({"cursor": cursor} if cursor else {})}
        page = (await house.api.get("/templates", params=params)).json
        found += [(item["kind"], item["id"]) for item in page["items"]]
        cursor = page["next_cursor"]
    kinds = [kind for kind, _ in found]
    assert kinds == sorted(kinds, reverse=True)
    assert ("preset", "django") in found
    for kind in ("template", "preset"):
        ids = [name for of, name in found if of == kind]
        assert ids == sorted(set(ids))
        listed = (await house.api.get("/templates", params={"kind": kind, "limit": "200"})).json["items"]
        assert [item["id"] for item in listed] == ids
