"""Detection before there is a workspace, in a machine that is taken away again.

The machine is made as a workspace's is, with a volume and a network of its own, under an id that no workspace
has. So it is confined in the same way, found after a crash by its label, and no use to anybody else.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from secrets import token_hex
from typing import Any

import structlog

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused
from vmd.model.preset import Detected, DetectRequest, LookedAt
from vmd.model.workspace import Resources
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.permissions import require_scope, require_unconfined
from vmd.orchestrator.presets import Context, detect, load_rules, repository_name
from vmd.orchestrator.presets.composing import recipe_of
from vmd.orchestrator.presets.looking import CannotLook, look
from vmd.orchestrator.provisioning import GIT_ENV, Tail
from vmd.orchestrator.refusals import refused_by_provider
from vmd.orchestrator.templates import DEFAULT_TEMPLATE, Catalogue
from vmd.providers.base import Execution, MachineSpec, Provider, ProviderError, ProviderUnavailable
from vmd.store.database import Database
from vmd.store.idempotency import Once, answer_once, find_answer

PREFIX = "probe-"
DEADLINE_SECONDS = 120.0  # for one look, waiting for its turn not counted
AT_ONCE = 4
OF_ONE_USER = 2  # of them
CLOSE_SECONDS = 5.0
RESOURCES = Resources(cpus=1.0, memory_mb=512, pids=256)

# The newest commit alone, and of it no contents where the server can leave them out. A server that cannot
# give one commit gives all.
_CLONE_SCRIPT = """
set -eu
command -v git >/dev/null || { echo "the image has no git; use one that has" >&2; exit 127; }
said=$(mktemp)
set -- --quiet --no-checkout --no-tags
[ -z "$VMD_REPO_BRANCH" ] || set -- "$@" --branch="$VMD_REPO_BRANCH"
git clone "$@" --depth=1 --filter=blob:none -- "$VMD_REPO_URL" . 2>"$said" || {
    if grep -q shallow "$said"; then git clone "$@" -- "$VMD_REPO_URL" .; exit; fi
    cat "$said" >&2
    exit 128
}
"""

log = structlog.get_logger()


class Probes:
    """Looks into repositories, a few at a time, and leaves nothing behind."""

    def __init__(
        self,
        database: Database,
        machines: Machines,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._database = database
        self._machines = machines
        self._catalogue = catalogue
        self._deadline_seconds = deadline_seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(OF_ONE_USER))
        self._live: set[str] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._providers = providers
        self._to_clear = set(providers)  # that may hold what an earlier daemon, or a failure, left

    def is_live(self, workspace_id: str) -> bool:
        """Whether what a provider holds under this id is in use."""
        return workspace_id in self._live

    async def detect(self, actor: Actor, wanted: DetectRequest, once: Once | None = None) -> Detected:
        """Return the presets that fit a repository, best first; nothing of it is kept."""
        require_scope(actor, Scope.WRITE)
        require_unconfined(actor)
        if once is not None:
            first = await self._database.read(lambda tx: find_answer(tx, actor.user_id, once, Detected))
            if first is not None:
                return first
        async with self._turns_of[actor.user_id]:
            found = await self._probe(wanted.repo)
        return await self._database.write(
            lambda tx: answer_once(tx, actor.user_id, once, Detected, lambda: found)
        )

    async def sweep(self) -> None:
        """Remove what was left behind: once after the start, and after a removal that failed."""
        for name in tuple(self._to_clear):
            try:
                await self._clear(self._providers[name])
            except (ProviderError, ProviderUnavailable) as error:
                log.info("what a look left is not removed yet", provider=name, why=str(error))
                continue
            self._to_clear.discard(name)

    async def _clear(self, provider: Provider) -> None:
        for held in {holding.workspace_id for holding in await provider.holdings()}:
            if held.startswith(PREFIX) and not self.is_live(held):
                await provider.destroy(held)

    async def close(self) -> None:
        """Wait a little for machines that are being removed; the next start removes the rest."""
        if self._removals:
            await asyncio.wait(self._removals, timeout=CLOSE_SECONDS)
        for removal in tuple(self._removals):
            removal.cancel()

    async def _probe(self, repo: LookedAt) -> Detected:
        name, node = self._machines.place(None, None)
        provider = self._providers[name]
        await self._turns.acquire()
        probe_id = f"{PREFIX}{token_hex(8)}"
        self._live.add(probe_id)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._look(provider, node, probe_id, repo)
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None
        except TimeoutError:
            raise Refused(
                ErrorCode.PROVIDER_ERROR,
                f"{repo.url} could not be looked at within {self._deadline_seconds:g} s; try again, or make "
                "a workspace from it with a template of your choice.",
            ) from None
        finally:
            self._spawn(self._remove(provider, probe_id))

    async def _look(self, provider: Provider, node: str, probe_id: str, repo: LookedAt) -> Detected:
        base = self._catalogue.templates[DEFAULT_TEMPLATE]
        if not await provider.has_image(base.image):
            recipe = recipe_of(base)
            if recipe is None:
                await provider.pull(base.image, _ignore)
            else:
                await provider.build(base.image, recipe, _ignore)
        spec = MachineSpec(
            workspace_id=probe_id,
            operation_id="look",
            hostname="probe",
            node=node,
            image=base.image,
            resources=RESOURCES,
        )
        machine = await provider.start(await provider.create(spec), {})
        await _clone(provider, machine.ref, repo)
        rules = load_rules()
        try:
            tree = await look(provider, machine.ref, rules, env=GIT_ENV, fetches=True)
        except CannotLook as error:
            raise ProviderError(f"{repo.url} cannot be looked at: {error}.") from None
        context = Context(templates=self._catalogue.templates, repository=repository_name(repo.url))
        candidates = await asyncio.to_thread(detect, tree, rules, context)
        return Detected(items=tuple(candidate.preset for candidate in candidates))

    async def _remove(self, provider: Provider, probe_id: str) -> None:
        try:
            await provider.destroy(probe_id)
        except (ProviderError, ProviderUnavailable) as error:
            log.warning("a machine that looked into a repository is left; it is tried again", why=str(error))
            self._to_clear.add(provider.name)
        finally:
            self._live.discard(probe_id)
            self._turns.release()

    def _spawn(self, removal: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(removal)
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)


async def _clone(provider: Provider, ref: str, repo: LookedAt) -> None:
    """Clone without checking anything out; raise Refused with git's own reason."""
    tail = Tail()

    async def output(_: str, data: bytes) -> None:
        tail.add(data)

    env = {**GIT_ENV, "VMD_REPO_URL": repo.url, "VMD_REPO_BRANCH": repo.branch or ""}
    exit_code = await provider.execute(ref, Execution(argv=("/bin/sh", "-c", _CLONE_SCRIPT), env=env), output)
    if exit_code != 0:
        raise Refused(
            ErrorCode.PROVIDER_ERROR,
            f"Cloning {repo.url} failed (exit code {exit_code}): {tail.text()} Mend the cause and try again.",
        )


async def _ignore(_: str, data: bytes) -> None:
    """Take an output that nobody reads."""
