"""Makes sure that an image is there: fetched, or built from its recipe, once for all who want it."""

import asyncio
import re
from collections.abc import AsyncIterable, Callable
from weakref import WeakValueDictionary

from vmd.model.operation import Phase
from vmd.operations.report import Report
from vmd.providers.base import Provider

MAX_TITLE_CHARACTERS = 120

_STEP = re.compile(rb"Step (\d{1,4})/(\d{1,4}) : (.*)\n")
# A lock for each image that somebody fetches or builds now; gone with the last who holds or awaits it.
_turns: WeakValueDictionary[tuple[Provider, str], asyncio.Lock] = WeakValueDictionary()


async def ensure_image(
    provider: Provider,
    image: str,
    recipe: str | None,
    report: Report,
    context: Callable[[], AsyncIterable[bytes]] | None = None,
) -> None:
    """Build an image from its recipe, or fetch one that has none, unless it is there already.

    The name is taken for all that an image is: whoever makes one from another recipe or other files gives it
    another name. Of several who want the same image at once one makes it, and the others wait; when that one
    fails or is cancelled the next in line tries. `context` opens the tar archive that the recipe may copy
    from. Raises ProviderError or ProviderUnavailable.
    """
    if await provider.has_image(image):
        return
    turn = _turns.setdefault((provider, image), asyncio.Lock())
    if turn.locked():
        await report.phase(Phase.BUILD, f"Waiting for another operation that makes the image {image}.")
    async with turn:
        if await provider.has_image(image):
            report.log(f"The image {image} is there now.")
        elif recipe is None:
            await report.phase(Phase.PULL, f"Fetching the image {image}.")
            await provider.pull(image, report.output)
        else:
            await report.phase(Phase.BUILD, f"Building the image {image}.", percent=0)
            await provider.build(image, recipe, _Steps(report), None if context is None else context())


class _Steps:
    """Passes on what a build prints, with its steps as progress."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._unfinished: set[str] = set()  # streams whose last line has no end yet

    async def __call__(self, stream: str, data: bytes) -> None:
        step = _STEP.fullmatch(data)
        if step is None:
            (self._unfinished.discard if data.endswith(b"\n") else self._unfinished.add)(stream)
            await self._report.output(stream, data)
            return
        for unfinished in sorted(self._unfinished):
            await self._report.output(unfinished, b"\n")
        self._unfinished.clear()
        number, count = int(step[1]), max(1, int(step[2]))
        instruction = step[3].decode("utf-8", "replace")[:MAX_TITLE_CHARACTERS]
        percent = min(99, max(0, 100 * (number - 1) // count))
        await self._report.phase(Phase.BUILD, f"Step {number}/{count}: {instruction}", percent=percent)
