"""Speed, memory and cost of base and tuned model, measured in one run.

Concurrency c means c requests that come at the same moment. The engine does with them what it does in serving: those of
equal length go together, as many batches at once as it has workers, and each is answered when it is complete, its wait
for a worker included. Base and tuned answer every batch in turn, and who
begins changes from batch to batch, so that whatever else the machine does hits both alike.

What does not belong here: the endpoint around the engine (`serving`), and how fast single answers of the benchmark were
(`predictions.latency_ms`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import polars as pl

from ev_platform.engine_base import Engine
from ev_platform.prompting import Messages, passage_text
from ev_platform.records import InferenceFigure, to_frame
from ev_platform.tasks.config import EvaluationConfig
from ev_platform.tasks.splitting import spread_evenly
from ev_platform.tasks.types import TaskType

_WARM_UP_TOKENS = 2


@dataclass
class _Measured:
    latencies_ms: list[float] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    n_tokens: int = 0
    busy_s: float = 0.0
    memory_bytes: int = 0


def chats_of(
    predictions: pl.DataFrame,
    benchmark: pl.DataFrame,
    chunks: pl.DataFrame,
    task_type: TaskType,
    instructions: str,
    n: int,
) -> list[Messages]:
    """Return the chats of some benchmark questions, spread evenly, with the passages that they were evaluated with.

    Args:
        predictions: The `predictions` table; says which passages a question was given.
        benchmark: The `benchmark` table.
        chunks: The `chunks` table.
        task_type: Makes the chats; its last tuned system, which has passages where any has, is taken.
        instructions: The system message.
        n: How many; all of a shorter benchmark.
    """
    took_part = set(predictions["system"])
    system, _, has_passages = [s for s in task_type.systems() if s[1] == "tuned" and s[0] in took_part][-1]
    rows = spread_evenly(predictions.filter(pl.col("system") == system).to_dicts(), n)
    own = dict(benchmark.select("example_id", "context").iter_rows()) if has_passages else {}
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    chats = []
    for row in rows:
        context = own.get(row["example_id"])
        contexts = [context] if context else [passages[chunk_id] for chunk_id in row["context_chunk_ids"]]
        chats.append(task_type.prompt(instructions, row["question"], contexts))
    return chats


def measure_inference(
    engines: Mapping[str, tuple[str, Engine]], chats: Sequence[Messages], config: EvaluationConfig
) -> pl.DataFrame:
    """Measure every model at every concurrency.

    A concurrency that the number of chats is no multiple of starts over with the first chats, so that every batch is
    full. Percentiles are those of the measured requests, interpolated: of 8 requests, the 99th is about the slowest.
    Memory is the most that the process held after any of a model's batches, both models and all libraries included.

    Args:
        engines: For `base` and `tuned`: the artifact's id and its engine.
        chats: What is asked.
        config: Concurrencies, answer length, and what the machine costs.

    Returns:
        The table `inference_benchmark`: concurrencies as configured, models in their order; empty without chats.
    """
    if not chats:
        return to_frame("inference_benchmark", [])
    prompts = {model: [engine.render(chat) for chat in chats] for model, (_, engine) in engines.items()}
    for model, (_, engine) in engines.items():  # the first call of an engine allocates what the others reuse
        engine.generate(prompts[model][:1], max_new_tokens=_WARM_UP_TOKENS)
    figures = []
    for concurrency in dict.fromkeys(config.concurrencies):
        measured = {model: _Measured() for model in engines}
        n_batches = ceil(len(chats) / concurrency)
        for batch in range(n_batches):
            asked = [(batch * concurrency + place) % len(chats) for place in range(concurrency)]
            for model in list(engines)[:: -1 if batch % 2 else 1]:
                _answer(engines[model][1], [prompts[model][index] for index in asked], config, measured[model])
        for model, (model_id, _) in engines.items():
            n_requests = n_batches * concurrency
            figures.append(_figure(model, model_id, concurrency, n_requests, measured[model], config))
    return to_frame("inference_benchmark", figures)


def _answer(engine: Engine, prompts: Sequence[str], config: EvaluationConfig, measured: _Measured) -> None:
    import psutil

    started = time.perf_counter()
    completions = engine.generate(prompts, max_new_tokens=config.max_new_tokens)
    measured.busy_s += time.perf_counter() - started
    measured.latencies_ms += [completion.latency_ms for completion in completions]
    measured.first_token_ms += [c.first_token_ms for c in completions if c.first_token_ms is not None]
    measured.n_tokens += sum(completion.n_completion_tokens for completion in completions)
    measured.memory_bytes = max(measured.memory_bytes, psutil.Process().memory_info().rss)


def _figure(
    model: str, model_id: str, concurrency: int, n_requests: int, measured: _Measured, config: EvaluationConfig
) -> InferenceFigure:
    p50, p95, p99 = np.percentile(measured.latencies_ms, [50, 95, 99]).round(3).tolist()
    first = measured.first_token_ms
    return InferenceFigure(
        model=model,
        model_id=model_id,
        concurrency=concurrency,
        n_requests=n_requests,
        latency_ms_p50=p50,
        latency_ms_p95=p95,
        latency_ms_p99=p99,
        first_token_ms_p50=round(float(np.median(first)), 3) if first else None,
        tokens_per_second=round(measured.n_tokens / measured.busy_s, 3) if first else None,
        memory_bytes=measured.memory_bytes,
        usd_per_1000_answers=round(config.machine_usd_per_hour / 3600 * measured.busy_s / n_requests * 1000, 6),
    )
