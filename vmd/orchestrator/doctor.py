"""Compares the books with what the providers hold."""

from collections.abc import Callable, Mapping
from enum import StrEnum

from attrs import frozen

from vmd.model.account import Actor
from vmd.model.snapshot import SnapshotStatus
from vmd.orchestrator.permissions import require_admin
from vmd.orchestrator.plugins import Plugins
from vmd.orchestrator.templates import Catalogue
from vmd.providers.base import Provider, ProviderError, ProviderUnavailable
from vmd.store.database import Database
from vmd.store.leftovers import delete_leftover, list_leftovers
from vmd.store.snapshots import list_snapshots_of_provider
from vmd.store.workspaces import list_of_provider


class FindingKind(StrEnum):
    """What can be wrong."""

    UNREACHABLE = "unreachable"  # a provider cannot be asked
    ORPHAN = "orphan"  # the provider holds something of a workspace or snapshot that is not in the books
    MISSING = "missing"  # the books have a machine or a snapshot that the provider does not
    BROKEN_TEMPLATE = "broken-template"
    BROKEN_PLUGIN = "broken-plugin"
    UNUSED_IMAGE = "unused-image"  # was built, and no template and no workspace has it any more


@frozen(kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: FindingKind
    subject: str
    detail: str
    is_fixed: bool = False


class Doctor:
    """Finds, and on demand destroys, what was leaked."""

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        plugins: Plugins,
        *,
        is_probing: Callable[[str], bool] = lambda workspace_id: False,
    ) -> None:
        """Prepare; `is_probing` says of what is held whether it looks into a repository just now."""
        self._database = database
        self._is_probing = is_probing
        self._providers = providers
        self._catalogue = catalogue
        self._plugins = plugins

    async def examine(self, actor: Actor, *, fix: bool) -> tuple[Finding, ...]:
        """Return what is wrong; with `fix`, destroy orphans first, and images that nobody uses.

        Nothing unlabelled is ever touched.
        """
        require_admin(actor)
        await self._catalogue.refresh()
        findings = [
            Finding(kind=FindingKind.BROKEN_TEMPLATE, subject=name, detail=why)
            for name, why in self._catalogue.broken.items()
        ]
        findings += [
            Finding(kind=FindingKind.BROKEN_PLUGIN, subject=name, detail=why)
            for name, why in self._plugins.broken.items()
        ]
        for provider in self._providers.values():
            try:
                findings += await self._examine(provider, fix)
                findings += await self._examine_snapshots(provider, fix)
            except (ProviderError, ProviderUnavailable) as error:
                findings.append(
                    Finding(kind=FindingKind.UNREACHABLE, subject=provider.name, detail=str(error))
                )
        return tuple(findings)

    async def _examine(self, provider: Provider, fix: bool) -> list[Finding]:
        # The provider is asked first: what is made after that is in the books by then.
        holdings, built = await provider.holdings(), await provider.built_images()
        booked = await self._database.read(lambda tx: list_of_provider(tx, provider.name))
        known = {workspace.id for workspace in booked}
        findings = []
        orphans: dict[str, list[str]] = {}
        for holding in holdings:
            if holding.workspace_id not in known and not self._is_probing(holding.workspace_id):
                orphans.setdefault(holding.workspace_id, []).append(f"{holding.kind} {holding.name}")
        for workspace_id, held in sorted(orphans.items()):
            if fix:
                await provider.destroy(workspace_id)
                await self._database.write(lambda tx, gone=workspace_id: delete_leftover(tx, gone))  # type: ignore[misc]
            findings.append(
                Finding(
                    kind=FindingKind.ORPHAN,
                    subject=workspace_id,
                    detail=f"{provider.name} holds {', '.join(held)} of a workspace that is gone",
                    is_fixed=fix,
                )
            )
        machines = {holding.name for holding in holdings if holding.kind == "machine"}
        for workspace in booked:
            ref = workspace.provider_ref
            if ref is not None and ref not in machines and workspace.current_operation is None:
                detail = f"the machine {ref} of a workspace that is {workspace.status} is not there"
                findings.append(Finding(kind=FindingKind.MISSING, subject=workspace.id, detail=detail))
        used = {workspace.image for workspace in booked} | self._catalogue.images | self._plugins.images
        used |= {service.image for workspace in booked for service in workspace.services}
        findings += [await self._unused(provider, image, fix) for image in built if image not in used]
        await self._forget_settled_leftovers(provider.name, set(orphans))
        return findings

    async def _examine_snapshots(self, provider: Provider, fix: bool) -> list[Finding]:
        held: dict[str, list[str]] = {}
        for snapshot_id, kind, name in await provider.snapshots.held():
            held.setdefault(snapshot_id, []).append(f"{kind} {name}")
        booked = await self._database.read(lambda tx: list_snapshots_of_provider(tx, provider.name))
        known = {snapshot.id for snapshot in booked}
        findings = []
        for snapshot_id in sorted(set(held) - known):
            if fix:
                await provider.snapshots.destroy(snapshot_id)
            detail = f"{provider.name} holds {', '.join(held[snapshot_id])} of a snapshot that is gone"
            findings.append(
                Finding(kind=FindingKind.ORPHAN, subject=snapshot_id, detail=detail, is_fixed=fix)
            )
        for snapshot in booked:
            is_settled = snapshot.status is SnapshotStatus.READY and snapshot.current_operation is None
            if is_settled and snapshot.id not in held:
                detail = f"the snapshot {snapshot.name!r} of {snapshot.workspace_id} is not there"
                findings.append(Finding(kind=FindingKind.MISSING, subject=snapshot.id, detail=detail))
        return findings

    @staticmethod
    async def _unused(provider: Provider, image: str, fix: bool) -> Finding:
        detail = f"{provider.name} holds an image that was built and is of no use any more"
        if fix:
            try:
                await provider.remove_image(image)
            except ProviderError as error:
                fix, detail = False, f"{detail}; it stays: {error}"
        return Finding(kind=FindingKind.UNUSED_IMAGE, subject=image, detail=detail, is_fixed=fix)

    async def _forget_settled_leftovers(self, provider: str, orphans: set[str]) -> None:
        for leftover in await self._database.read(list_leftovers):
            if leftover.workspace_id not in orphans and leftover.provider == provider:
                await self._database.write(lambda tx, gone=leftover: delete_leftover(tx, gone.workspace_id))  # type: ignore[misc]
