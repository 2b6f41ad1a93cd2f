"""A disk that is full while a run publishes: the run says so, and after room was made a rerun ends as ever."""

import os
import subprocess

import pytest

from .harness import LONGEST_RUN_S, NOTHING, ended_afterwards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def disk(tmp_path):
    """Return a folder that is a disk of its own, and a function that sets its size in bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("a small disk can only be mounted by root")

    def resize(n_bytes):
        subprocess.run(["mount", "-o", f"remount,size={n_bytes}", folder], check=True)

    yield folder, resize
    subprocess.run(["umount", "--lazy", folder], check=True)


def size(folder):
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("part", [0.02, 0.2, 0.5, 0.8, 0.95])
def test_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(undisturbed, disk, tmp_path, part):
    folder, resize = disk
    with ended_afterwards(undisturbed.place.fresh(tmp_path / "place")) as place:
        place.data.symlink_to(folder)
        needed = size(undisturbed.place.data)
        resize(int(part * needed))
        assert place.start_run().wait(LONGEST_RUN_S) == 1, place.told()
        told, n_tables = place.told(), place.n_tables()
        print(f"\n{part:.0%} of {needed / 1e6:.0f} MB: {n_tables} tables, {told.strip().splitlines()[-1]!r}")
        assert "is full" in told
        assert "Traceback" not in told
        resize(4 * needed)
        seconds = place.run()
        print(f"rerun {seconds:.0f} s")
        assert place.state() == undisturbed.state
        assert place.unfinished() == NOTHING
