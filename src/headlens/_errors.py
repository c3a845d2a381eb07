"""Every error that headlens raises on purpose, as a tree.

A message is one or two sentences: what must be what, what it is, and what to do about it. The command
line prints it without a traceback, so it has to stand alone.
"""


class HeadlensError(Exception):
    """Root of all errors raised on purpose; its message is meant for the person at the keyboard."""


class ModelError(HeadlensError):
    """Something about a model: it cannot be found, read or trusted."""


class ModelNotFound(ModelError):
    """No model lives at the path, hub id or zoo name given."""


class UnsupportedArchitecture(ModelError):
    """The architecture, or one of its options, is outside the table in `models/families.py`."""


class InvalidWeights(ModelError):
    """The weights hold NaN or infinite numbers."""


class SiteError(HeadlensError):
    """A site does not exist in this model, or did not fire."""


class NotAffineError(HeadlensError):
    """A decomposition was asked of a map that is not affine; freeze its norms first."""


class DataError(HeadlensError, ValueError):
    """Something about data: text, tokens, arrays or labels that are missing, empty, too long or do not fit.

    Also a `ValueError`, as scikit-learn's contract asks of estimators.
    """


class ResultError(HeadlensError):
    """A saved result is damaged, of another type, or of a version that cannot be read."""


class OutputError(HeadlensError):
    """A file could not be written; nothing half-written was left behind."""


class ConfigError(HeadlensError):
    """The file with options cannot be read, or holds options of no command."""


class MissingExtra(HeadlensError):
    """A feature needs an optional dependency that is not installed."""


class StoreError(HeadlensError):
    """A store of activations is not there, not whole, damaged, or being written by someone else."""


class StoreMismatch(StoreError):
    """Activations of one model, site, corpus or option were given where those of another are wanted."""
