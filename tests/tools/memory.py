"""A folder in memory for tests that write much and need none of it to last."""

import os
import shutil

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 1 << 30 else None
"""There fsync costs nothing, and the death of a process is the same; None where there is no such folder or little room."""
