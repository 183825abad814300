"""Errors a user can act on. Each message says what is wrong, where (file, row, key) and what to do next."""

from importlib.util import find_spec


class CodeActError(Exception):
    """Base of every error that CodeACT raises on bad input or a missing precondition."""


class ProfileError(CodeActError):
    """A profile is missing, has an unknown key, or a value of the wrong type."""


class DataError(CodeActError):
    """An instruction set or a benchmark file cannot be read or holds nothing usable."""


class ArtifactError(CodeActError):
    """An artifact is missing, damaged, or its folder cannot be written."""


class ModelError(CodeActError):
    """A model or tokenizer cannot be loaded, or cannot do what was asked of it."""


class EvaluationError(CodeActError):
    """Samples or a benchmark cannot be judged."""


class SandboxError(CodeActError):
    """The isolation that was asked for is not available here."""


def require_package(package: str, extra: str) -> None:
    """`CodeActError` naming the extra to install where `package`, which only some uses need, is not there."""
    if find_spec(package) is None:
        raise CodeActError(f"This needs {package}, which is not installed: pip install 'codeact-lib[{extra}]'.")


def first_line(error: BaseException) -> str:
    """What an error says, on one line; the name of its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
