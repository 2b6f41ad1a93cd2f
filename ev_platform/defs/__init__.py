"""The Dagster side: one file per stage, and what they share. Nothing outside this package imports dagster.

An asset here reads configuration, calls one function of its stage's package, and returns metadata.
"""
