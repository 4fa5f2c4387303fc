"""Detection in a repository of ten thousand files, beside a plain exec of git in the same machine."""

import asyncio
import time
from pathlib import Path
from secrets import token_hex
from statistics import median

from tests.benchmarks.engine import IMAGE, SOCKET
from tests.benchmarks.table import Row, middle
from vmd.model.template import Template
from vmd.model.workspace import Resources
from vmd.orchestrator.presets import Context, detect, load_rules
from vmd.orchestrator.presets.looking import look
from vmd.providers.base import Execution, MachineSpec
from vmd.providers.docker import DockerProvider

ROUNDS = 11
FILES = 10_000
BOUND_SECONDS = 1.0
SUBNET_POOL = "10.226.0.0/16"
# A hundred directories of a hundred files each, a front end, and thirty packages of a workspace.
_FILL = """
set -e
git init -q . && git config user.email b@example.test && git config user.name b
for d in $(seq 100); do
    mkdir -p backend/d$d && for f in $(seq 100); do echo "$d $f" >backend/d$d/f$f.py; done
done
printf 'django\\nrequests\\n' >backend/requirements.txt
mkdir frontend && cd frontend
printf '{"workspaces": ["packages/*"], "dependencies": {"next": "15"}}' >package.json
for p in $(seq 30); do
    mkdir -p packages/p$p && printf '{"dependencies": {"react": "19"}}' >packages/p$p/package.json
done
cd .. && git add -A && git commit -q -m all && git ls-files | wc -l
"""


def measure(directory: Path) -> list[Row]:
    """Make a machine with such a repository, and look at it again and again."""
    return [asyncio.run(_measure())]


async def _measure() -> Row:
    provider = DockerProvider(
        url=f"unix://{SOCKET}", instance=f"benchmark-{token_hex(8)}", subnet_pool=SUBNET_POOL
    )
    workspace_id = f"ws-{token_hex(8)}"
    spec = MachineSpec(
        workspace_id=workspace_id,
        operation_id="benchmark",
        hostname="benchmark",
        node="local",
        image=IMAGE,
        resources=Resources(cpus=2),
    )
    try:
        ref = await provider.create(spec)
        await provider.start(ref, {})
        assert int(await _run(provider, ref, _FILL)) >= FILES
        ours, raw = [], []
        for number in range(ROUNDS + 1):  # the first warms up
            times = (await _detect(provider, ref), await _list(provider, ref))
            if number:
                ours.append(times[0] * 1000)
                raw.append(times[1] * 1000)
    finally:
        await provider.destroy(workspace_id)
        await provider.close()
    return Row(
        subject=f"detect in {FILES} files, after the clone",
        ours=middle(ours, "ms"),
        yardstick=middle(raw, "ms"),
        compared=median(ours) / 1000,  # all of it, and not what is more than the yardstick's
        unit="s",
        bound=BOUND_SECONDS,
        is_upper=True,
    )


async def _detect(provider: DockerProvider, ref: str) -> float:
    base = Template(id="base", name="Base", image=IMAGE)
    context = Context(templates={"base": base}, repository="shop")
    started = time.perf_counter()
    rules = load_rules()
    tree = await look(provider, ref, rules)
    found = await asyncio.to_thread(detect, tree, rules, context)
    taken = time.perf_counter() - started
    assert found[0].preset.id == "django+nextjs", found
    return taken


async def _list(provider: DockerProvider, ref: str) -> float:
    started = time.perf_counter()
    await _run(provider, ref, "git ls-tree -r -z HEAD | wc -c")
    return time.perf_counter() - started


async def _run(provider: DockerProvider, ref: str, script: str) -> str:
    said = bytearray()

    async def output(_: str, data: bytes) -> None:
        said.extend(data)

    code = await provider.execute(ref, Execution(argv=("/bin/sh", "-c", script)), output)
    assert code == 0, said
    return said.decode()
