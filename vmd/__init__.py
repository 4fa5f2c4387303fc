"""vmd: transient development workspaces for a team, over REST and WebSockets."""

__version__ = "0.1.0"
