"""Prefect: the flow that materializes the graph, started by hand or every week. Nothing outside imports prefect."""

import os

# Where no server is named, Prefect starts one for the run: 6 seconds, and more than its 20 on a machine that is busy.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

DEFAULT_TASK = "ev_charging"
