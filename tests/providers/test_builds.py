"""What only a real engine can show of builds: what it keeps, what it is sent, and what it says."""

import asyncio
import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator
from secrets import token_hex

import pytest

from tests.providers.test_provider import IMAGE, Said, run, spec
from tests.support.engine import private_engine
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.docker import DockerProvider

POOL = "10.214.0.0/16"


@pytest.fixture
async def docker(engine_url: str) -> AsyncIterator[DockerProvider]:
    made = DockerProvider(url=engine_url, instance=f"test-{token_hex(4)}", subnet_pool=POOL)
    yield made
    for holding in await made.holdings():
        await made.destroy(holding.workspace_id)
    for image in await made.built_images():
        await made.remove_image(image)
    await made.close()


@pytest.fixture
def image() -> str:
    return f"vmd-test-built:{token_hex(6)}"


def left_of(provider: DockerProvider, *engine: str) -> list[str]:
    """Return every container and image, intermediate ones too, that bears the daemon's label."""
    label = f"label=vmd.instance={provider._instance}"
    found = []
    for kind in (["ps", "-aq"], ["images", "-aq"]):
        command = ["docker", *engine, *kind, "--filter", label]
        found += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found


async def archive(**files: bytes) -> AsyncIterator[bytes]:
    """Yield a tar archive in small pieces, some of them empty."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = packed.getvalue()
    yield b""
    for place in range(0, len(data), 700):
        yield data[place : place + 700]


async def test_a_failed_build_leaves_no_image_of_any_step(docker: DockerProvider, image: str) -> None:
    recipe = f"""FROM {IMAGE} AS tools
RUN echo one >/one
RUN echo two >/two
FROM {IMAGE}
COPY --from=tools /one /one
RUN printf 'reason 1\\nreason 2' >&2; exit 9
"""
    said = Said()
    with pytest.raises(ProviderError) as refusal:
        await docker.build(image, recipe, said)
    assert "`RUN printf" in str(refusal.value)
    assert "non-zero code: 9. It said: reason 1 / reason 2." in str(refusal.value)
    assert said.text["stderr"] == "reason 1\nreason 2"
    assert left_of(docker) == []


async def test_a_build_that_is_left_stops_at_once(docker: DockerProvider, image: str) -> None:
    said, mark = Said(), token_hex(8)
    recipe = f"FROM {IMAGE}\nRUN echo made >/made\nRUN echo begun; sleep 3{int(mark[:6], 16)}\n"
    building = asyncio.create_task(docker.build(image, recipe, said))
    await said.until("\nbegun\n")
    sleeping = ["pgrep", "-f", f"sleep 3{int(mark[:6], 16)}"]
    assert subprocess.run(sleeping, capture_output=True).stdout != b""
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert left_of(docker) == []
    assert subprocess.run(sleeping, capture_output=True).stdout == b""


async def test_only_the_last_stage_is_kept(docker: DockerProvider, image: str) -> None:
    recipe = f"FROM {IMAGE} AS tools\nRUN echo one >/one\nFROM {IMAGE}\nCOPY --from=tools /one /one\n"
    await docker.build(image, recipe, Said())
    dangling = ["docker", "images", "-q", "-f", "dangling=true", "-f", f"label=vmd.built={image}"]
    assert subprocess.run(dangling, capture_output=True).stdout == b""
    ref = await docker.create(spec(image=image))
    await docker.start(ref, {})
    assert (await run(docker, ref, "cat /one"))[1] == "one\n"
    assert [machine.ref for machine in await docker.machines()] == [ref]


async def test_files_come_along_and_take_nobodys_place(docker: DockerProvider, image: str) -> None:
    context = archive(Dockerfile=b"FROM nonesuch\n", hello=b"hi\n" * 1000)
    await docker.build(image, f"FROM {IMAGE}\nCOPY hello Dockerfile /\n", Said(), context)
    ref = await docker.create(spec(image=image))
    await docker.start(ref, {})
    assert (await run(docker, ref, "wc -l </hello; cat /Dockerfile"))[1] == "1000\nFROM nonesuch\n"


async def test_a_context_that_breaks_off_is_the_reason(docker: DockerProvider, image: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"\0" * 512
        raise ProviderError("The repository cannot be packed.")

    with pytest.raises(ProviderError, match=r"^The repository cannot be packed\.$"):
        await docker.build(image, f"FROM {IMAGE}\n", Said(), broken())
    assert left_of(docker) == []


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (f"# A comment\nFROM {IMAGE}\nNONESUCH x\n", "line 3: unknown instruction: NONESUCH"),
        (f"FROM {IMAGE} AS a\nFROM \\\n  {IMAGE}\nNONESUCH\n", "line 4: unknown instruction: NONESUCH"),
        ("RUN true\n", "no build stage in current context"),
        ("\n", "file with no instructions"),
        (f"FROM {IMAGE}\nCOPY nonesuch /\n", "nonesuch"),
    ],
)
async def test_a_recipe_that_cannot_be_read_is_refused_with_its_line(
    docker: DockerProvider, image: str, recipe: str, reason: str
) -> None:
    with pytest.raises(ProviderError, match=f"^Building the image {image} failed.*{reason}"):
        await docker.build(image, recipe, Said())
    assert left_of(docker) == []


async def test_what_a_step_prints_comes_as_it_is(docker: DockerProvider, image: str) -> None:
    said = Said()
    recipe = f"FROM {IMAGE}\nRUN head -c 300000 /dev/zero | tr '\\0' '\\1'; echo; echo ä\n"
    await docker.build(image, recipe, said)
    assert said.text["stdout"].count("\1") == 300_000
    assert said.text["stdout"].endswith("\nä\n")


async def test_images_of_others_are_not_listed(docker: DockerProvider, image: str) -> None:
    stranger = DockerProvider(url=docker._engine.url, instance="test-stranger", subnet_pool=POOL)
    try:
        await stranger.build(image, f"FROM {IMAGE}\nENV A=b\n", Said())
        assert list(await docker.built_images()) == []
        again = f"vmd-test-other:{token_hex(6)}"
        subprocess.run(["docker", "tag", image, again], check=True)
        await stranger.remove_image(image)
        assert list(await stranger.built_images()) == []
        await stranger.remove_image(again)
    finally:
        await stranger.close()


async def test_an_image_that_lost_its_name_is_listed_by_its_id(docker: DockerProvider, image: str) -> None:
    await docker.build(image, f"FROM {IMAGE}\nENV A=b\n", Said())
    subprocess.run(["docker", "tag", IMAGE, image], check=True)
    (lost,) = await docker.built_images()
    assert lost.startswith("sha256:")
    await docker.remove_image(lost)
    await docker.remove_image(image)
    assert left_of(docker) == []


async def test_a_machine_bears_its_own_labels_whatever_its_image_bears(
    docker: DockerProvider, image: str
) -> None:
    await docker.build(image, f"FROM {IMAGE}\nENV A=b\n", Said())
    changes = docker.changes()
    assert await anext(changes) is None
    other = f"vmd-test-built:{token_hex(6)}"
    await docker.build(other, f"FROM {image}\nRUN true\n", Said())
    wanted = spec(image=other)
    ref = await docker.create(wanted)
    await docker.start(ref, {})
    async with asyncio.timeout(10):
        assert await anext(changes) == wanted.workspace_id
    await changes.aclose()  # type: ignore[attr-defined]
    command = ["docker", "inspect", "-f", "{{json .Config.Labels}}", ref]
    labels = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert labels["vmd.workspace"] == wanted.workspace_id


async def test_an_engine_that_hangs_or_dies_does_not_hold_a_build(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("builds.QUIET_SECONDS", "engine.PING_SECONDS", "engine.READ_SECONDS"):
        monkeypatch.setattr(f"vmd.providers.docker.{name}", 1.0)
    recipe = f"FROM {IMAGE}\nRUN echo made >/made\nRUN echo begun; sleep 4\n"
    async with private_engine() as engine:
        provider = DockerProvider(url=engine.url, instance="test-away", subnet_pool=POOL)
        assert await provider.has_image(IMAGE)  # a daemon has known its engine for a while
        for harm, mend in ((engine.freeze, engine.thaw), (engine.kill, None)):
            said = Said()
            building = asyncio.create_task(provider.build(image, recipe, said))
            await said.until("\nbegun\n")
            harm()
            with pytest.raises(ProviderUnavailable):
                await building
            if mend is not None:
                mend()
        await engine.start()
        said = Said()
        await provider.build(image, recipe, said)
        assert await provider.built_images() == [image]
        assert len(left_of(provider, "-H", engine.url)) == 3  # the images of its steps, and no container
        await provider.close()
