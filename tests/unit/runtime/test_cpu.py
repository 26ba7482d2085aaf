"""The CPU: malloc's page faults for large blocks, the processor's name and instructions, oneDNN."""

import subprocess
import sys

import pytest

from pipeline.runtime import cpu
from tests.support.paths import ROOT

PROGRAM = """
import resource, sys
import numpy as np
from pipeline.runtime.cpu import tune_malloc
if "keep" in sys.argv and not tune_malloc():
    sys.exit("not glibc")
def use():
    np.empty(64 * 2**20, np.uint8).fill(1)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env={"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "not glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_tune_malloc_avoids_page_faults_of_large_blocks_allocated_again():
    assert page_faults("keep") < page_faults() / 10


@pytest.mark.parametrize(
    ("cpuinfo", "name", "has_instructions"),
    [
        ("processor\t: 0\nmodel name\t: some 7\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", "some 7", False),
        ("model name\t: some 8\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "some 8", True),
        ("model name\t: some 9\nflags\t\t: fpu amx_tile amx_bf16\n\nmodel name\t: another\n", "some 9", True),
    ],
)
def test_processor_name_and_bfloat16_are_those_of_the_first_processor(
    cpuinfo, name, has_instructions, tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(cpu, "CPUINFO", str(tmp_path / "cpuinfo"))
    assert (cpu.processor_name(), cpu.has_bfloat16()) == (name, has_instructions)


def test_processor_without_cpuinfo_has_a_name_and_no_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CPUINFO", str(tmp_path / "not there"))
    assert cpu.processor_name()
    assert not cpu.has_bfloat16()


def test_instructions_are_those_of_the_system(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "CPUINFO", str(file))
    for text, expected in (("flags\t: fpu avx\n", "fpu avx"), ("Features\t: fp asimd\n", "fp asimd"), ("", "")):
        file.write_text(text)
        assert cpu.instructions() == expected
