"""Definitions of templates as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from templates.errors import BadRecipe, TemplateBroken
from templates.recipe import Recipe


@pytest.fixture
def base(tmp_path: Path) -> Recipe:
    directory = tmp_path / "default"
    directory.mkdir()
    (directory / "packages").write_text("# a comment\nbash\n\ncoreutils=9.1  # why\n")
    (directory / "package_manager").write_text("dpkgx64\n")
    (directory / "environment").write_text('A=1\nB="two words"\n')
    (directory / "repositories").write_text("$X_SERVER stable main\n")
    (directory / "post-cache").write_text("true\n")
    return Recipe(directory)


def test_packages_are_lines_without_comments(base: Recipe) -> None:
    assert base.packages == ["bash", "coreutils=9.1"]


def test_numbered_package_files_follow(base: Recipe) -> None:
    (base.directory / "packages_0").write_text("bash\nless\n")
    assert base.packages == ["bash", "coreutils=9.1", "less"]


def test_a_set_has_the_fields_of_its_base_and_adds_to_its_lists(
    base: Recipe, tmp_path: Path
) -> None:
    directory = tmp_path / "server"
    directory.mkdir()
    (directory / "packages").write_text("cron\nbash\n")
    (directory / "summary").write_text("mine\n")
    (directory / "post-cache").write_text("true\n")
    made = Recipe(directory, base)
    assert made.packages == ["bash", "coreutils=9.1", "cron"]
    assert made.package_manager == "dpkgx64"
    assert made.summary == "mine"
    assert made.scripts("post-cache") == [base.directory / "post-cache", directory / "post-cache"]


def test_the_environment_is_assignments(base: Recipe) -> None:
    assert base.environment == {"A": "1", "B": "two words"}


def test_a_definition_without_package_manager_is_broken(tmp_path: Path) -> None:
    with pytest.raises(TemplateBroken):
        _ = Recipe(tmp_path).package_manager


def test_a_file_that_is_no_text_is_named(base: Recipe) -> None:
    (base.directory / "summary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRecipe, match="summary"):
        _ = base.summary
