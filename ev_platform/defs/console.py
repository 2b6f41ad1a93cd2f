"""What a person who runs the graph from a terminal sees of it: one line for each finished step."""

import logging
import sys
from typing import Any

import dagster as dg


class StepLines(logging.Handler):
    """Prints a line for each finished or failed step, and nothing of Dagster's other events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the event of a log record, if it is the end of a step or a check that did not pass."""
        event: Any = getattr(record, "dagster_event", None)
        if event is None:
            meta = getattr(record, "dagster_meta", None) or {}
            event = meta.get("dagster_event")
        if event is None:
            return
        if event.is_step_success:
            seconds = event.step_success_data.duration_ms / 1000
            sys.stdout.write(f"  {event.step_key:<42} {seconds:7.1f} s\n")
        elif event.is_step_failure:
            sys.stdout.write(f"  {event.step_key:<42} failed\n")
        sys.stdout.flush()


def _make_logger(context: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("ev_platform.steps", level=logging.DEBUG)
    logger.addHandler(StepLines())
    return logger


step_lines = dg.LoggerDefinition(_make_logger, description="One line for each finished step.")
