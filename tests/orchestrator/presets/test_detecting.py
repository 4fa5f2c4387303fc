import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orchestrator.presets.repositories import NEXT, POM, REPOSITORIES
from tests.orchestrator.presets.support import found, read, templates
from vmd.model.preset import Preset
from vmd.model.structuring import structure
from vmd.model.workspace import Env, Ports, Provisioning, ShortName
from vmd.orchestrator.presets import list_presets, load_rules, make_tree
from vmd.orchestrator.presets.detecting import wanted_first
from vmd.orchestrator.presets.tree import MAX_FILE_BYTES, MAX_FILES, MAX_PATHS


@pytest.mark.parametrize("name", REPOSITORIES)
def test_repositories_get_their_presets(name: str) -> None:
    repository = REPOSITORIES[name]
    candidates = found(repository.files)
    assert tuple(candidate.preset.id for candidate in candidates) == repository.presets
    if not candidates:
        return
    best = candidates[0].preset
    assert best.kind == "preset"
    assert best.evidence
    assert {one.path for one in best.evidence} >= set(repository.evidence)
    if repository.template != "?":
        assert best.template == repository.template
    if repository.ports is not None:
        assert best.ports == repository.ports
    if repository.parts:
        assert tuple((part.ecosystem, part.directory) for part in best.parts) == repository.parts
    said = {(version.of, version.value, version.path) for version in best.versions}
    assert said >= set(repository.versions)
    if repository.steps:
        assert len(best.provisioning) == len(repository.steps)
        for piece, step in zip(repository.steps, best.provisioning, strict=True):
            assert piece in step
    for piece in repository.notes:
        assert any(piece in note for note in best.notes), best.notes


@pytest.mark.parametrize("name", REPOSITORIES)
def test_every_preset_is_one_that_a_request_could_have_asked_for(name: str) -> None:
    for candidate in found(REPOSITORIES[name].files):
        must_be_sound(candidate.preset)


def must_be_sound(preset: Preset) -> None:
    """Fail unless a preset's values are within the limits of a workspace, and can be told."""
    plain = msgspec.json.decode(msgspec.json.encode(preset))
    structure(plain["env"], Env)
    structure(plain["ports"], Ports)
    structure(plain["provisioning"], Provisioning)
    structure(plain["id"], ShortName)
    assert all(note.isprintable() for note in preset.notes), preset.notes


def test_a_version_that_is_met_is_not_complained_of() -> None:
    (candidate,) = found({"requirements.txt": "x", ".python-version": "3.11", "a.py": ""})
    assert candidate.preset.notes == ()


def test_several_ecosystems_share_an_image_of_their_own() -> None:
    candidate = found(REPOSITORIES["a back end in Python and a front end in Node"].files)[0]
    preset = candidate.preset
    assert preset.recipe is not None
    assert preset.recipe.startswith("FROM vmd-base:bookworm\n")
    assert {"python3-venv", "nodejs", "npm"} <= set(preset.recipe.split())
    assert preset.image.startswith("vmd-preset:")
    again = found(REPOSITORIES["a back end in Python and a front end in Node"].files)[0]
    assert again.preset.image == preset.image


def test_the_largest_templates_resources_and_the_frameworks_own_ports_are_taken() -> None:
    java = {"api/pom.xml": POM, "api/A.java": ""}
    both = found({**java, "web/package.json": NEXT, "web/a.ts": ""})
    assert both[0].preset.resources.memory_mb == both[1].preset.resources.memory_mb == 2048
    assert both[2].preset.resources.memory_mb == 1024
    plain = found({"pom.xml": "<project/>", "A.java": ""})[0].preset
    assert (plain.ports, both[1].preset.ports) == ((9999,), (8080,))


def test_an_ecosystem_without_a_template_installs_debians_packages() -> None:
    (candidate, _) = found(REPOSITORIES["Rails"].files)
    assert candidate.preset.recipe is not None
    assert "ruby-full" in candidate.preset.recipe
    assert candidate.preset.env == {"BUNDLE_PATH": ".bundle"}


def test_huge_files_are_not_read_and_said_to_be() -> None:
    (candidate,) = found({"package.json": " " * MAX_FILE_BYTES + NEXT, "a.js": ""})
    assert candidate.preset.id == "node-project"
    note = "package.json is not looked at: it is larger than 256 KiB, or cannot be read."
    assert note in candidate.preset.notes


def test_names_that_are_not_text_are_left_out_and_counted() -> None:
    (candidate,) = found({"go.mod": "module x", "\udcff/package.json": NEXT, "a\nb/package.json": NEXT})
    assert candidate.preset.id == "go-project"
    assert "2 files are not looked at, because their names cannot be printed." in candidate.preset.notes


def test_contents_that_are_not_utf_8_are_no_trouble() -> None:
    (candidate,) = found({"requirements.txt": b"\xff\xfeflask\nDjango\n\x00", "a.py": ""})
    assert candidate.preset.id == "django"


def test_a_tree_holds_so_many_paths_and_no_more() -> None:
    tree = make_tree((f"f{number}".encode(), "") for number in range(MAX_PATHS + 5))
    assert len(tree.blobs) == MAX_PATHS
    assert tree.is_cut


def test_so_many_files_are_asked_for_and_no_more() -> None:
    tree = read({f"d{number}/package.json": "{}" for number in range(500)})
    assert len(wanted_first(tree, load_rules())) <= MAX_FILES
    assert tree.contents


def test_large_repositories_are_looked_through() -> None:
    files: dict[str, str | bytes] = {f"src/d{n % 500}/f{n}.py": "" for n in range(MAX_PATHS - 2)}
    (candidate,) = found({**files, "pyproject.toml": '[project]\nname="x"\n'})
    assert candidate.preset.id == "python-project"


@pytest.mark.parametrize(
    "line",
    ["a" * 200_000, " " * 200_000, "\n" * 200_000, "'" * 200_000, "id" + " " * 200_000, '"a-' * 60_000],
)
@pytest.mark.parametrize(
    "file", ["setup.py", "build.gradle", "mix.exs", "go.mod", "Gemfile", ".python-version"]
)
def test_every_pattern_comes_to_an_end(file: str, line: str) -> None:
    candidates = found({file: line, "requirements.txt": line})
    assert candidates[0].preset.evidence


def test_workspaces_of_hostile_patterns_are_looked_through() -> None:
    patterns = msgspec.json.encode(["**/*/" * 60 + "x", "*a" * 90, *(f"{n}*" for n in range(5000))]).decode()
    files: dict[str, str | bytes] = {f"a/b/c/d{number}/package.json": "{}" for number in range(60)}
    candidates = found({**files, "package.json": f'{{"workspaces": {patterns}}}'})
    assert candidates[0].preset.parts[0].ecosystem == "node"


NAMES = sorted({sign.file.replace("*", "x") for one in load_rules().ecosystems for sign in one.signs})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dependencies", "workspaces", "engines", "node", "packageManager", "next"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["", "a/", "b/c/"]), st.sampled_from(NAMES)).map("".join),
        st.binary(max_size=200) | JSON.map(msgspec.json.encode),
        max_size=6,
    )
)
def test_whatever_stands_in_the_files_presets_are_sound(files: dict[str, str | bytes]) -> None:
    for candidate in found(files):
        must_be_sound(candidate.preset)


def test_the_presets_there_are_can_be_listed() -> None:
    presets = list_presets(load_rules(), templates())
    by_id = {preset.id: preset for preset in presets}
    assert len(by_id) == len(presets)
    assert {"django", "nextjs", "rails", "python-project", "dotnet-project"} <= set(by_id)
    assert not set(by_id) & set(templates())
    assert (by_id["django"].template, by_id["django"].ports) == ("python", (8000,))
    assert by_id["dotnet-project"].notes
    for preset in presets:
        must_be_sound(preset)
