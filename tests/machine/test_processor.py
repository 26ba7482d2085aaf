"""What is read of a processor, from files that Linux writes for some."""

import os
import platform

import pytest

from pipeline.machine import processor


@pytest.mark.parametrize(
    ("told", "name", "able"),
    [
        ("processor\t: 0\nmodel name\t: some 7\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", "some 7", False),
        ("model name\t: some 8\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "some 8", True),
        ("model name\t: some 9\nflags\t\t: fpu amx_tile amx_bf16\n\nmodel name\t: another\n", "some 9", True),
    ],
)
def test_name_and_instructions_are_the_first_processors(told, name, able, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(processor, "LINUX_FILE", str(tmp_path / "cpuinfo"))
    assert (processor.name(), processor.has_bfloat16()) == (name, able)


def test_where_the_system_tells_nothing_there_is_a_name_still_and_no_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "LINUX_FILE", str(tmp_path / "not there"))
    assert processor.name()
    assert not processor.has_bfloat16()


@pytest.mark.parametrize(
    ("machine", "said", "found"),
    [("x86_64", None, "1"), ("AMD64", None, "1"), ("x86_64", "0", "0"), ("aarch64", None, None)],
)
def test_onednn_is_preferred_on_x86_unless_the_environment_says_otherwise(machine, said, found, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", said or "")  # so that it is put back after the test
    if said is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    processor.prefer_onednn()
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == found
