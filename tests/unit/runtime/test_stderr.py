"""Start-up lines kept back, even those that C code writes."""

import os

import pytest

from pipeline.runtime.stderr import capture_stderr


def test_what_is_written_to_the_file_descriptor_is_kept_back(capfd):
    with capture_stderr():
        os.write(2, b"noise\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_it_is_shown_when_the_import_fails(capfd):
    with pytest.raises(ImportError), capture_stderr():
        os.write(2, b"the reason\n")
        raise ImportError
    assert capfd.readouterr().err == "the reason\n"
