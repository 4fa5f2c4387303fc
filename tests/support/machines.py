"""The containers behind workspaces, as their engine's administrator sees them."""

import subprocess


def docker(*arguments: str) -> str:
    """Return what a command of the engine's own client prints."""
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def container_of(workspace_id: str) -> str:
    """Return the container of a workspace's machine, whether it runs or not."""
    return docker("ps", "-aq", "--filter", f"name=^vmd-{workspace_id}-op-")


def in_container(workspace_id: str, line: str, user: str = "1000") -> str:
    """Return what a shell line prints in a workspace's container, with no part of the daemon in between."""
    return docker("exec", "-u", user, "-w", "/workspace", container_of(workspace_id), "sh", "-c", line)
