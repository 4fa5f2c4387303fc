from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from vmd.model.errors import Refused
from vmd.model.plugin import Plugin
from vmd.model.template import Template
from vmd.model.workspace import NewWorkspace, Resources, Service, total_resources
from vmd.orchestrator.plugin_files import MAX_FILE_BYTES, load_plugins
from vmd.orchestrator.plugins import MAX_SERVICES, Plugins

TEMPLATE = Template(id="web", name="Web", image="i", env={"A": "template", "B": "template"}, ports=(80, 81))


def plugin(plugin_id: str, *services: str, **changes: Any) -> Plugin:
    made = Plugin(
        id=plugin_id, name=plugin_id, services=tuple(Service(name=name, image="i") for name in services)
    )
    return evolve(made, **changes)


def plugins(*given: Plugin, **broken: str) -> Plugins:
    return Plugins({found.id: found for found in given}, broken)


def write(directory: Path, plugin_id: str, text: str) -> None:
    (directory / plugin_id).mkdir()
    (directory / plugin_id / "plugin.toml").write_text(text)


def test_the_built_in_ones_are_built_on_the_base_image() -> None:
    loaded = load_plugins(Path("/none"), "team/base:1")
    assert (sorted(loaded.plugins), loaded.broken) == (["postgresql", "redis"], {})
    for found in loaded.plugins.values():
        [service] = found.services
        assert service.recipe is not None
        assert service.recipe.strip().startswith("FROM team/base:1\n")
        assert (service.name, service.data is not None, service.ready is not None) == (found.id, True, True)
        assert service.name in "".join(found.env.values())
    other = load_plugins(Path("/none"), "team/base:2")
    assert len(loaded.images | other.images) == 4  # another base makes another image


def test_a_folder_says_all_of_a_plugin(tmp_path: Path) -> None:
    write(
        tmp_path,
        "search",
        """
        name = "Search"
        description = "Finds things."
        version = "2"
        ports = [9200]
        provisioning = ["touch found"]
        env = { SEARCH_URL = "http://search:9200" }
        [[services]]
        name = "search"
        image = "team/search:2"
        command = ["search", "--all"]
        env = { HEAP = "1g" }
        data = "/var/lib/search"
        memory_mb = 2048
        cpus = 2
        ready = "search --ping"
        ready_seconds = 5
        """,
    )
    assert load_plugins(tmp_path, "base").plugins["search"] == Plugin(
        id="search",
        name="Search",
        description="Finds things.",
        version="2",
        env={"SEARCH_URL": "http://search:9200"},
        ports=(9200,),
        provisioning=("touch found",),
        services=(
            Service(
                name="search",
                image="team/search:2",
                command=("search", "--all"),
                env={"HEAP": "1g"},
                data="/var/lib/search",
                memory_mb=2048,
                cpus=2.0,
                ready="search --ping",
                ready_seconds=5,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("= nonsense", "Invalid"),
        ("colour = 'red'", "/colour: is not known here; known are name, description"),
        ("[env]\nBAD-NAME = 'x'", "the name of an environment variable"),
        ("[[services]]\nname = 'a'", "/services/0: must have either image or recipe"),
        ("[[services]]\nname = 'a'\nimage = 'i'\nrecipe = 'FROM i'", "either image or recipe"),
        ("[[services]]\nname = 'A b'\nimage = 'i'", "/services/0/name: must be a DNS label"),
        ("[[services]]\nname = 'a'\nimage = 'i'\ndata = '/a/../b'", "/services/0/data: must be an absolute"),
        ("[[services]]\nname = 'a'\nimage = 'i'\ndata = '/'", "/services/0/data: must be an absolute"),
        ("[[services]]\nname = 'a'\nimage = 'i'\nmemory_mb = 1", "/services/0/memory_mb: must be at least"),
        ("[[services]]\nname = 'a'\nimage = 'i'\nready_seconds = 9999", "ready_seconds: must be at most"),
        ("[[services]]\nname = 'a'\nimage = 'i'\n" * 2, "/services/1/name: 'a' is there twice"),
        ("[[services]]\nname = 'a'\nimage = 'i'\n" * (MAX_SERVICES + 1), "/services: must have at most"),
        ("ports = [0]", "/ports/0: must be at least 1"),
        ("version = 2", "/version: must be a string"),
        ("name = 2026-01-01", "/name: must be a string"),
        ("a = " + "[" * 5000, "recursion"),
        (f"description = '{'x' * MAX_FILE_BYTES}'", "it is larger than"),
    ],
)
def test_a_broken_one_says_why_and_breaks_only_itself(tmp_path: Path, text: str, why: str) -> None:
    write(tmp_path, "bad", text)
    write(tmp_path, "good", "")
    loaded = load_plugins(tmp_path, "base")
    assert sorted(loaded.plugins) == ["good", "postgresql", "redis"]
    assert loaded.broken["bad"].startswith("bad/plugin.toml: ")
    assert why in loaded.broken["bad"]


def test_folders_that_cannot_be_plugins_are_named(tmp_path: Path) -> None:
    write(tmp_path, "two words", "")
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "plugin.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "plugin.toml").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "README").write_text("not one")
    loaded = load_plugins(tmp_path, "base")
    assert sorted(loaded.broken) == ["binary", "empty", "strange", "two words"]
    assert "the folder's name must be" in loaded.broken["two words"]
    assert "no such file" in loaded.broken["empty"]


def test_a_folder_takes_the_place_of_a_built_in_one_even_when_broken(tmp_path: Path) -> None:
    write(tmp_path, "redis", "description = 'ours'")
    write(tmp_path, "postgresql", "= nonsense")
    loaded = load_plugins(tmp_path, "base")
    assert [found.description for found in loaded.plugins.values()] == ["ours"]
    assert list(loaded.broken) == ["postgresql"]


def test_the_request_wins_over_plugins_and_these_over_the_template() -> None:
    one = plugin(
        "one", "db", env={"B": "one", "C": "one", "D": "one"}, ports=(81, 82), provisioning=("p one",)
    )
    two = plugin("two", "cache", env={"E": "two"}, ports=(83,), provisioning=("p two",))
    template = evolve(TEMPLATE, plugins=("one",), provisioning=("p template",))
    wanted = NewWorkspace(plugins=("two", "one"), env={"C": "request"}, provisioning=("p request",))
    merged = plugins(one, two).merge(template, wanted)
    assert merged.plugins == ("one", "two")
    assert merged.env == {"A": "template", "B": "one", "C": "request", "D": "one", "E": "two"}
    assert merged.ports == (80, 81, 82, 83)
    assert merged.provisioning == ("p template", "p one", "p two", "p request")
    assert [service.name for service in merged.services] == ["db", "cache"]
    assert plugins(one, two).merge(template, evolve(wanted, ports=(1,))).ports == (1,)


@pytest.mark.parametrize(
    ("wanted", "template", "pointer", "why"),
    [
        (("one", "none"), (), "/plugins/1", "The plugin 'none' is unknown; there are: one, same, two."),
        (("bad",), (), "/plugins/0", "The plugin 'bad' is broken: bad/plugin.toml: no. Ask"),
        (("one", "one"), (), "/plugins/1", "'one' is there twice"),
        (("one", "same"), (), "/plugins/1", "The plugin 'same' has a service 'db', as 'one' does"),
        (
            ("one", "two"),
            (),
            "/plugins/1",
            "'two' sets URL to another value than 'one' does; give URL in env",
        ),
        ((), ("none",), "/template", "The template 'web' wants the plugin 'none', which is unknown"),
        ((), ("bad",), "/template", "wants the plugin 'bad', which is broken"),
        ((), ("one", "same"), "/template", "has a service 'db'"),
        (("two",), ("one",), "/plugins/0", "'two' sets URL"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(
    wanted: tuple[str, ...], template: tuple[str, ...], pointer: str, why: str
) -> None:
    given = plugins(
        plugin("one", "db", env={"URL": "1"}),
        plugin("same", "db"),
        plugin("two", env={"URL": "2"}),
        bad="bad/plugin.toml: no.",
    )
    with pytest.raises(Refused) as refused:
        given.merge(evolve(TEMPLATE, plugins=template), NewWorkspace(plugins=wanted))
    assert refused.value.errors[0].pointer == pointer
    assert why in refused.value.detail


def test_a_request_may_decide_between_two_values() -> None:
    given = plugins(plugin("one", env={"URL": "1"}), plugin("two", env={"URL": "2"}))
    merged = given.merge(TEMPLATE, NewWorkspace(plugins=("one", "two"), env={"URL": "3"}))
    assert merged.env["URL"] == "3"
    agreeing = plugins(plugin("one", env={"URL": "1"}), plugin("two", env={"URL": "1"}))
    assert agreeing.merge(TEMPLATE, NewWorkspace(plugins=("one", "two"))).env["URL"] == "1"


def test_services_have_a_limit_together() -> None:
    given = plugins(plugin("one", *"abcdef"), plugin("two", *"ghijk"))
    with pytest.raises(Refused, match="They bring 11 services; 10 are the most"):
        given.merge(TEMPLATE, NewWorkspace(plugins=("one", "two")))


def test_services_count_towards_what_a_workspace_uses() -> None:
    services = [Service(name=name, image="i", memory_mb=100, cpus=0.5) for name in "ab"]
    total = total_resources(Resources(cpus=1, memory_mb=512, pids=64), services)
    assert total == Resources(cpus=2.0, memory_mb=712, pids=64)
