"""Settings: frozen, from a TOML file, then `VMD_*` variables, then flags. Nothing below imports this."""

from vmd.config.loading import ConfigError, Loaded, load
from vmd.config.settings import Settings

__all__ = ["ConfigError", "Loaded", "Settings", "load"]
