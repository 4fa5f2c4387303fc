"""What becomes of a workspace whose request names a repository and no template.

Its first machine is one of the default template. The repository is cloned in it, its files say which preset
fits, and that is written into the books together with the step that says so. Where the preset needs another
machine, the first one is then replaced; the files stay. A try that is cut off goes on from what was written.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from attrs import evolve, frozen

from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import Job, OperationType, Phase
from vmd.model.template import Template
from vmd.model.workspace import Resources, Workspace
from vmd.operations.report import Report
from vmd.orchestrator import outcomes
from vmd.orchestrator.changes import save
from vmd.orchestrator.images import ensure_image
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.packing import pack
from vmd.orchestrator.presets import (
    DEVCONTAINER,
    Candidate,
    Context,
    Rules,
    detect,
    load_rules,
    repository_name,
)
from vmd.orchestrator.presets.composing import recipe_of
from vmd.orchestrator.presets.looking import CannotLook, look
from vmd.orchestrator.quota import Quotas
from vmd.orchestrator.templates import DEFAULT_TEMPLATE, Catalogue
from vmd.providers.base import Execution, Machine, Provider, ProviderError
from vmd.providers.process import MACHINE_USER
from vmd.store.database import Database, Transaction
from vmd.store.operations import OperationFilter, find_job, list_operations, update_job

USER_PARAMETER = "devcontainer.user"  # no template's parameter has a dot in its name
CONTEXT_PARAMETER = "devcontainer.context"
MAX_LOGGED_EVIDENCE = 20
RunUp = Callable[[Job, Report, Provider, Workspace], Awaitable[Machine]]


@frozen(kw_only=True)
class Explicit:
    """What a request said itself, which no preset changes."""

    has_ports: bool = False
    resources: tuple[str, ...] = ()  # names of fields

    @classmethod
    def of(cls, job: Job | None) -> "Explicit":
        """Return what the request of a create said."""
        said = [] if job is None else job.input.get("explicit", [])
        return cls(has_ports="ports" in said, resources=tuple(said))


class Detection:
    """Finds out what repositories want, and writes it down."""

    def __init__(self, database: Database, machines: Machines, quotas: Quotas, catalogue: Catalogue) -> None:
        self._database = database
        self._machines = machines
        self._quotas = quotas
        self._catalogue = catalogue

    @property
    def _base(self) -> Template:
        return self._catalogue.templates[DEFAULT_TEMPLATE]

    async def prepare(
        self, job: Job, report: Report, provider: Provider, workspace: Workspace, run_up: RunUp
    ) -> tuple[Job, Workspace, Machine | None]:
        """Return the workspace as its repository wants it, recorded as a step, and its machine if it runs.

        `run_up` makes a machine with the repository's files in it, and runs it.
        """
        machine = None
        if workspace.is_detecting:
            machine = await run_up(job, report, provider, workspace)
            job, workspace = await self._settle(job, report, provider, machine, workspace)
        elif "replaced" not in job.checkpoint and await self._lacks_image(provider, workspace):
            machine = await run_up(job, report, provider, self._plain(workspace))
            job = await self._build_again(job, report, provider, machine, workspace)
        if "replaced" in job.checkpoint:
            await provider.discard(str(job.checkpoint["replaced"]))
            machine = None
        return job, workspace, machine

    async def _settle(
        self, job: Job, report: Report, provider: Provider, machine: Machine, workspace: Workspace
    ) -> tuple[Job, Workspace]:
        await report.phase(Phase.DETECT, "Looking at what the repository is made of.")
        best = await self._find(report, provider, machine, workspace, load_rules())
        if best is not None:
            best = await self._with_image(report, provider, machine, best)
        job, workspace, notes = await self._database.write(
            lambda tx: self._write(tx, job, workspace, machine, best)
        )
        for note in notes:
            report.log(note)
        return job, workspace

    @staticmethod
    async def _lacks_image(provider: Provider, workspace: Workspace) -> bool:
        """Whether an image that was built from the workspace's own files is gone."""
        return CONTEXT_PARAMETER in workspace.parameters and not await provider.has_image(workspace.image)

    def _plain(self, workspace: Workspace) -> Workspace:
        """Return a workspace with the default template's image, to get at its files."""
        return evolve(workspace, image=self._base.image, recipe=recipe_of(self._base))

    @staticmethod
    async def _build_again(
        job: Job, report: Report, provider: Provider, machine: Machine, workspace: Workspace
    ) -> Job:
        """Build a workspace's image from its files as they are now; return the job with that step."""
        context = str(workspace.parameters[CONTEXT_PARAMETER])
        await _ensure(report, provider, machine, workspace.image, workspace.recipe, context)
        replaced = _replacing(job, machine)
        await report.checkpoint(**replaced)
        return evolve(job, checkpoint={**job.checkpoint, **replaced})

    # Finding.

    async def _find(
        self, report: Report, provider: Provider, machine: Machine, workspace: Workspace, rules: Rules
    ) -> Candidate | None:
        """Return the preset that fits best, and say in the log what was found and where."""
        try:
            tree = await look(provider, machine.ref, rules)
        except CannotLook as error:
            report.log(f"The repository cannot be looked at: {error}. The template {self._base.id} is used.")
            return None
        context = Context(
            templates=self._catalogue.templates,
            repository=repository_name("" if workspace.repo is None else workspace.repo.url),
            workspace_id=workspace.id,
        )
        candidates = await asyncio.to_thread(detect, tree, rules, context)
        if not candidates:
            report.log(f"Nothing that is known was detected; the template {self._base.id} is used.")
            return None
        _tell(report, candidates)
        return candidates[0]

    async def _with_image(
        self, report: Report, provider: Provider, machine: Machine, best: Candidate
    ) -> Candidate:
        """Make sure that the image of a preset is there.

        Without it, what was only detected does with the default template's; what the repository asks for in
        so many words fails.
        """
        preset = best.preset
        is_asked_for = preset.id.startswith(DEVCONTAINER)
        try:
            await _ensure(report, provider, machine, preset.image, preset.recipe, best.context)
        except (ProviderError, Refused) as error:
            if is_asked_for:
                raise Refused(
                    ErrorCode.PROVIDER_ERROR,
                    f"{error} {preset.evidence[0].path} asks for it; name a template in the request, such "
                    f"as {self._base.id}, to do without.",
                ) from None
            report.log(f"{error} The image of the template {self._base.id} is used instead.")
            preset = evolve(preset, image=self._base.image, recipe=recipe_of(self._base))
            return evolve(best, preset=preset)
        return best

    # Writing.

    def _write(
        self, tx: Transaction, job: Job, seen: Workspace, machine: Machine, best: Candidate | None
    ) -> tuple[Job, Workspace, list[str]]:
        """Write the workspace and the step in one transaction, unless the workspace was taken meanwhile."""
        before, latest = outcomes.held(tx, job), find_job(tx, job.id)
        if before is None or latest is None:
            return job, evolve(seen, is_detecting=False), []
        changes: dict[str, Any] = {"is_detecting": False}
        notes: list[str] = []
        if best is not None:
            explicit = Explicit.of(latest if "explicit" in latest.input else _first_job(tx, before))
            resources, notes = self._resources(tx, before, best, explicit)
            if best.preset.plugins:
                named = ", ".join(best.preset.plugins)
                notes.append(
                    f"The template's plugins are not added unasked; name them in the request: {named}."
                )
            changes |= {**self._changes(before, best, explicit), "resources": resources}
        after = evolve(before, **changes)
        told = {name: getattr(after, name) for name in ("template", "ports")} if best is not None else {}
        saved = save(tx, before, after, actor=job.operation.actor, told=told)
        steps: dict[str, Any] = {}
        if best is not None:
            steps["detected"] = {"template": after.template, "notes": [*best.preset.notes, *notes]}
        if any(getattr(after, name) != getattr(before, name) for name in ("image", "env", "resources")):
            steps |= _replacing(latest, machine)
        latest = evolve(latest, checkpoint={**latest.checkpoint, **steps})
        update_job(tx, latest)
        return latest, saved, notes

    def _changes(self, before: Workspace, best: Candidate, explicit: Explicit) -> dict[str, Any]:
        """Return what a preset changes of a workspace; what its request said stays."""
        preset = best.preset
        own = self._base.provisioning
        rest = (
            before.provisioning[len(own) :] if before.provisioning[: len(own)] == own else before.provisioning
        )
        env = {name: text for name, text in preset.env.items() if name not in before.secrets}
        parameters = dict(before.parameters)
        if best.user is not None:
            parameters[USER_PARAMETER] = best.user
        if best.context is not None:
            parameters[CONTEXT_PARAMETER] = best.context
        return {
            "template": preset.id,
            "image": preset.image,
            "recipe": preset.recipe,
            "env": {**env, **before.env},
            "ports": before.ports
            if explicit.has_ports
            else tuple(dict.fromkeys((*before.ports, *preset.ports))),
            "provisioning": (*preset.provisioning, *rest),
            "parameters": parameters,
        }

    def _resources(
        self, tx: Transaction, before: Workspace, best: Candidate, explicit: Explicit
    ) -> tuple[Resources, list[str]]:
        """Return the resources that a preset is to have, within the owner's quota and the host's."""
        preset, given = best.preset, before.resources
        least = {"cpus": best.cpus or 0.0, "memory_mb": best.memory_mb or 0}
        wanted = {
            name: max(getattr(preset.resources, name), least[name])
            for name in least
            if name not in explicit.resources
        }
        grown = evolve(given, **wanted)
        if grown == given:
            return given, []
        why = self._why_not(tx, before, grown)
        if why is None:
            return grown, []
        asked = f"{grown.cpus:g} processors and {grown.memory_mb} MiB"
        return given, [
            f"{asked} are asked for, and {given.cpus:g} and {given.memory_mb} MiB stay, because {why}."
        ]

    def _why_not(self, tx: Transaction, before: Workspace, grown: Resources) -> str | None:
        """Return why a workspace may not have more than was reserved for it, None if it may."""
        try:
            self._machines.require_capacity(before.provider, grown)
        except Refused:
            return "the host has no more"
        try:
            self._quotas.require_change(tx, evolve(before, resources=grown))
        except Refused as refused:
            reason = refused.detail.partition(". ")[0]
            return reason[0].lower() + reason[1:]
        return None


async def provisioning_user(
    provider: Provider, machine: Machine, workspace: Workspace, report: Report
) -> str:
    """Return whom a workspace's provisioning runs as, once the machine was asked whether it has that user."""
    user = workspace.parameters.get(USER_PARAMETER)
    if not isinstance(user, str):
        return MACHINE_USER

    async def ignore(_: str, data: bytes) -> None:
        pass

    asking = Execution(
        argv=("/bin/sh", "-c", 'id -u -- "$1"', "vmd", user), cwd="/", env={"VMD_LOOK": "user"}
    )
    if await provider.execute(machine.ref, asking, ignore) == 0:
        return user
    report.log(f"The image has no user {user}; provisioning runs as uid 1000.")
    return MACHINE_USER


async def _ensure(
    report: Report, provider: Provider, machine: Machine, image: str, recipe: str | None, context: str | None
) -> None:
    """Make sure that an image is there, built with a directory of the machine's where one is given."""
    packed: list[AsyncGenerator[bytes, None]] = []

    def open_context() -> AsyncGenerator[bytes, None]:
        packed.append(pack(provider, machine.ref, context or ""))
        return packed[-1]

    try:
        await ensure_image(provider, image, recipe, report, None if context is None else open_context)
    finally:
        for one in packed:
            with suppress(RuntimeError):  # whoever still reads it was cancelled, which ends it as well
                await one.aclose()


def _replacing(job: Job, machine: Machine) -> dict[str, str]:
    """Return the steps that have the first machine replaced by one of another name."""
    return {"replaced": machine.ref, "machine": f"{job.id}-2"}


def _first_job(tx: Transaction, workspace: Workspace) -> Job | None:
    """Return the create of a workspace, for a rebuild that does what it did not come to."""
    wanted = OperationFilter(
        owner_id=None,
        workspace_ids=(workspace.id,),
        types=(OperationType.CREATE,),
        statuses=None,
        actor=None,
    )
    found = list_operations(tx, wanted, None, 1)
    return find_job(tx, found[0].id) if found else None


def _tell(report: Report, candidates: tuple[Candidate, ...]) -> None:
    """Say what was found, from which files, and what is not honoured."""
    best = candidates[0].preset
    report.log(f"Detected {best.id}: {best.description}")
    for one in best.evidence[:MAX_LOGGED_EVIDENCE]:
        report.log(f"{one.path} {one.detail}.")
    others = [candidate.preset.id for candidate in candidates[1:]]
    if others:
        report.log(f"These fit as well: {', '.join(dict.fromkeys(others))}.")
    for note in best.notes:
        report.log(note)
