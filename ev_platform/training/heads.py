"""Heads on an encoder, trained by transformers' Trainer: one of the task's labels, or a span of a passage.

An encoder is trained on what `encoder` gives it to read in evaluation and in serving: the user message, without the
instructions.

What does not belong here: the loop (`loop`), and how an answer is chosen (`encoder`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ev_platform.encoder import Reading, Window, count_tokens, find_spans, is_too_long, read_windows
from ev_platform.errors import UserError
from ev_platform.pooling import classifier_class
from ev_platform.prompting import split_input
from ev_platform.training.base import hide_loading_bars, load_tokenizer
from ev_platform.training.loop import Job, Result, arguments, fit, make_portable
from ev_platform.training.recipes import Recipe

_TASK_TYPES = {"classification": "SEQ_CLS", "extractive": "QUESTION_ANS"}  # as peft calls them
_POOLER = "pooler"
_IGNORED = -100  # label of a row without a loss


def train_classifier(job: Job) -> Result:
    """Train a head that gives each text one of the task's labels, and save it with the tokenizer.

    Returns:
        As `fit`; `n_rows_too_long` and `n_validation_rows_too_long` count the rows with more tokens than `max_length`.

    Raises:
        UserError: If a row's label is none of the task's, no row fits, or as `fit`.
    """
    recipe = job.recipe
    tokenizer = load_tokenizer(job.base)
    reading = reading_of(recipe, job.no_answer)
    ids = {label: number for number, label in enumerate(job.labels)}
    if len(ids) < 2:
        raise UserError("The head classification needs two labels or more: name them in classes_description.")
    figures: dict[str, Any] = {}
    tables: list[list[dict[str, Any]]] = []
    for table, name in ((job.training, "n_rows_too_long"), (job.validation, "n_validation_rows_too_long")):
        rows = []
        for row in table.iter_rows(named=True):
            if row["answer"] not in ids:
                raise UserError(
                    f"The label {row['answer']!r} of {row['question'][:40]!r} is none of the task's: {', '.join(ids)}."
                )
            windows = read_windows(tokenizer, row["input"], reading)
            if len(windows) == 1:
                rows.append(windows[0].inputs | {"labels": ids[row["answer"]]})
        figures[name] = table.height - len(rows)
        tables.append(rows)
    if not tables[0]:
        shortest = min((count_tokens(tokenizer, text) for text in job.training["input"]), default="no")
        raise UserError(
            f"No training row fits max_length {recipe.max_length}: {job.training.height} rows, the shortest has "
            f"{shortest} tokens; raise max_length or shorten the texts."
        )
    trainer, fitted, steps = _train(job, tokenizer, reading, *tables)
    _save(job, trainer.model, tokenizer)
    return fitted | figures, steps


def train_extractive(job: Job) -> Result:
    """Train a head that points at the answer in a passage, and save it with the tokenizer.

    Windows that do not hold a row's answer, and those of unanswerable rows, train the position of "no answer".

    Returns:
        As `fit`, where a row is a window; `n_questions` are trained on, the others are counted by what is wrong with
        them: `n_rows_without_passage`, `n_rows_without_span` (the answer does not stand in the passage),
        `n_rows_too_long` (the question leaves no room, or no window holds the whole answer). `n_spans_widened` answers
        begin or end within a token, and `n_answers_over_max_answer_tokens` are too long to be found. `null_threshold`
        is None where no row is unanswerable.

    Raises:
        UserError: If no row can be used, or as `fit`.
    """
    from ev_platform.evaluation.squad import best_threshold

    tokenizer = load_tokenizer(job.base)
    reading = reading_of(job.recipe, job.no_answer)
    rows, counts = _span_rows(tokenizer, job.training.to_dicts(), reading)
    looks, look_counts = _span_rows(tokenizer, job.validation.to_dicts(), reading)
    if not rows:
        raise UserError(
            f"None of {job.training.height} training rows can be learned from: in {counts['n_rows_without_span']} the "
            f"answer does not stand in the passage, {counts['n_rows_without_passage']} have no passage, "
            f"{counts['n_rows_too_long']} are too long; the head extractive needs answers in the passage's own words."
        )
    trainer, fitted, steps = _train(job, tokenizer, reading, rows, looks)
    figures: dict[str, Any] = {**counts, "n_validation_rows_left_out": sum(look_counts[name] for name in _LEFT_OUT)}
    if not all([*job.training["is_answerable"], *job.validation["is_answerable"]]):
        asked = [row for row in job.validation.to_dicts() if _flaw(tokenizer, row["input"], reading) is None]
        threshold = 0.0
        if asked:
            spans = find_spans(trainer.model.eval(), tokenizer, [row["input"] for row in asked], reading)
            nulls = [span.null_score - span.score for span in spans]
            accepted = [row["answers"] or [row["answer"]] if row["is_answerable"] else [] for row in asked]
            threshold = _with_margin(best_threshold([span.text for span in spans], accepted, nulls), nulls)
        reading = replace(reading, null_threshold=threshold)
    trainer.model.config.reading = asdict(reading)
    _save(job, trainer.model, tokenizer)
    return fitted | figures | {"null_threshold": reading.null_threshold}, steps


def _with_margin(threshold: float, null_scores: list[float]) -> float:
    # SQuAD's threshold is the very score of the last question that is answered. Up to the next score all thresholds are
    # as good; one halfway is kinder to questions a little less sure than the validation set's.
    above = [score for score in null_scores if score > threshold]
    return (threshold + min(above)) / 2 if above else max(threshold, 0.0)


def reading_of(recipe: Recipe, no_answer: str) -> Reading:
    """Return how the head of a recipe reads, before a null threshold has been chosen."""
    if recipe.head == "classification":
        return Reading(recipe.max_length)
    return Reading(recipe.max_length, recipe.spans.stride, recipe.spans.max_answer_tokens, no_answer)


def with_head(base: Path, recipe: Recipe, labels: tuple[str, ...], reading: Reading) -> tuple[Any, set[str]]:
    """Load an encoder in float32 under a head whose first weights the recipe's seed decides.

    Returns:
        The model, and the names of the modules whose weights are not the base's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering, logging, set_seed

    hide_loading_bars()
    named: dict[str, Any] = {}
    kind: Any = AutoModelForQuestionAnswering
    if recipe.head == "classification":
        kind = classifier_class(AutoConfig.from_pretrained(base).model_type)
        ids = {label: number for number, label in enumerate(labels)}
        named = {"id2label": dict(enumerate(labels)), "label2id": ids, "problem_type": "single_label_classification"}
    config: Any = AutoConfig.from_pretrained(base, **named)
    config.reading = asdict(reading)
    set_seed(recipe.seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a new head has new weights is no news
    try:
        model, info = kind.from_pretrained(
            base, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity(verbosity)
    new = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    return model, {name.rpartition(".")[0] for name in new}


def _train(
    job: Job, tokenizer: Any, reading: Reading, rows: list[dict[str, Any]], looks: list[dict[str, Any]]
) -> tuple[Any, dict[str, Any], list[Any]]:
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    recipe, lora = job.recipe, job.recipe.lora
    if not looks:  # none of its rows can be read
        job = replace(job, validation=job.validation.clear())
    model, new = with_head(job.base, recipe, job.labels, reading)
    collate = DataCollatorWithPadding(tokenizer)
    if hasattr(model, "start_from_means"):
        ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
        model.start_from_means(collate([*ordered[n : n + 32]]) for n in range(0, len(ordered), 32))
    if lora is not None:
        n_layers, last = model.config.num_hidden_layers, lora.last_layers
        modules = lora.target_modules
        # A head under which nothing was trained before is trained in full. So is the pooler: a sentence embedder's
        # (MiniLM) was never used for what it was trained for.
        saved = new | {name for name, _ in model.named_modules() if name.endswith(_POOLER)}
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=modules if isinstance(modules, str) else list(modules),
            layers_to_transform=None if last is None else list(range(n_layers - last, n_layers)),
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            modules_to_save=sorted(saved),
            task_type=_TASK_TYPES[recipe.head],
        )
        model = get_peft_model(model, config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(job, len(rows)), label_names=["labels"]),
        compute_loss_func=_loss,
        train_dataset=rows,  # type: ignore[arg-type]
        eval_dataset=sorted(looks, key=lambda row: len(row["input_ids"])) or None,  # type: ignore[arg-type]
        data_collator=collate,
        processing_class=tokenizer,
    )
    n_tokens = sum(len(row["input_ids"]) for row in rows)
    figures, steps = fit(trainer, job, n_tokens=n_tokens, n_answer_tokens=len(rows))
    return trainer, figures, steps


def _loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Cross entropy summed over rows and divided by the labels of the whole step, of which a batch may be a part.

    The model's own loss is a batch's mean: accumulated, or computed by several processes, it would be another loss.
    """
    from torch.nn.functional import cross_entropy

    columns = labels.reshape(len(labels), -1).T
    logits = [outputs.logits] if "logits" in outputs else [outputs.start_logits, outputs.end_logits]
    total = sum(cross_entropy(scores, wanted, reduction="sum") for scores, wanted in zip(logits, columns, strict=True))
    return total / (labels.ne(_IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def _save(job: Job, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(job.out)
    make_portable(job)
    model.config.save_pretrained(job.out)  # peft does not
    tokenizer.save_pretrained(job.out)


_LEFT_OUT = ("n_rows_without_passage", "n_rows_without_span", "n_rows_too_long")
_COUNTS = ("n_questions", *_LEFT_OUT, "n_spans_widened", "n_answers_over_max_answer_tokens")


def _span_rows(
    tokenizer: Any, table: list[dict[str, Any]], reading: Reading
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return windows with the token positions of their answers, and what was counted on the way."""
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    rows: list[dict[str, Any]] = []
    for row in table:
        flaw = _flaw(tokenizer, row["input"], reading)
        if flaw is not None:
            counts[flaw] += 1
            continue
        passages, _ = split_input(row["input"])
        place = find_answer(row, passages) if row["is_answerable"] else None
        if row["is_answerable"] and place is None:
            counts["n_rows_without_span"] += 1
            continue
        windows = read_windows(tokenizer, row["input"], reading)
        found = [None if place is None else _tokens_of(window, *place) for window in windows]
        pairs = [pair for pair in found if pair is not None]
        if place is not None and not pairs:
            counts["n_rows_too_long"] += 1
            continue
        counts["n_questions"] += 1
        if place is not None:
            first, last = pairs[0]
            window = windows[found.index(pairs[0])]
            answer, span = passages[slice(*place)], passages[window.starts[first] : window.ends[last]]
            counts["n_spans_widened"] += answer.split() != span.split()
            counts["n_answers_over_max_answer_tokens"] += last - first >= reading.max_answer_tokens
        for window, pair in zip(windows, found, strict=True):
            null_at = window.inputs["input_ids"].index(tokenizer.cls_token_id)
            start, end = pair or (null_at, null_at)
            rows.append(window.inputs | {"labels": [start, end]})
    return rows, dict(counts)


def _flaw(tokenizer: Any, text: str, reading: Reading) -> str | None:
    passages, question = split_input(text)
    if not passages.strip():
        return "n_rows_without_passage"
    return "n_rows_too_long" if is_too_long(tokenizer, question, reading) else None


def find_answer(row: dict[str, Any], passages: str) -> tuple[int, int] | None:
    """Return where a row's answer stands in its passages, in characters; None where it does not.

    That is at `answer_start` of the row's own context; else where one of its answers first stands as whole words, else
    where it first stands at all. A line break counts as a blank, and capital letters do not count.
    """
    context, start, answer = row["context"], row["answer_start"], row["answer"]
    if context and start is not None and context[start : start + len(answer)] == answer:
        offset = passages.find(context)
        if offset >= 0:
            return offset + start, offset + start + len(answer)
    patterns = [r"\s+".join(map(re.escape, text.split())) for text in [answer, *(row["answers"] or [])] if text.strip()]
    for form in (r"(?<!\w){}(?!\w)", "{}"):
        for pattern in patterns:
            # Not format: a pattern may hold braces.
            found = re.search(form.replace("{}", pattern), passages, re.IGNORECASE)
            if found:
                return found.span()
    return None


def _tokens_of(window: Window, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and last token of a span of characters; None where the window does not hold all of it."""
    inside = [
        n for n, (s, e) in enumerate(zip(window.starts, window.ends, strict=True)) if s < end and e > start and s >= 0
    ]
    if not inside or window.starts[inside[0]] > start or window.ends[inside[-1]] < end:
        return None
    return inside[0], inside[-1]
