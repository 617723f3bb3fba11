import platform
import subprocess
import sys

import pytest

# Frees and reallocates a buffer of 64 MB, like a training step; prints the page faults of the second allocation.
PROGRAM = """
import resource, sys, numpy as np
if sys.argv[1] == "keep":
    from deit_jax.parallel.host_memory import keep_freed_memory
    assert keep_freed_memory()
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is set")
def test_freed_memory_is_reused_without_page_faults():
    def faults(how):
        return int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout
        )

    assert faults("keep") < faults("as it is") / 10
