"""From chunks and hand-written rows to a training set: candidates, validation, splits, export.

What does not belong here: reading the task folder (`tasks`) and asking models (`evaluation`).
"""
