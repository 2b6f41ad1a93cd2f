"""Answers of every system to the benchmark, their scores, and what follows from them.

`predicting` asks and scores, `summary` compares, `statistics` decides, `report` shows. What does not belong here: which
rows the benchmark holds (`dataset`), and which version answers people (`registry`).
"""

from ev_platform.evaluation.predicting import evaluated_rows, predict

__all__ = ["evaluated_rows", "predict"]
