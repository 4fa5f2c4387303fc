"""The HTTP and WebSocket front door: reads requests, calls one use case each, writes answers."""
