"""Secrets of callers: made here, shown once, kept as digests."""

import hashlib
import secrets

TOKEN_PREFIX = "vmd_"  # lets secret scanners recognise one
TOKEN_BYTES = 32


def new_token_secret() -> str:
    """Return a fresh API token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(secret: str) -> bytes:
    """Return what is kept of a token.

    A plain SHA-256 is enough for 256 random bits (OWASP ASVS 5.0, 6.5.2), and fast enough for every request.
    """
    return hashlib.sha256(secret.encode()).digest()
