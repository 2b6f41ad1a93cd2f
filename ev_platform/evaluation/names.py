"""What metrics are called where people read them, and how their figures are written.

What does not belong here: computing them (`metrics`, `summary`), and where they are shown (`report`).
"""

from __future__ import annotations

# Metric, name for people, format of its figures. What scores come first in every table, in this order.
SCORES = (
    ("accuracy", "accuracy", "{:.3f}"),
    ("macro_f1", "macro F1", "{:.3f}"),
    ("exact_match", "exact match", "{:.3f}"),
    ("token_f1", "token F1", "{:.3f}"),
    ("rouge_l", "ROUGE-L", "{:.3f}"),
    ("rouge_1", "ROUGE-1", "{:.3f}"),
    ("rouge_2", "ROUGE-2", "{:.3f}"),
    ("meteor", "METEOR", "{:.3f}"),
    ("chrf", "chrF", "{:.1f}"),
    ("bleu", "BLEU", "{:.1f}"),
    ("groundedness", "grounded", "{:.3f}"),
    ("citation_support", "supported by passages", "{:.3f}"),
    ("abstention_recall", "declined, rightly", "{:.3f}"),
    ("abstention_false", "declined, wrongly", "{:.3f}"),
    ("gold_retrieved", "gold passage found", "{:.3f}"),
    ("answer_tokens", "answer, tokens", "{:.1f}"),
    ("latency_ms_p50", "latency p50, ms", "{:,.0f}"),
    ("latency_ms_p95", "latency p95, ms", "{:,.0f}"),
    ("tokens_per_second", "tokens per second", "{:,.1f}"),
)
DIFFERENCES = (
    ("accuracy", "accuracy", "{:+.3f}"),
    ("token_f1", "token F1", "{:+.3f}"),
    ("rouge_l", "ROUGE-L", "{:+.3f}"),
    ("exact_match", "exact match", "{:+.3f}"),
    ("latency_ms", "latency, ms", "{:+,.0f}"),
)
COSTS = ("answer_tokens", "latency_ms_p50", "latency_ms_p95", "tokens_per_second")  # all others are quality
# What a figure means, where its name does not say it.
MEANINGS = {
    "accuracy": "Accuracy is the share of right labels.",
    "macro_f1": "Macro F1 is the mean over the labels, each counting alike.",
    "token_f1": "Exact match and token F1 follow SQuAD 1.1; each is 0 to 1, by the accepted answer that gives most.",
    "rouge_l": "ROUGE (F-measure, without stemming) runs from 0 to 1.",
    "meteor": "METEOR, 0 to 1, knows no synonyms here.",
    "chrf": "chrF runs from 0 to 100.",
    "bleu": "BLEU (sacrebleu, 13a, whole test set) runs from 0 to 100.",
    "groundedness": "Grounded is the share of an answer's content words that stand in its passages.",
    "citation_support": "Supported by passages are answers of which nearly all stands in them.",
    "abstention_recall": "Declined, rightly: the share of questions without an answer where the system said so.",
    "abstention_false": "Declined, wrongly: the share of the other questions where it said so.",
    "gold_retrieved": "Gold passage found: the share of questions with a known passage where retrieval brought it.",
}
METRIC_NAMES = {metric: name for metric, name, _ in SCORES}
