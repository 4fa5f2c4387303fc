from pathlib import Path

from tests.support.house import open_house


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
        assert sorted(house.fake.host.files[workspace["id"]]) == ["made", "mine"]
        forever = await house.api.make(template="web", ttl_seconds=None)
        assert forever["expires_at"] is None
        broken = await house.api.post("/workspaces", {"template": "broken"})
        assert (broken.status, broken.json["errors"][0]["pointer"]) == (422, "/template")
        assert "broken.toml: /ports/0: must be at most 65535" in broken.json["detail"]
        unknown = await house.api.post("/workspaces", {"template": "none"})
        assert "there are base, web" in unknown.json["detail"]
        assert (await house.api.post("/workspaces", {"template": "worse"})).status == 422
