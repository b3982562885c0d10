"""What goes wrong with templates: vzctl's exit code for containers, vzpkg's own for vzpkg(8).

``code`` is what ``vzctl`` ends with, ``vzpkg_code`` what ``vzpkg`` does (libvztt ``vzpkg.8``,
EXIT STATUS).
"""

from __future__ import annotations

from typing import ClassVar

from runtime import errors
from runtime.errors import TemplateMissing, VzError


class TemplateError(VzError):
    """A template operation failed."""

    code: ClassVar[int] = 3
    vzpkg_code: ClassVar[int] = 1


class ProgramFailed(TemplateError):
    """A program that builds or changes a template returned an error."""

    code = 93
    vzpkg_code = 8


class ObjectNotFound(TemplateError):
    """The file or object cannot be found."""

    vzpkg_code = 9


class BrokenLink(TemplateError):
    """A magic link points to nothing."""

    vzpkg_code = 13


class BadRecipe(TemplateError):
    """The definition of the template cannot be read."""

    vzpkg_code = 14


class NotUpToDate(TemplateError):
    """Updates are available."""

    vzpkg_code = 22


class NotCached(TemplateMissing):
    """The OS template has no cache."""

    vzpkg_code = 23


class TemplateNotFound(TemplateMissing):
    """The template cannot be found."""

    vzpkg_code = 24


class TemplateBroken(TemplateMissing):
    """The template is damaged."""

    vzpkg_code = 25


class NotInContainer(TemplateError):
    """The template is not installed in the container."""

    code = 87
    vzpkg_code = 26


class TemplateInUse(TemplateError):
    """The template is in use."""

    vzpkg_code = 27


class CacheExists(TemplateError):
    """The cache exists already."""

    vzpkg_code = 29


class BaseHasSets(TemplateError):
    """The base template has extra sets, which go first."""

    vzpkg_code = 32


class NoPackageManager(TemplateError):
    """The package manager of the template is not known."""

    vzpkg_code = 45


class BadName(TemplateMissing):
    """The name of the template is not valid."""

    vzpkg_code = 46


class FetchFailed(TemplateError):
    """Packages could not be fetched."""

    code = 93
    vzpkg_code = 52


class NoRepository(TemplateError):
    """No source of the template's packages is known."""

    code = 93
    vzpkg_code = 56


class HasApplications(TemplateError):
    """Application templates are installed."""

    vzpkg_code = 65


class ManagerFailed(TemplateError):
    """The package manager returned an error."""

    code = 87
    vzpkg_code = 70


class NoPackageOperations(TemplateError):
    """This template has no packages to work on."""

    vzpkg_code = 73


#: What vzpkg ends with for errors of the rest of the system.
_COMMON: tuple[tuple[type[VzError], int], ...] = (
    (errors.InvalidOption, 35),
    (errors.InvalidValue, 35),
    (errors.NotPermitted, 10),
    (errors.NotRunning, 15),
    (errors.ConfigMissing, 16),
    (errors.Mounted, 19),
    (errors.Locked, 21),
    (errors.LockDirUnset, 36),
    (errors.OutOfMemory, 4),
    (errors.PrivateExists, 6),
    (errors.TemplateMissing, 24),
)


def vzpkg_code(error: VzError) -> int:
    """Return the exit status of vzpkg for ``error``."""
    if isinstance(error, TemplateError | TemplateMissing):
        own = getattr(error, "vzpkg_code", None)
        if own is not None:
            return int(own)
    return next((code for cls, code in _COMMON if isinstance(error, cls)), 1)
