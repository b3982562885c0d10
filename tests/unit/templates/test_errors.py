"""Exit codes of vzpkg."""

from __future__ import annotations

import pytest

from runtime import errors
from templates import errors as template_errors
from templates.errors import vzpkg_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (template_errors.CacheExists(), 29),
        (template_errors.NotCached(), 23),
        (template_errors.TemplateNotFound(), 24),
        (template_errors.NoPackageOperations(), 73),
        (errors.InvalidOption("x"), 35),
        (errors.NotRunning("x"), 15),
        (errors.Locked("x"), 21),
        (errors.NotPermitted("x"), 10),
        (errors.VzError("x"), 1),
    ],
)
def test_each_error_has_the_code_of_the_manual(error: errors.VzError, code: int) -> None:
    assert vzpkg_code(error) == code


def test_no_two_errors_of_ours_share_a_code_by_accident() -> None:
    classes = [
        cls
        for cls in vars(template_errors).values()
        if isinstance(cls, type) and "vzpkg_code" in vars(cls)
    ]
    codes = [cls.vzpkg_code for cls in classes]
    assert len(codes) == len(set(codes))


def test_a_missing_template_is_91_for_vzctl() -> None:
    assert issubclass(template_errors.TemplateNotFound, errors.TemplateMissing)
    assert template_errors.NotCached.code == 91
