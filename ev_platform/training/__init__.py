"""From a training set to weights that can be served: base model, adapter, merged model, serving export.

What does not belong here: which rows to train on (`dataset`) and whether the result is any good (`evaluation`).
"""
