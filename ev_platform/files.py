"""Files that are whole at every moment, and the errors of a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What a write fails with where the disk, the quota or the allowed size of a file is used up.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, data: bytes | memoryview, mode: int = 0o644, *, sync: bool = True) -> None:
    """Write a file so that readers see the old bytes or the new ones, also after a crash.

    Args:
        path: Its folder is made where there is none.
        data: All of it.
        mode: Permissions, less what the process's umask takes away.
        sync: Whether the bytes must be on the disk on return; without, they are safe from the process's death only.
    """
    write_atomic_at(str(path.parent), path.name, data, mode, sync=sync)


# Plain strings and calls of `os`: pathlib and tempfile would triple what it costs to store a crawled page.
def write_atomic_at(folder: str, name: str, data: bytes | memoryview, mode: int, *, sync: bool) -> None:
    """Do the same for a folder and a name that are strings."""
    scratch = f"{folder}/.tmp-{os.urandom(8).hex()}"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    try:
        handle = os.open(scratch, flags, mode)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        handle = os.open(scratch, flags, mode)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            if sync:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(scratch, f"{folder}/{name}")  # noqa: PTH105 - the tests' fault injector watches this very call
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
