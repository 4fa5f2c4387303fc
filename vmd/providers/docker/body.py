"""What a container is made with. Everything is decided here; nothing of a request is passed through."""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from vmd.model.workspace import WORKDIR, Service
from vmd.providers.base import MachineSpec

LABEL_INSTANCE = "vmd.instance"
LABEL_WORKSPACE = "vmd.workspace"
LABEL_OPERATION = "vmd.operation"
LABEL_SNAPSHOT = "vmd.snapshot"
LABEL_SERVICE = "vmd.service"  # the name of a service; a machine has no such label
LABEL_READY = "vmd.ready"  # how a service says that it is ready
LABEL_READY_SECONDS = "vmd.ready-seconds"

# What root inside needs for a package manager or a change of user; other users have none of them.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
)
# What images need that begin as root, give themselves their data, and go on as somebody else.
SERVICE_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
)
SERVICE_PIDS = 512
# One that ends well was told to. One that fails again and again stays down, and its workspace is degraded.
SERVICE_RESTARTS = {"Name": "on-failure", "MaximumRetryCount": 10}
STATE_DIRECTORY = "/var/lib/vmd"  # root's alone, in a volume: what commands printed, also after a rebuild
RUN_DIRECTORY = "/run/vmd"  # in memory: the secrets are here, and gone when the machine stops

ENDING_FILE = f"{RUN_DIRECTORY}/ending"  # there once the machine has begun to stop

_MIB = 1024 * 1024
_NANO = 1_000_000_000

# The machine's main process. Gives uid 1000 a name and a home where the image has none, then waits; when it
# is asked to end it asks everybody else first. POSIX shell and nothing more, since images differ.
_MAIN = f"""
known=
while IFS=: read -r _ _ uid _; do [ "$uid" = 1000 ] && known=1; done </etc/passwd
if [ -z "$known" ]; then
    shell=/bin/sh; [ -x /bin/bash ] && shell=/bin/bash
    echo "dev:x:1000:" >>/etc/group
    echo "dev:x:1000:1000::/home/dev:$shell" >>/etc/passwd
    mkdir -p /home/dev && chown 1000:1000 /home/dev
fi
chown 1000:1000 {WORKDIR}
chmod 0700 {STATE_DIRECTORY}
[ -n "${{VMD_SUDO:-}}" ] && [ -d /etc/sudoers.d ] && echo '#1000 ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/vmd
unset VMD_SUDO
end() {{
    trap '' TERM
    : >{ENDING_FILE} # whoever comes now is told by this, since nobody ends it
    kill -TERM -1 2>/dev/null
    # Interactive shells ignore that; whatever has a terminal understands a hang-up.
    for process in /proc/[0-9]*; do
        read -r stat <"$process/stat" && set -- ${{stat##*) }} || continue
        [ "$5" = 0 ] || kill -HUP "${{process#/proc/}}"
    done 2>/dev/null
    while set -- /proc/[0-9]*; [ $# -gt 2 ]; do sleep 0.05; done
    exit 0
}}
trap end TERM
: >{RUN_DIRECTORY}/ready
while :; do sleep 86400 & wait $!; done
"""

# Runs a command once the machine is set up, with the secrets in its environment.
_WITH_SECRETS = f"""
until [ -e {RUN_DIRECTORY}/ready ]; do sleep 0.02; done
if [ -r {RUN_DIRECTORY}/secrets ]; then set -a; . {RUN_DIRECTORY}/secrets; set +a; fi
exec "$@"
"""
WRITE_SECRETS = f"""
until [ -e {RUN_DIRECTORY}/ready ]; do sleep 0.02; done
umask 077; cat >{RUN_DIRECTORY}/secrets.new && mv {RUN_DIRECTORY}/secrets.new {RUN_DIRECTORY}/secrets
"""


@frozen(kw_only=True)
class ContainerOptions:
    """What the administrator decides for all containers."""

    has_sudo: bool = False  # lets the machine's user become root, which needs privileges to be gained
    runtime: str | None = None  # such as runsc


def container_body(
    spec: MachineSpec,
    labels: Mapping[str, str],
    *,
    volume: str,
    state_volume: str,
    network: str,
    options: ContainerOptions,
) -> dict[str, Any]:
    """Return the body of the engine's container create call."""
    resources = spec.resources
    memory_bytes = resources.memory_mb * _MIB
    environment = {**spec.env, **({"VMD_SUDO": "1"} if options.has_sudo else {})}
    capabilities = [*CAPABILITIES, *(("AUDIT_WRITE",) if options.has_sudo else ())]
    has_files = spec.snapshot_id is not None or spec.files is not None  # or gets them, and no others
    host_config: dict[str, Any] = {
        "NetworkMode": network,
        "Mounts": [
            {"Type": "volume", "Source": volume, "Target": WORKDIR, "VolumeOptions": {"NoCopy": has_files}},
            {"Type": "volume", "Source": state_volume, "Target": STATE_DIRECTORY},
        ],
        "Tmpfs": {RUN_DIRECTORY: "rw,nosuid,nodev,noexec,size=1m,uid=1000,gid=1000,mode=0700"},
        "Init": True,
        "CapDrop": ["ALL"],
        "CapAdd": capabilities,
        "SecurityOpt": [] if options.has_sudo else ["no-new-privileges"],
        "NanoCpus": int(resources.cpus * _NANO),
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "PidsLimit": resources.pids,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
    }
    if resources.disk_mb is not None:
        host_config["StorageOpt"] = {"size": f"{resources.disk_mb}M"}
    if options.runtime is not None:
        host_config["Runtime"] = options.runtime
    return {
        "Image": spec.image,
        "Hostname": _hostname(spec),
        "User": "0:0",
        "WorkingDir": WORKDIR,
        "Entrypoint": ["/bin/sh", "-c", _MAIN, "vmd"],
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": dict(labels),
        "StopSignal": "SIGTERM",
        "Tty": False,
        "OpenStdin": False,
        "HostConfig": host_config,
    }


def service_body(
    service: Service,
    labels: Mapping[str, str],
    *,
    volume: str,
    network: str,
    options: ContainerOptions,
) -> dict[str, Any]:
    """Return the body of the engine's create call for a service's container."""
    memory_bytes = service.memory_mb * _MIB
    host_config: dict[str, Any] = {
        "NetworkMode": network,
        "Mounts": [],
        "Init": True,
        "CapDrop": ["ALL"],
        "CapAdd": list(SERVICE_CAPABILITIES),
        "SecurityOpt": ["no-new-privileges"],
        "NanoCpus": int(service.cpus * _NANO),
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "PidsLimit": SERVICE_PIDS,
        "RestartPolicy": SERVICE_RESTARTS,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
    }
    if service.data is not None:
        host_config["Mounts"] = [{"Type": "volume", "Source": volume, "Target": service.data}]
    if options.runtime is not None:
        host_config["Runtime"] = options.runtime
    ready = {} if service.ready is None else {LABEL_READY: service.ready}
    body = {
        "Image": service.image,
        "Hostname": service.name,
        "Env": [f"{name}={value}" for name, value in service.env.items()],
        "Labels": {**labels, **ready, LABEL_READY_SECONDS: str(service.ready_seconds)},
        "HostConfig": host_config,
        "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [service.name]}}},
    }
    return {**body, "Cmd": list(service.command)} if service.command else body


def _hostname(spec: MachineSpec) -> str:
    """Return the machine's host name; it would hide a service of the same name from the machine."""
    taken = any(service.name == spec.hostname for service in spec.services)
    return f"{spec.hostname}-machine" if taken else spec.hostname


def with_secrets(argv: tuple[str, ...]) -> list[str]:
    """Return the command line that runs `argv` with the secrets in its environment."""
    return ["/bin/sh", "-c", _WITH_SECRETS, "vmd", *argv]


def secrets_file(secrets: Mapping[str, str]) -> bytes:
    """Return the secrets as assignments for a POSIX shell."""
    lines = []
    for name, value in secrets.items():
        quoted = value.replace("'", "'\\''")
        lines.append(f"{name}='{quoted}'\n")
    return "".join(lines).encode()
