import base64

import pytest

from tests.support.house import House
from vmd.model.account import Scope

WEB = """
name = "Web"
description = "Our stack."
recipe = '''
FROM {{base}}
RUN echo {{version}}
'''
ports = [8080]
env = { GREETING = "Hello, {{who}}" }
provisioning = ["echo {{who}}"]
idle_timeout_seconds = 600

[parameters.who]
description = "Whom to greet."
[parameters.version]
choices = ["1", "2"]
"""


def write(house: House, name: str, text: str) -> None:
    directory = house.data_dir / "templates"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.toml").write_text(text)


async def test_a_template_is_shown(house: House) -> None:
    write(house, "web", WEB)
    answer = await house.api.get("/templates/web")
    assert answer.status == 200
    assert answer.json == {
        "id": "web",
        "kind": "template",
        "name": "Web",
        "description": "Our stack.",
        "image": None,
        "resources": {"cpus": 1.0, "memory_mb": 1024, "disk_mb": None, "pids": 512},
        "env": {"GREETING": "Hello, {{who}}"},
        "ports": [8080],
        "provisioning": ["echo {{who}}"],
        "parameters": {
            "type": "object",
            "properties": {
                "who": {"type": "string", "description": "Whom to greet.", "maxLength": 1000},
                "version": {"type": "string", "enum": ["1", "2"]},
            },
            "required": ["who", "version"],
            "additionalProperties": False,
        },
        "ttl_seconds": None,
        "idle_timeout_seconds": 600,
        "plugins": [],
    }
    write(house, "web", WEB + 'default = "2"\n')
    assert (await house.api.get("/templates/web")).json["image"].startswith("vmd-template:web-")


async def test_the_list_has_pages(house: House) -> None:
    found: list[str] = []
    cursor = ""
    while True:
        page = (await house.api.get(f"/templates?kind=template&limit=2{cursor}")).json
        found += [item["id"] for item in page["items"]]
        assert len(page["items"]) == 2
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == ["base", "go", "java", "node", "python", "rust"]


@pytest.mark.parametrize("cursor", ["", "!", "ä", base64.urlsafe_b64encode(b"a b").decode(), "A" * 101])
async def test_a_cursor_of_another_list_is_refused(house: House, cursor: str) -> None:
    answer = await house.api.get("/templates", params={"cursor": cursor})
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")


@pytest.mark.parametrize("query", ["?limit=0", "?limit=201", "?nonesuch=1"])
async def test_wrong_queries_are_refused(house: House, query: str) -> None:
    assert (await house.api.get(f"/templates{query}")).status == 400


async def test_an_unknown_template_is_not_found(house: House) -> None:
    for name in ("nonesuch", "..%2fbase", "%00"):
        answer = await house.api.get(f"/templates/{name}")
        assert (answer.status, answer.json["code"]) == (404, "not-found")


async def test_reading_templates_needs_the_scope(house: House) -> None:
    member = await house.member("ann", scopes=(Scope.READ,))
    assert (await member.get("/templates")).status == 200
    runner = await house.member("bob", scopes=(Scope.EXEC,))
    for path in ("/templates", "/templates/base"):
        assert (await runner.get(path)).status == 403
    nobody = await house.client(None)
    assert (await nobody.get("/templates")).status == 401
