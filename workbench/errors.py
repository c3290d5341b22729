"""The errors that a user of the workbench can meet: each message says the value seen, the rule and the remedy."""


class WorkbenchError(Exception):
    """Base of every error that the workbench raises on purpose."""


class ConfigError(WorkbenchError, ValueError):
    """An argument, a recipe or a configuration breaks a rule."""


class DataError(WorkbenchError, ValueError):
    """A data file or a row of it cannot be turned into an example."""


class ModelError(WorkbenchError, OSError):
    """A model or tokenizer cannot be loaded, or does not fit what was asked of it."""


class MergeError(WorkbenchError, ValueError):
    """Parents of a merge do not fit each other."""


class WorkbenchWarning(UserWarning):
    """Something worth knowing that does not make the result wrong; an error under the project's own tests."""
