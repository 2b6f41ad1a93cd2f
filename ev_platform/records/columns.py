"""What a column of a table can hold, and the mark of columns that take no part in a fingerprint."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl

VOLATILE = "volatile"
UTC_MICROSECONDS = pl.Datetime("us", "UTC")
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

DTYPES: dict[Any, Any] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
    datetime: UTC_MICROSECONDS,
    list[str]: pl.List(pl.String),
    list[int]: pl.List(pl.Int64),
    list[float]: pl.List(pl.Float32),
    list[dict[str, str]]: MESSAGES,
}
