"""A domain small-language-model factory as a Dagster asset graph."""

__version__ = "0.1.0"
