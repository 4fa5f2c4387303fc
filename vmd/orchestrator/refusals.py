"""What a provider has against a request, as its caller hears it."""

from vmd.model.errors import ErrorCode, Refused
from vmd.providers.base import ProviderUnavailable

RETRY_AFTER_SECONDS = 5


def refused_by_provider(error: Exception) -> Refused:
    """Return the refusal for a ProviderError or ProviderUnavailable."""
    if isinstance(error, ProviderUnavailable):
        return Refused(ErrorCode.PROVIDER_UNAVAILABLE, str(error), retry_after_seconds=RETRY_AFTER_SECONDS)
    return Refused(ErrorCode.PROVIDER_ERROR, str(error))
