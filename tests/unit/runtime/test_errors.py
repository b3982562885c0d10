"""The error tree is vzctl's table."""

from pathlib import Path

from runtime import errors


def test_every_error_says_what_it_means():
    for cls in errors.documented():
        if cls.__module__ != "runtime.errors":
            continue
        assert cls.__doc__
        assert cls().message


def test_a_message_and_a_hint_are_carried():
    error = errors.NotRunning("container 101 is not running", hint="start it")
    assert (error.code, error.message, error.hint) == (
        31,
        "container 101 is not running",
        "start it",
    )


def test_no_two_classes_of_the_floor_share_a_code():
    codes = [
        cls.code for cls in errors.documented() if Path(cls.__module__).name == "runtime.errors"
    ]
    assert len(codes) == len(set(codes))
