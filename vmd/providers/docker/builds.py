"""Images that the engine builds from recipes.

Each stage of a recipe begins with labels of ours, so that whatever a build makes, finished or not, is known
as this daemon's: when a build fails or its caller leaves, what it made is found by them and taken away.
"""

import asyncio
import json
import re
import tarfile
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

import aiohttp
import structlog
from aiodocker.exceptions import DockerError
from aiohttp import ClientTimeout

from vmd.providers.base import Output, ProviderError, ProviderUnavailable
from vmd.providers.docker.body import LABEL_INSTANCE, LABEL_WORKSPACE
from vmd.providers.docker.engine import CONNECT_SECONDS, QUIET_SECONDS, Engine

LABEL_BUILT = "vmd.built"  # the name that the image was built under; what is made from it inherits the label
TAIL_LINES = 5
TAIL_CHARACTERS = 1000

_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.DOTALL)
# What the engine says between the steps, of use to nobody here.
_ASIDE = re.compile(
    r"( ---> [0-9a-f]{12}| ---> Running in [0-9a-f]{12}|Removing intermediate container [0-9a-f]{12}"
    r"|Successfully built [0-9a-f]{12}|Successfully tagged \S+)\n"
)
_ERROR_COLOUR, _NO_COLOUR = "\x1b[91m", "\x1b[0m"  # around what a step printed as an error

log = structlog.get_logger()


class Builds:
    """Builds images, and knows those that this daemon built."""

    def __init__(self, engine: Engine, instance: str) -> None:
        self._engine = engine
        self._instance = instance
        self._under_way: set[str] = set()

    async def build(
        self, image: str, recipe: str, output: Output, context: AsyncIterable[bytes] | None
    ) -> None:
        """Have the engine build an image, and leave nothing else behind."""
        self._under_way.add(image)
        try:
            await self._build(image, recipe, output, context)
        finally:
            await self._clean_up(image)
            self._under_way.discard(image)
        if await self._engine.find(f"images/{image}/json") is None:
            raise ProviderUnavailable(
                f"The engine stopped building {image} without a word; it is asked again."
            )

    async def _build(
        self, image: str, recipe: str, output: Output, context: AsyncIterable[bytes] | None
    ) -> None:
        labelled = _Labelled(recipe, {LABEL_INSTANCE: self._instance, LABEL_BUILT: image})
        archive = _Archive(labelled.text, context)
        account = _Account(image, output)
        following = asyncio.ensure_future(self._follow(archive, image, account))
        try:
            heard = -1
            while not following.done():
                await asyncio.wait({following}, timeout=QUIET_SECONDS)
                if not following.done() and account.count == heard:
                    await self._engine.ping()
                heard = account.count
            await following
        except (DockerError, ProviderError, ProviderUnavailable) as error:
            if archive.error is not None:
                raise archive.error from None
            if account.has_failed or isinstance(error, ProviderUnavailable):
                raise
            said = error.message if isinstance(error, DockerError) else error
            why = str(said).removeprefix("The engine refused: ")
            raise account.failed(labelled.without_our_lines(why)) from None
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, archive: "_Archive", image: str, account: "_Account") -> None:
        params: dict[str, str | int] = {
            "t": image,
            "dockerfile": archive.name,
            "rm": 1,
            "forcerm": 1,
            "pull": 0,
        }
        with self._engine.translated():
            async with self._engine.streams._query(
                "build",
                "POST",
                params=params,
                data=archive.pieces(),
                headers={"Content-Type": "application/x-tar"},
                timeout=ClientTimeout(sock_connect=CONNECT_SECONDS),
            ) as response:
                try:
                    async for line in _lines(response):
                        await account.take(json.loads(line))
                finally:
                    response.close()  # which stops a build that goes on

    async def _clean_up(self, image: str) -> None:
        """Take away what a build left: the container of a step, and the images of steps and stages."""
        labels = [f"{LABEL_INSTANCE}={self._instance}", f"{LABEL_BUILT}={image}"]
        try:
            for container in await self._engine.call(
                "containers/json", params={"all": 1, "filters": json.dumps({"label": labels})}
            ):
                if LABEL_WORKSPACE not in container["Labels"]:
                    await self._engine.remove(f"containers/{container['Id']}", {"force": 1, "v": 1})
            filters = json.dumps({"label": labels, "dangling": ["true"]})
            for found in await self._engine.call("images/json", params={"filters": filters}):
                if LABEL_WORKSPACE not in found["Labels"]:
                    await self._remove_unless_used(found["Id"])
        except (ProviderError, ProviderUnavailable) as error:
            log.warning("what a build left could not be removed", image=image, why=str(error))

    async def _remove_unless_used(self, image: str) -> None:
        try:
            await self._engine.remove(f"images/{image}")
        except ProviderError as error:
            log.info("an image stays, because it is used", image=image, why=str(error))

    async def list(self) -> Sequence[str]:
        """Return the names of the images that this daemon built, and the ids of those that lost theirs."""
        filters = json.dumps({"label": [f"{LABEL_INSTANCE}={self._instance}", LABEL_BUILT]})
        names = []
        for found in await self._engine.call("images/json", params={"filters": filters}):
            built = found["Labels"][LABEL_BUILT]
            if LABEL_WORKSPACE in found["Labels"] or built in self._under_way:
                continue
            tags = [tag for tag in found["RepoTags"] or () if tag != "<none>:<none>"]
            if built in tags:
                names.append(built)
            elif not tags:
                names.append(found["Id"])
        return sorted(names)


class _Labelled:
    """A recipe with labels at the beginning of every stage."""

    def __init__(self, recipe: str, labels: Mapping[str, str]) -> None:
        ours = "LABEL " + " ".join(f'{name}="{value}"' for name, value in labels.items())
        escape = "\\"
        lines: list[str] = []
        self._ours: list[int] = []  # numbers of our lines
        is_continued = is_stage = False
        for line in recipe.splitlines():
            lines.append(line)
            text = line.strip()
            if directive := re.fullmatch(r"#\s*escape\s*=\s*(\S)", text, re.IGNORECASE):
                escape = directive[1]
            if text.startswith("#") or (is_continued and not text):
                continue  # the engine leaves these out, also in the middle of an instruction
            if not is_continued:
                is_stage = re.match(r"FROM\s", text, re.IGNORECASE) is not None
            is_continued = text.endswith(escape)
            if is_stage and not is_continued:
                lines.append(ours)
                self._ours.append(len(lines))
                is_stage = False
        self.text = "\n".join(lines) + "\n"

    def without_our_lines(self, message: str) -> str:
        """Return what the engine says of the recipe with the number that its author knows the line by."""

        def known(match: re.Match[str]) -> str:
            number = int(match[1])
            return f"line {number - sum(ours < number for ours in self._ours)}"

        return re.sub(r"\bline (\d{1,6})\b", known, message)


class _Archive:
    """What is sent: the recipe, and the files it may copy.

    Its name is a new one each time, so that no file of the context can take its place.
    """

    def __init__(self, recipe: str, context: AsyncIterable[bytes] | None) -> None:
        self.name = f".vmd-recipe-{token_hex(8)}"
        self.error: Exception | None = None  # why the context ended early
        self._recipe = recipe.encode()
        self._context = context

    async def pieces(self) -> AsyncIterator[bytes]:
        head = tarfile.TarInfo(self.name)
        head.size = len(self._recipe)
        yield head.tobuf() + self._recipe + b"\0" * (-head.size % tarfile.BLOCKSIZE)
        if self._context is None:
            yield b"\0" * 2 * tarfile.BLOCKSIZE
            return
        try:
            async for data in self._context:
                if data:  # an empty piece would end the body
                    yield data
        except Exception as error:
            self.error = error
            raise


class _Account:
    """What the engine tells of a build."""

    def __init__(self, image: str, output: Output) -> None:
        self._image = image
        self._output = output
        self._step = ""
        self._tail: deque[str] = deque(maxlen=64)
        self._is_after_title = False
        self.count = 0  # of items told
        self.has_failed = False

    async def take(self, item: Mapping[str, Any]) -> None:
        """Pass on one item; raise ProviderError for the one that says that the build failed."""
        self.count += 1
        if "error" in item:
            raise self.failed(str(item["error"]))
        if "stream" in item:
            await self._say(item["stream"])
        elif "status" in item and not item.get("progressDetail"):  # of fetching what the recipe builds on
            line = " ".join(filter(None, [item.get("id"), item["status"]]))
            await self._output("stdout", f"{line}\n".encode())

    async def _say(self, text: str) -> None:
        if step := _STEP.match(text):
            self._step = f" at step {step[1]} of {step[2]}, `{_short(step[3])}`"
            self._tail.clear()
            await self._output("stdout", f"{_one_line(text)}\n".encode())
        elif not (_ASIDE.fullmatch(text) or (text == "\n" and self._is_after_title)):
            stream = "stderr" if text.startswith(_ERROR_COLOUR) else "stdout"
            if stream == "stderr":
                text = text.removeprefix(_ERROR_COLOUR).removesuffix(_NO_COLOUR)
            self._tail.append(text[-TAIL_CHARACTERS:])
            await self._output(stream, text.encode())
        self._is_after_title = step is not None

    def failed(self, why: str) -> ProviderError:
        """Return the failure, with the step and the end of what it printed."""
        self.has_failed = True
        lines = [line.strip() for line in "".join(self._tail).splitlines() if line.strip()]
        said = " / ".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:].rstrip(".")
        ending = f" It said: {said}." if said else ""
        return ProviderError(
            f"Building the image {self._image} failed{self._step}: {_one_line(why).rstrip('.')}.{ending}"
        )


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of an answer, of any length, which aiohttp's own reader does not."""
    rest = bytearray()
    async for piece in response.content.iter_any():
        rest += piece
        if b"\n" in piece:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line.strip():
                    yield bytes(line)
    if rest.strip():
        yield bytes(rest)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _short(instruction: str) -> str:
    line = _one_line(instruction)
    return f"{line[:80]}…" if len(line) > 80 else line
