"""A tiny base model and rows in its own tokens."""

import pytest

from ev_platform.prompting import build_messages
from ev_platform.records import DatasetRow, to_frame
from ev_platform.training.tokens import chat_counter
from ev_platform_tests.tiny import DESCRIPTION, TRAIN, write_tiny_model

from .tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model")


def make_rows(folder, pairs, context=""):
    """Return a `training_set` frame of (question, answer) pairs, counted in the tokens of a model folder."""
    count = chat_counter(folder)
    rows = []
    for number, (question, answer) in enumerate(pairs):
        messages = build_messages(DESCRIPTION, question, [context] if context else [])
        n_tokens, n_answer_tokens = count(messages, answer)
        rows.append(
            DatasetRow(
                example_id=f"exm_{number}",
                split="train",
                question=question,
                answer=answer,
                answers=[answer],
                answer_start=None,
                is_answerable=True,
                context=None,
                chunk_id=None,
                document_id=None,
                cluster_id=None,
                origin="human",
                kind="human",
                context_chunk_ids=[],
                instruction=DESCRIPTION,
                input=messages[-1]["content"],
                output=answer,
                messages=[*messages, {"role": "assistant", "content": answer}],
                n_tokens=n_tokens,
                n_answer_tokens=n_answer_tokens,
            )
        )
    return to_frame("training_set", rows)


@pytest.fixture(scope="session")
def rows(tiny_base):
    return make_rows(tiny_base, [(question, answer) for question, answer, _ in TRAIN])
