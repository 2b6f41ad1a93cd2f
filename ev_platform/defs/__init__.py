"""The Dagster side: one file per stage, and what they share. Outside it, only `definitions` imports dagster.

An asset here reads configuration, calls one function of its stage's package, and returns metadata.
"""
