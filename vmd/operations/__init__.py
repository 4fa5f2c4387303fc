"""The durable queue of long work."""
