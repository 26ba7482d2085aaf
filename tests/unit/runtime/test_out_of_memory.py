"""Which errors and counts show that memory ran out."""

import errno

import numpy as np
import pytest

from pipeline.runtime import out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."),
        RuntimeError("INTERNAL: failed to allocate, CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_is_oom_error_recognises_type_or_message(error):
    assert out_of_memory.is_oom_error(error)


def test_is_oom_error_recognises_numpy_array_too_large_for_memory():
    with pytest.raises(MemoryError) as raised:
        np.ones(2**55, np.uint8)
    assert out_of_memory.is_oom_error(raised.value)


def test_describe_oom_takes_the_line_that_says_it():
    error = RuntimeError("Graph execution error:\n\n  OOM when allocating tensor with shape[8]\n [[node]]")
    assert out_of_memory.describe_oom(error) == "memory does not suffice (OOM when allocating tensor with shape[8])"
    assert out_of_memory.describe_oom(MemoryError()) == "memory does not suffice (MemoryError)"


def test_is_oom_error_rejects_other_errors_that_mention_memory():
    assert not out_of_memory.is_oom_error(ValueError("room for one more, memory is fine"))


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/pod/trial", "pod/trial/memory.events", "low 0\noom 9\noom_kill 3\n"),
        ("0::/seen/from/outside", "memory.events", "oom_kill 3\noom_group_kill 8\n"),
        ("4:cpu,memory:/pod", "memory/pod/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_oom_kill_count_reads_either_version_of_control_groups(monkeypatch, tmp_path, group, file, text):
    (tmp_path / "groups").write_text(f"{group}\n", encoding="ascii")
    counts = tmp_path / "mounted" / file
    counts.parent.mkdir(parents=True)
    counts.write_text(text, encoding="ascii")
    monkeypatch.setattr(out_of_memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(out_of_memory, "MOUNTS", tmp_path / "mounted")
    assert out_of_memory.oom_kill_count() == 3
