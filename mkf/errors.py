"""The one exception tree of `mkf`.

    MkfError
    ├── InputError            a file, an array or an option that cannot be used as given
    │   ├── GraphError        an ONNX graph that cannot be read, edited or exported
    │   └── KeysError         a file of key filters that cannot be used
    ├── FitError              a fit that has no answer for these keys
    ├── SourceError           a network that cannot be loaded (name, weights, hub)
    ├── ExportError           an exported graph that does not reproduce its source
    ├── TrainingError         a training run that cannot start, go on or be trusted
    └── MissingExtraError     an optional dependency is not installed

Every message says what was wrong, where, and what to do next; `mkf`'s command line prints it as one
line and exits with status 1. The services share no code with `mkf`, so they have a root of their
own, `services.errors.ServiceError`.
"""


class MkfError(Exception):
    """Root of every error that `mkf` raises on purpose."""


class InputError(MkfError, ValueError):
    """A file, an array or an option cannot be used as given."""


class GraphError(InputError):
    """An ONNX graph cannot be read, edited or exported."""


class KeysError(InputError):
    """A file of key filters cannot be used."""


class FitError(MkfError):
    """A fit has no answer for these keys."""


class SourceError(MkfError):
    """A network cannot be loaded: unknown name, unusable weights, a hub out of reach."""


class ExportError(MkfError):
    """An exported graph does not reproduce its source, or cannot be written."""


class TrainingError(MkfError):
    """A training run cannot start, cannot go on, or cannot be trusted."""


class MissingExtraError(MkfError, ImportError):
    """An optional dependency is not installed."""


def one_line(error: Exception, *, limit: int = 300) -> str:
    """What another library's error says, on one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
