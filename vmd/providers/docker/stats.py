"""From the engine's figures of a container to ours."""

from collections.abc import Mapping
from typing import Any

from vmd.providers.base import (
    CpuStats,
    DiskStats,
    MemoryStats,
    NetworkStats,
    PidsStats,
    ProviderError,
    Stats,
)


def read_stats(found: Mapping[str, Any], reading: Mapping[str, Any]) -> Stats:
    """Return the stats in an inspection with sizes and a one-shot reading of the same container."""
    memory, pids = reading["memory_stats"], reading["pids_stats"]
    if "usage" not in memory:
        raise ProviderError("The machine is not running.")
    details = memory.get("stats", {})  # named differently by cgroups v1 and v2
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    traffic = (reading.get("networks") or {}).values()
    disk = reading["blkio_stats"].get("io_service_bytes_recursive") or []
    return Stats(
        cpu=CpuStats(
            usage_seconds=read_cpu_seconds(reading),
            limit_cpus=found["HostConfig"]["NanoCpus"] / 1e9,
        ),
        memory=MemoryStats(
            usage_bytes=max(0, memory["usage"] - cache), limit_bytes=found["HostConfig"]["Memory"]
        ),
        pids=PidsStats(current=pids.get("current", 0), limit=found["HostConfig"]["PidsLimit"]),
        network=NetworkStats(
            rx_bytes=sum(network["rx_bytes"] for network in traffic),
            tx_bytes=sum(network["tx_bytes"] for network in traffic),
        ),
        disk=DiskStats(
            read_bytes=sum(entry["value"] for entry in disk if entry["op"].lower() == "read"),
            write_bytes=sum(entry["value"] for entry in disk if entry["op"].lower() == "write"),
            used_bytes=found.get("SizeRw"),
        ),
    )


def read_cpu_seconds(reading: Mapping[str, Any]) -> float:
    """Return the processor time in a reading of the engine."""
    return float(reading["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9
