import asyncio
import json
import time

import pytest

from ev_platform.encoder import EncoderEngine, Reading, Span, choose
from ev_platform.engine import load_engine
from ev_platform.errors import UserError
from ev_platform.prompting import build_messages
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask
from ev_platform.serving.worker import Worker
from ev_platform.tasks.types import get_task_type
from ev_platform.training.export import export_serving_model
from ev_platform_tests.serving.fakes import fake_release
from ev_platform_tests.training.tiny_encoder import CITIES, NAMES, NO_ANSWER, encoder_recipe, write_tiny_encoder

LABELS = tuple(CITIES[:3])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model")


def untrained(encoder, folder, **recipe):
    folder.mkdir()
    export_serving_model(encoder, folder, encoder_recipe(**recipe), LABELS, NO_ANSWER)
    return load_engine(folder)


@pytest.fixture(scope="module")
def classifier(encoder, tmp_path_factory):
    return untrained(encoder, tmp_path_factory.mktemp("labels") / "out")


@pytest.fixture(scope="module")
def extractor(encoder, tmp_path_factory):
    return untrained(encoder, tmp_path_factory.mktemp("spans") / "out", head="extractive")


def prompt(engine, question, *passages):
    return engine.render(build_messages("What the model is for.", question, passages))


def points_at(words, encoder, folder, **reading):
    """Return an engine whose start logit is high on one token and whose end logit on another; CLS is between."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    engine = untrained(encoder, folder, head="extractive")
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embeddings = model.bert.embeddings
    with torch.no_grad():
        # Every token is a unit vector of its own kind; no layer changes it, and the head looks for two of the kinds.
        embeddings.word_embeddings.weight.zero_()
        for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight.zero_()
        for axis, word in enumerate([*words, "[CLS]"]):
            embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(word), axis] = 1
        for layer in model.bert.encoder.layer:
            for part in (layer.attention.output.dense, layer.output.dense):
                part.weight.zero_()
                part.bias.zero_()
        model.qa_outputs.weight.zero_()
        model.qa_outputs.bias.zero_()
        model.qa_outputs.weight[0, 0] = model.qa_outputs.weight[1, 1] = 1
        model.qa_outputs.weight[:, 2] = 0.5
    model.config.reading |= reading
    model.save_pretrained(folder)
    assert isinstance(engine, EncoderEngine)
    return load_engine(folder)


def test_load_engine_takes_the_head_for_what_it_is(classifier, extractor):
    assert isinstance(classifier, EncoderEngine)
    (label,) = classifier.generate([prompt(classifier, "anna lives in rome")], max_new_tokens=1)
    assert label.text in LABELS
    passage = "anna lives in rome and works every day."
    (span,) = extractor.generate([prompt(extractor, "where does anna live?", passage)], max_new_tokens=8)
    assert span.text
    assert span.text in passage
    assert (span.finish_reason, label.finish_reason) == ("stop", "stop")


def test_render_is_the_user_message_alone(classifier):
    assert prompt(classifier, "anna lives in rome") == "Question: anna lives in rome"


def test_generate_says_as_many_tokens_as_are_read(classifier, extractor):
    (label,) = classifier.generate([prompt(classifier, "anna lives in rome")], max_new_tokens=1)
    assert (label.n_prompt_tokens, label.n_completion_tokens) == (6, 1)  # [CLS] anna lives in rome [SEP]
    asked = prompt(extractor, "where does anna live?", "anna works")
    (span,) = extractor.generate([asked], max_new_tokens=8)
    # "live" is two pieces more than a word of the vocabulary: l ##i ##v ##e.
    assert span.n_prompt_tokens == extractor.count_tokens(asked) == 1 + 8 + 1 + 2 + 1


def test_generate_answers_each_prompt_as_it_would_alone(classifier, extractor):
    texts = [prompt(classifier, " ".join(NAMES[:n])) for n in (8, 1, 5, 3)]
    alone = [classifier.generate([text], max_new_tokens=1)[0].text for text in texts]
    assert [it.text for it in classifier.generate(texts, max_new_tokens=1)] == alone
    asked = [prompt(extractor, f"where does {name} live?", f"{name} lives in {c} . " * n)
             for n, (name, c) in enumerate(zip(NAMES, CITIES, strict=True), start=1)]  # fmt: skip
    spans = [extractor.generate([text], max_new_tokens=8)[0].text for text in asked]
    assert [it.text for it in extractor.generate(asked, max_new_tokens=8)] == spans


def test_question_without_passages_is_not_answered(extractor):
    asked = [prompt(extractor, "where does anna live?"), prompt(extractor, "where does anna live?", "  ")]
    assert [it.text for it in extractor.generate(asked, max_new_tokens=8)] == [NO_ANSWER, NO_ANSWER]


def test_span_is_found_in_a_late_window_and_said_as_it_stands(encoder, tmp_path):
    engine = points_at(["rome", "bern"], encoder, tmp_path / "out")
    passage = "anna works every day . " * 60 + "She lives in ROME,  not Bern."
    asked = prompt(engine, "where does anna live ?", passage)
    assert engine.count_tokens(asked) > 128 == engine._model.config.max_position_embeddings
    (completion,) = engine.generate([asked], max_new_tokens=20)
    assert completion.text == "ROME,  not Bern"


def test_span_ends_after_its_start_and_within_the_limit(encoder, tmp_path):
    engine = points_at(["rome", "bern"], encoder, tmp_path / "out")
    backwards = prompt(engine, "where ?", "bern and rome .")
    assert engine.generate([backwards], max_new_tokens=20)[0].text in ("bern", "rome", "rome .")
    too_far = prompt(engine, "where ?", "rome " + "and " * 8 + "bern")
    assert "bern" not in engine.generate([too_far], max_new_tokens=20)[0].text.split()[1:]
    near = prompt(engine, "where ?", "rome and bern")
    assert engine.generate([near], max_new_tokens=20)[0].text == "rome and bern"
    assert engine.generate([near], max_new_tokens=2)[0].text != "rome and bern"


def test_words_of_the_question_are_no_span(encoder, tmp_path):
    engine = points_at(["rome", "rome"], encoder, tmp_path / "out")
    (completion,) = engine.generate([prompt(engine, "rome", "anna lives in bern")], max_new_tokens=8)
    assert completion.text in "anna lives in bern"


def test_null_threshold_decides_between_span_and_no_answer(encoder, tmp_path):
    asked = [("where ?", "rome and bern"), ("where ?", "anna works")]
    for threshold, wanted in ((None, "span"), (0.0, NO_ANSWER), (100.0, "span")):
        engine = points_at(["rome", "bern"], encoder, tmp_path / f"out{threshold}", null_threshold=threshold)
        sure, unsure = engine.generate([prompt(engine, *pair) for pair in asked], max_new_tokens=8)
        assert sure.text == "rome and bern"
        assert (unsure.text == NO_ANSWER) == (wanted == NO_ANSWER)


def test_choose_says_no_answer_above_the_threshold_only():
    span = Span("rome", 2.0, 5.0)
    assert choose(span, Reading(64, no_answer="none", null_threshold=3.0)) == "rome"
    assert choose(span, Reading(64, no_answer="none", null_threshold=2.9)) == "none"
    assert choose(span, Reading(64, no_answer="none", null_threshold=None)) == "rome"
    assert choose(Span("", float("-inf"), 0.0), Reading(64, no_answer="none")) == "none"


def test_long_text_is_labelled_by_all_its_windows(encoder, tmp_path, monkeypatch):
    engine = untrained(encoder, tmp_path / "out")
    seen = []
    forward = type(engine._model).forward

    def watched(self, input_ids, **kwargs):
        seen.extend(engine._tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(engine._model), "forward", watched)
    text = " ".join(NAMES * 30)
    (completion,) = engine.generate([prompt(engine, text)], max_new_tokens=1)
    assert completion.text in LABELS
    assert completion.n_prompt_tokens == 242
    assert len(seen) == 4  # of 62 tokens and two special ones
    assert sorted(" ".join(seen).split()) == sorted(text.split())


def test_prompt_beyond_the_window_is_told(classifier):
    with pytest.raises(
        UserError, match="A prompt of 16386 tokens and 0 for the answer exceed the model's window of 16384"
    ):
        classifier.generate([prompt(classifier, "anna " * 16384)], max_new_tokens=4)


def test_question_that_leaves_no_room_is_told(extractor):
    asked = prompt(extractor, "where " * 31, "anna lives in rome")
    with pytest.raises(UserError, match="more than half of the 64 tokens that the model reads at once"):
        extractor.generate([asked], max_new_tokens=4)
    assert extractor.generate([prompt(extractor, "where " * 30, "anna lives in rome")], max_new_tokens=4)[0].text


def test_untrained_head_follows_the_seed(encoder, classifier, tmp_path):
    import torch

    same, other = untrained(encoder, tmp_path / "same"), untrained(encoder, tmp_path / "other", seed=18)
    weights = [engine._model.classifier.weight for engine in (classifier, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert json.loads((tmp_path / "same" / "config.json").read_text())["id2label"] == {
        str(number): label for number, label in enumerate(LABELS)
    }


def test_many_at_once_are_answered_as_each_is_alone(encoder, tmp_path):
    # The event loop counts tokens while the worker's threads count and read: a fast tokenizer can do one at a time.
    engine = untrained(encoder, tmp_path / "out")
    task_type = get_task_type("classification")
    release = fake_release(engine=engine, task_type=task_type, retriever=None, chunks={}, labels=LABELS)
    texts = [" ".join([*NAMES, *CITIES][n % 16 :] * (n % 5 * 40 + 1)) for n in range(32)]
    alone = [engine.generate([prompt(engine, text)], max_new_tokens=1)[0].text for text in texts]

    async def run():
        worker = Worker(release, ServingConfig(max_waiting=100))
        try:
            return await asyncio.gather(*(worker.answer(Ask("req", text)) for text in texts * 3))
        finally:
            worker.close()

    assert [reply.text for reply in asyncio.run(run())] == alone * 3


def test_latency_is_that_of_the_whole_call(classifier):
    texts = [prompt(classifier, " ".join(NAMES)) for _ in range(40)]
    started = time.perf_counter()
    made = classifier.generate(texts, max_new_tokens=1)
    elapsed_ms = (time.perf_counter() - started) * 1000
    # Nobody has an answer before the last one is read.
    assert all(elapsed_ms / 2 < completion.latency_ms <= elapsed_ms for completion in made)
