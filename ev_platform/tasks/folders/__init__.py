"""What a person does with a task folder before a run: make one, and have it checked.

- `new_task` writes a folder to fill in.
- `check_folder` returns a `Report` on one: what stops a run, and what its rows say about each other.
- `show` prints a report.

What does not belong here: reading the folder (`tasks`), and leaving rows out of a dataset (`dataset`).
"""

from ev_platform.tasks.folders.check import Report, check_folder
from ev_platform.tasks.folders.new import new_task

__all__ = ["Report", "check_folder", "new_task"]
