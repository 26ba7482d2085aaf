"""What the kernel has to do for large blocks that are freed and taken again, counted in page faults."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from pipeline.machine.allocator import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
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
        cwd=Path(__file__).parents[2],
        env={"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "not glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_a_large_block_taken_again_is_not_mapped_anew():
    assert page_faults("keep") < page_faults() / 10
