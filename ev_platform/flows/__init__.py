"""Prefect: the flow that materializes the graph, started by hand or every week. Nothing outside imports prefect."""
