"""Capturing standard error, even what C code writes."""

import os

import pytest

from pipeline.runtime.stderr import capture_stderr


def test_capture_stderr_hides_what_is_written_to_the_file_descriptor(capfd):
    with capture_stderr():
        os.write(2, b"noise\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_capture_stderr_shows_it_if_an_exception_is_raised(capfd):
    with pytest.raises(ImportError), capture_stderr():
        os.write(2, b"the reason\n")
        raise ImportError
    assert capfd.readouterr().err == "the reason\n"
