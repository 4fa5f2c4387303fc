import pytest

from vmd.orchestrator.presets.devcontainer.dockerfile import UnusableDockerfile, make_recipe

ALLOWED = ("vmd-base:bookworm",)


def recipe(text: str, target: str | None = None, **arguments: str) -> list[str]:
    return make_recipe(text, arguments, target, ALLOWED)[0].splitlines()


def test_every_instruction_gets_a_line_of_its_own() -> None:
    text = """# syntax=docker/dockerfile:1
        FROM debian:12   as Build
    # a comment
    RUN apt-get update \\
        # another, within
          && apt-get install \\

          curl
    FROM vmd-base:bookworm
    COPY --chown=1000 --from=build /usr/bin/curl /usr/bin/
    COPY --from=0 /x /y
    COPY . /src"""
    assert recipe(text) == [
        "FROM debian:12 AS build",
        "RUN apt-get update           && apt-get install           curl",
        "FROM vmd-base:bookworm",
        "COPY --chown=1000 --from=build /usr/bin/curl /usr/bin/",
        "COPY --from=0 /x /y",
        "COPY . /src",
    ]


def test_arguments_are_settled() -> None:
    text = 'ARG TAG=11\nARG NAME="debian"\nFROM $NAME:${TAG}\nARG A B="x y" C=1\nRUN echo $A'
    assert recipe(text, TAG="12", A='$(id) "quoted"', C="2") == [
        'ARG TAG="12"',
        'ARG NAME="debian"',
        "FROM debian:12",
        'ARG A="\\$(id) \\"quoted\\"" B="x y" C="2"',
        "RUN echo $A",
    ]
    assert recipe("ARG V\nFROM debian:${V:-12}")[1] == "FROM debian:12"


def test_a_target_ends_the_recipe() -> None:
    text = "FROM debian AS one\nRUN 1\nFROM one AS Two\nRUN 2\nFROM two\nRUN 3"
    assert recipe(text, "two") == ["FROM debian:latest AS one", "RUN 1", "FROM one AS two", "RUN 2"]
    assert recipe(text, "ONE") == ["FROM debian:latest AS one", "RUN 1"]
    assert recipe(text, "2")[-1] == "RUN 3"


def test_what_is_dropped_is_noted() -> None:
    text = "FROM --platform=linux/amd64 debian\nlabel $A=1 vmd.workspace=ws-2\nONBUILD LABEL vmd.instance=x"
    recipe, notes = make_recipe(text, {}, None, ALLOWED)
    assert recipe == "FROM debian:latest\n"
    assert notes == (
        "--platform=linux/amd64 of FROM is not honoured.",
        "LABEL is not honoured: labels say whose an image is.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "FROM vmd-snapshot:1",
        "FROM docker.io/library/vmd-snapshot:1",
        "from \\\n vmd-snapshot:1",
        "FR\\\nOM vmd-snapshot:1",
        "ARG A=vmd\nFROM ${A}-snapshot",
        "ARG A=vm\nARG B=${A}d-snapshot\nFROM $B",
        "FROM debian\nCOPY --from=vmd-snapshot:1 / /",
        "FROM debian\nCOPY --chown=1 \\\n --from=vmd-snapshot:1 / /",
        "FROM debian\nCOPY --from=0 --from=vmd-snapshot:1 / /",
        "FROM debian\nONBUILD COPY --from=vmd-snapshot:1 / /",
        "FROM debian\nCOPY --from=$X / /",
        "FROM debian\nRUN --mount=type=bind,from=vmd-snapshot:1 ls",
        "FROM debian\nRUN <<EOF\nFROM vmd-snapshot:1\nEOF",
        "# escape=`\nFROM debian\nRUN x `\nFROM vmd-snapshot:1",
        "FROM $UNKNOWN",
        "FROM ${A:+x}",
        "FROM ${A:-${B}}",
        "FROM",
        "FROM a b c",
        "RUN true",
        "",
        "FROM debian\nRUN x\\\\",
        "FROM debian\x00",
        "FROM debian\u2028FROM vmd-snapshot:1",
        "FROM debian\n" + "RUN x\n" * 3000,
        "FROM debian\n#" + "x" * 70_000,
        "ARG A=" + "x" * 900 + "\n" + "ARG A=$A$A\n" * 60 + "FROM $A",
    ],
)
def test_what_cannot_be_trusted_is_refused(text: str) -> None:
    with pytest.raises(UnusableDockerfile):
        make_recipe(text, {}, None, ALLOWED)


def test_no_id_of_an_image_can_be_meant() -> None:
    assert recipe("FROM ab12cd34ef56") == ["FROM ab12cd34ef56:latest"]
    assert recipe("FROM 0") == ["FROM 0:latest"]


def test_a_missing_target_is_refused() -> None:
    with pytest.raises(UnusableDockerfile, match="it has no stage 'x'"):
        make_recipe("FROM debian", {}, "x", ALLOWED)
