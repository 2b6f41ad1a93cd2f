"""Tokens per second of the serving engine against transformers' generate, same model, same prompts, greedy."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl

from ev_platform.engine import CTranslate2Engine, TransformersEngine, load_engine
from ev_platform.training.packages import write_ctranslate2

N_PROMPTS = 8
NEW_TOKENS = 32


def test_engine_speed(base: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "serving"
    out.mkdir()
    write_ctranslate2(base, out)
    figures = {}
    engines = {
        "transformers, float32": TransformersEngine(base),
        "CTranslate2, int8, two threads": CTranslate2Engine(out, threads=2),
        "CTranslate2, int8, as served": load_engine(out),
    }
    for name, engine in engines.items():
        prompts = [engine.render(messages[:-1]) for messages in rows["messages"].to_list()[:N_PROMPTS]]
        engine.generate(prompts[:1], max_new_tokens=4)
        started = time.perf_counter()
        n_tokens = sum(c.n_completion_tokens for p in prompts for c in engine.generate([p], max_new_tokens=NEW_TOKENS))
        figures[name] = n_tokens / (time.perf_counter() - started)
    plain = figures["transformers, float32"]
    print(f"\n{'generation, one at a time':<32}       tokens/s   ratio")
    for name, value in figures.items():
        print(f"{name:<32} {value:15.1f} {value / plain:7.2f}")
