"""What goes wrong for reasons that are the user's to mend: one base, and the four kinds that callers tell apart."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class AfpError(ValueError):
    """A setting, a file or a folder is not usable; the message names it, its value and what was expected."""


class ImageError(AfpError):
    """A file that cannot be used as an image; the message names the file and the reason."""


class UnreadableImages(AfpError):
    """Several files that cannot be used as images.

    Args:
        errors: file -> its message.
    """

    def __init__(self, errors: dict[str, str]) -> None:
        self.errors = errors
        super().__init__("\n".join([f"{len(errors)} unreadable image(s):", *self.errors.values()]))


class DataError(AfpError):
    """A manifest, a table or a run folder is not what it should be."""


class ModelError(AfpError):
    """A backbone, a detector or a checkpoint cannot be loaded, trained or used as asked."""


def require(module: str, extra: str) -> ModuleType:
    """Import a package that only one chapter needs.

    Args:
        module: its name in an import, such as "ncnn".
        extra: the optional dependencies of ``pyproject.toml`` that bring it.
    Raises:
        AfpError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise AfpError(f"{module} is not installed; `pip install -e '.[{extra}]'` brings it") from None
