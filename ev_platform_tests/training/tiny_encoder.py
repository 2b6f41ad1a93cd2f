"""A random BERT of two layers with a WordPiece vocabulary of its own, and rows that it can learn."""

from pathlib import Path

from ev_platform.prompting import build_messages
from ev_platform.records import DatasetRow, to_frame
from ev_platform.training.recipes import Lora, Recipe, Spans
from ev_platform.training.tokens import chat_counter
from ev_platform_tests.tiny import DESCRIPTION

NO_ANSWER = "The passages do not say."
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = ["anna", "bob", "carl", "dora", "emil", "frida", "gustav", "hanna"]
CITIES = ["oslo", "rome", "paris", "bern", "wien", "riga", "prag", "kiew"]
TEXT = "lives in where does ? . , the passages do not say question : and works every day since"
WORDS = [*NAMES, *CITIES, *TEXT.split()]


def write_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a random encoder with its tokenizer; the same seed gives the same bytes."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)] + list("0123456789")
    vocabulary = [*SPECIAL, *dict.fromkeys(WORDS), *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.2,
            hidden_dropout_prob=0.1,
        )
    ).save_pretrained(folder)
    return folder


def encoder_recipe(**changes) -> Recipe:
    """Return the recipe of a head on the tiny encoder."""
    fields = {
        "base_model": "tiny",
        "head": "classification",
        "method": "lora",
        "lora": Lora(r=4, alpha=8, dropout=0.0, target_modules=("query", "value")),
        "learning_rate": 0.02,
        "scheduler": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 1,
        "batch_size": 4,
        "max_length": 64,
        "seed": 17,
    }
    if changes.get("head") == "extractive":
        fields["spans"] = Spans(stride=16, max_answer_tokens=8)
    if changes.get("method") == "full":
        changes["lora"] = None
    return Recipe(**{**fields, **changes})


def encoder_rows(folder: Path, rows, table: str = "training_set"):
    """Return a table of rows, each a dictionary with `question` and `answer`, and other columns where they matter."""
    count = chat_counter(folder)
    made = []
    for number, row in enumerate(rows):
        context = row.get("context")
        messages = build_messages(DESCRIPTION, row["question"], row.get("contexts", [context] if context else []))
        n_tokens, n_answer_tokens = count(messages, row["answer"])
        fields = {
            "example_id": f"exm_{number}",
            "split": "train",
            "answers": [row["answer"]],
            "answer_start": None,
            "is_answerable": True,
            "context": None,
            "chunk_id": None,
            "document_id": None,
            "cluster_id": None,
            "origin": "human",
            "kind": "human",
            "context_chunk_ids": [],
            "instruction": DESCRIPTION,
            "input": messages[-1]["content"],
            "output": row["answer"],
            "messages": [*messages, {"role": "assistant", "content": row["answer"]}],
            "n_tokens": n_tokens,
            "n_answer_tokens": n_answer_tokens,
        }
        made.append(DatasetRow(**{**fields, **{k: v for k, v in row.items() if k != "contexts"}}))
    return to_frame(table, made)


def span_rows(n=32, *, n_unanswerable=0):
    """Return rows about who lives where; of the last ones the passage does not tell."""
    rows = []
    for number in range(n):
        name, city = NAMES[number % 8], CITIES[(number * 3 + number // 8) % 8]
        other = NAMES[(number + 3) % 8]
        is_answerable = number < n - n_unanswerable
        context = f"{name if is_answerable else NAMES[(number + 5) % 8]} lives in {city} and {other} works every day."
        rows.append(
            {
                "question": f"where does {name} live?",
                "answer": city if is_answerable else NO_ANSWER,
                "answer_start": context.index(city) if is_answerable else None,
                "is_answerable": is_answerable,
                "context": context,
            }
        )
    return rows


def label_rows(n=24):
    """Return texts whose label is the city in them."""
    cities = CITIES[:3]
    return [
        {"question": f"{NAMES[n % 8]} lives in {cities[n % 3]} since every day", "answer": cities[n % 3]}
        for n in range(n)
    ]
