"""The errors a user can cause or meet; each message names the thing, what was found, what was expected, what to do."""


class ThresherError(Exception):
    """Base of every error of this package; the command line prints it without a traceback."""

    exit_code = 2
    """What the command line exits with: 2 for a mistake the user can mend."""


class ConfigError(ThresherError, ValueError):
    """A configuration that cannot be used; all its mistakes are in one message, each with its dotted path."""


class SourceError(ThresherError):
    """Input data that is missing, empty or unreadable."""


class ModelError(ThresherError):
    """A model, a hook point or an activation that is not what was asked for."""


class StoreError(ThresherError):
    """An activation store that is missing, incomplete, damaged, of another version or in use."""


class CheckpointError(ThresherError):
    """A checkpoint of an SAE that cannot be read or does not fit the store."""


class AnalysisError(ThresherError):
    """An analysis that its inputs do not allow."""


class NetworkError(ThresherError):
    """A remote store that cannot be reached, although it was tried again and again; says nothing about the store itself."""
