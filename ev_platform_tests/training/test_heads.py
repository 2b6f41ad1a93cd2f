import itertools
import json
import shutil
from dataclasses import replace

import pytest

from ev_platform.encoder import Reading, choose, find_spans, read_windows
from ev_platform.engine import load_engine
from ev_platform.errors import UserError
from ev_platform.pooling import classifier_class
from ev_platform.prompting import build_messages
from ev_platform.training.base import BUNDLED_ENCODER, sha256_weights, write_base_model
from ev_platform.training.export import export_serving_model, merge_adapter
from ev_platform.training.heads import find_answer, train_classifier, train_extractive, with_head
from ev_platform.training.loop import Job
from ev_platform.training.recipes import Lora

from .tiny_encoder import CITIES, NAMES, NO_ANSWER, encoder_recipe, encoder_rows, label_rows, span_rows

LABELS = tuple(CITIES[:3])
RATES = {"lora": {"learning_rate": 0.02}, "full": {"learning_rate": 0.01}}
HEADS = {"classification": train_classifier, "extractive": train_extractive}


def job_of(folder, base, rows, validation=None, labels=LABELS, **recipe):
    (folder / "out").mkdir(parents=True)
    table = encoder_rows(base, rows)
    looks = encoder_rows(base, validation or [], "validation_set")
    return Job(base, table, looks, encoder_recipe(**recipe), labels, NO_ANSWER, folder / "out", folder / "checkpoints")


def serve(job, folder):
    """Merge and export what a job has trained; return the merged folder and the engine of the export."""
    merged, serving = folder / "merged", folder / "serving"
    merged.mkdir()
    serving.mkdir()
    merge_adapter(job.base, job.out, merged)
    assert export_serving_model(merged, serving, job.recipe, job.labels, job.no_answer) == "transformers"
    return merged, load_engine(serving)


def answers(engine, table):
    return [it.text for it in engine.generate(table["input"].to_list(), max_new_tokens=20)]


def watch(monkeypatch):
    """Record what the trainer's model is given."""
    import transformers

    batches = []

    class Watched(transformers.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            batches.append({name: tensor.clone() for name, tensor in inputs.items()})
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(transformers, "Trainer", Watched)
    return batches


@pytest.mark.parametrize("method", ["lora", "full"])
def test_classifier_learns_and_is_served_as_it_was_merged(tiny_encoder, tmp_path, method):
    import torch
    from transformers import AutoTokenizer

    job = job_of(tmp_path, tiny_encoder, label_rows(), label_rows(6), method=method, epochs=15, **RATES[method])
    figures, steps = train_classifier(job)
    assert figures["validation_loss"] < 0.5 * figures["validation_loss_before"]
    assert len([row for row in steps if row.loss is not None]) == figures["n_steps"] == 90
    merged, engine = serve(job, tmp_path)
    model = classifier_class("bert").from_pretrained(merged).eval()
    assert model.config.id2label == dict(enumerate(LABELS))
    tokenizer = AutoTokenizer.from_pretrained(merged)
    with torch.inference_mode():
        logits = model(**tokenizer([row["question"] for row in label_rows()], padding=True, return_tensors="pt")).logits
    wanted = [LABELS[number] for number in logits.argmax(dim=1)]
    assert answers(engine, job.training) == wanted == job.training["answer"].to_list()
    assert (job.out / "adapter_config.json").exists() == (method == "lora")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_extractive_head_learns_and_is_served_as_it_was_merged(tiny_encoder, tmp_path, method):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    job = job_of(tmp_path, tiny_encoder, span_rows(24), head="extractive", method=method, epochs=15, **RATES[method])
    figures, _ = train_extractive(job)
    assert (figures["n_rows"], figures["n_questions"], figures["null_threshold"]) == (24, 24, None)
    merged, engine = serve(job, tmp_path)
    reading = Reading(**json.loads((merged / "config.json").read_text())["reading"])
    assert reading == Reading(64, 16, 8, NO_ANSWER, None)
    model = AutoModelForQuestionAnswering.from_pretrained(merged).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    wanted = [choose(span, reading) for span in find_spans(model, tokenizer, job.training["input"].to_list(), reading)]
    got = answers(engine, job.training)
    assert got == wanted
    assert sum(a == b for a, b in zip(got, job.training["answer"], strict=True)) >= 20


def test_null_threshold_is_the_best_of_the_validation_set(tiny_encoder, tmp_path):
    from ev_platform.evaluation.squad import squad_v2

    rows = span_rows(24, n_unanswerable=12)
    for row in rows[12:]:
        row["context"] = f"{row['context'].split()[0]} works every day."  # nobody lives anywhere: easy to tell
    looks = rows[6:18]
    job = job_of(tmp_path, tiny_encoder, rows, looks, head="extractive", epochs=12, **RATES["lora"])
    figures, _ = train_extractive(job)
    _, engine = serve(job, tmp_path)
    accepted = [row["answers"] if row["is_answerable"] else [] for row in job.validation.to_dicts()]
    said = ["" if text == NO_ANSWER else text for text in answers(engine, job.validation)]
    scores = squad_v2(said, accepted)
    assert scores["NoAns_f1"] == scores["HasAns_f1"] == 100.0
    spans = find_spans(engine._model, engine._tokenizer, job.validation["input"].to_list(), engine._reading)
    nulls = [span.null_score - span.score for span in spans]
    best = squad_v2([span.text for span in spans], accepted, nulls)
    assert scores["f1"] == best["best_f1"]
    above = min(score for score in nulls if score > best["best_f1_thresh"])
    assert best["best_f1_thresh"] < figures["null_threshold"] < above
    assert answers(engine, job.validation) == job.validation["answer"].to_list()


def test_null_threshold_without_validation_rows_is_zero(tiny_encoder, tmp_path):
    job = job_of(tmp_path, tiny_encoder, span_rows(8, n_unanswerable=4), head="extractive")
    assert train_extractive(job)[0]["null_threshold"] == 0.0
    assert json.loads((job.out / "config.json").read_text())["reading"]["null_threshold"] == 0.0


@pytest.mark.parametrize("head", HEADS)
def test_killed_training_goes_on_to_the_same_bytes(tiny_encoder, tmp_path, head):
    rows = label_rows() if head == "classification" else span_rows(24)
    options = {"head": head, "save_steps": 2, "epochs": 1}
    whole = job_of(tmp_path / "whole", tiny_encoder, rows, **options)
    HEADS[head](whole)
    killed = job_of(tmp_path / "killed", tiny_encoder, rows, **options)

    def kill(metrics, step):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HEADS[head](replace(killed, log=kill))
    figures, steps = HEADS[head](killed)
    assert figures["resumed_from_step"] == 4
    assert [row.step for row in steps] == [1, 2, 3, 4, 5, 6]
    assert sha256_weights(killed.out) == sha256_weights(whole.out)


def test_early_stopping_keeps_the_weights_of_the_best_look(tiny_encoder, tmp_path):
    # The validation labels are wrong: the more is learned of the right ones, the worse they are told.
    wrong = [{**row, "answer": LABELS[(LABELS.index(row["answer"]) + 1) % 3]} for row in label_rows(6)]
    options = {"eval_steps": 2, "early_stopping": 2, "epochs": 15}
    job = job_of(tmp_path, tiny_encoder, label_rows(), wrong, **options)
    figures, steps = train_classifier(job)
    looks = {row.step: row.validation_loss for row in steps if row.validation_loss is not None and row.step > 0}
    assert figures["kept_step"] == min(looks, key=lambda step: looks[step]) < figures["n_steps"] < 90
    _, engine = serve(job, tmp_path)
    assert measured_loss(engine, wrong) == pytest.approx(figures["validation_loss"], abs=1e-4)


def measured_loss(engine, rows):
    """Return the mean cross entropy of the labels of rows by an engine's model."""
    import torch

    batch = engine._tokenizer([row["question"] for row in rows], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = engine._model(**batch).logits
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor([LABELS.index(r["answer"]) for r in rows])))


@pytest.mark.parametrize("head", HEADS)
def test_accumulated_batches_train_as_one(tiny_encoder, tmp_path, head):
    base = tmp_path / "base"
    shutil.copytree(tiny_encoder, base)
    config = json.loads((base / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(config | still))
    rows = label_rows(8) if head == "classification" else span_rows(8)
    seen = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        options = {"batch_size": batch_size, "gradient_accumulation": accumulation, "epochs": 3, "warmup_ratio": 0.0}
        job = job_of(tmp_path / str(accumulation), base, rows, head=head, **options)
        seen.append([value for row in HEADS[head](job)[1] for value in (row.loss, row.grad_norm)])
    assert len(seen[0]) == 6
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_trains_the_same(tiny_encoder, tmp_path, method):
    losses = []
    for is_on in (False, True):
        folder = tmp_path / str(is_on)
        job = job_of(folder, tiny_encoder, label_rows(8), method=method, gradient_checkpointing=is_on)
        losses.append([row.loss for row in train_classifier(job)[1]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_adapter_and_head_move_and_nothing_else(tiny_encoder, tmp_path):
    import torch
    from safetensors.torch import load_file

    job = job_of(tmp_path, tiny_encoder, label_rows())
    figures, _ = train_classifier(job)
    assert figures["n_unchanged_tensors"] == 0
    merged, _ = serve(job, tmp_path)
    before, after = load_file(tiny_encoder / "model.safetensors"), load_file(merged / "model.safetensors")
    kept = {name for name in before if not name.startswith("pooler")}  # nothing reads what it computes
    moved = {name for name in kept if not torch.equal(before[name], after[f"bert.{name}"])}
    assert {name.split(".")[-2] for name in moved} == {"query", "value"}
    assert set(after) == {f"bert.{name}" for name in kept} | {"classifier.weight", "classifier.bias"}


def test_classifier_starts_at_the_means_of_its_classes_and_reads_no_padding(tiny_encoder, tmp_path):
    import torch
    from transformers import AutoTokenizer

    rows = label_rows()
    job = job_of(tmp_path, tiny_encoder, rows)
    model, _ = with_head(job.base, job.recipe, job.labels, Reading(64))
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    texts, labels = [row["question"] for row in rows], torch.tensor([LABELS.index(row["answer"]) for row in rows])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    model.start_from_means([batch | {"labels": labels}])
    with torch.inference_mode():
        together = model.eval().embed(**batch)
        alone = torch.cat([model.embed(**tokenizer([text], return_tensors="pt")) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)
    means = torch.stack([alone[labels == number].mean(0) for number in range(len(LABELS))])
    wanted = torch.nn.functional.normalize(means - means.mean(0), dim=-1)
    assert torch.allclose(model.classifier.weight, wanted, atol=1e-5)


def test_padding_is_not_attended_and_rows_are_whole(tiny_encoder, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    batches = watch(monkeypatch)
    rows = [{"question": " ".join(NAMES[:n]), "answer": CITIES[n % 3]} for n in range(1, 9)]
    train_classifier(job_of(tmp_path, tiny_encoder, rows))
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    seen = []
    for batch in batches:
        assert ((batch["input_ids"] != tokenizer.pad_token_id) == (batch["attention_mask"] == 1)).all()
        for ids, label in zip(batch["input_ids"], batch["labels"], strict=True):
            seen.append((tokenizer.decode(ids, skip_special_tokens=True), LABELS[label]))
    assert sorted(seen) == sorted((row["question"], row["answer"]) for row in rows)
    assert any((batch["attention_mask"] == 0).any() for batch in batches)  # else there was nothing to see


def test_spans_survive_tokenisation_and_windows(tiny_encoder, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    batches = watch(monkeypatch)
    filler = "and anna works every day . " * 20
    rows = span_rows(6)
    for number, row in enumerate(rows):
        # The answers lie at the beginning, in the middle and at the end of passages of several windows.
        cut = number * len(filler) // 5
        row["context"] = f"{filler[:cut]} {row['context']} {filler[cut:]}".strip()
        row["answer_start"] = row["context"].index(row["answer"])
    job = job_of(tmp_path, tiny_encoder, rows, head="extractive")
    figures, _ = train_extractive(job)
    assert figures["n_questions"] == 6
    assert figures["n_spans_widened"] == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    spans = []
    for batch in batches:
        for ids, (start, end) in zip(batch["input_ids"], batch["labels"], strict=True):
            spans.append(tokenizer.decode(ids[start : end + 1]))
    assert set(spans) == {row["answer"] for row in rows} | {"[CLS]"}
    assert figures["n_rows"] == len(spans) > 12


def test_rows_that_cannot_be_trained_on_are_counted(tiny_encoder, tmp_path):
    good = span_rows(4)
    bad = [
        {**good[0], "context": None, "answer_start": None},
        {**good[1], "answer": "hamburg", "answer_start": None},
        {**good[2], "question": "where does anna live and works " * 12},
        {**good[3], "context": f"anna lives in {'bern ' * 70}.", "answer": " ".join(["bern"] * 70), "answer_start": 14},
    ]
    figures, _ = train_extractive(
        job_of(tmp_path, tiny_encoder, [*good, *bad], bad, head="extractive", warmup_ratio=0.0)
    )
    assert (figures["n_questions"], figures["n_rows_without_passage"], figures["n_rows_without_span"]) == (4, 1, 1)
    assert (figures["n_rows_too_long"], figures["n_validation_rows_left_out"]) == (2, 4)


def test_texts_over_max_length_are_left_out_and_counted(tiny_encoder, tmp_path):
    rows = [*label_rows(6), {"question": "anna " * 63, "answer": "oslo"}, {"question": "anna " * 62, "answer": "rome"}]
    figures, _ = train_classifier(job_of(tmp_path, tiny_encoder, rows, rows))
    assert (figures["n_rows"], figures["n_rows_too_long"], figures["n_validation_rows_too_long"]) == (7, 1, 1)


def test_no_row_to_learn_from_is_told(tiny_encoder, tmp_path):
    rows = [{"question": "anna " * 70, "answer": "oslo"}]
    with pytest.raises(UserError, match="max_length 64: 1 rows, the shortest has 72 tokens; raise max_length"):
        train_classifier(job_of(tmp_path / "labels", tiny_encoder, rows))
    rows = [{**row, "answer": "hamburg", "answer_start": None} for row in span_rows(3)]
    with pytest.raises(UserError, match="None of 3 training rows can be learned from: in 3 the answer does not stand"):
        train_extractive(job_of(tmp_path / "spans", tiny_encoder, rows, head="extractive"))


def test_label_that_is_none_of_the_tasks_is_told(tiny_encoder, tmp_path):
    rows = [*label_rows(3), {"question": "anna works", "answer": "Hamburg"}]
    with pytest.raises(
        UserError, match=r"The label 'Hamburg' of 'anna works' is none of the task's: oslo, rome, paris"
    ):
        train_classifier(job_of(tmp_path, tiny_encoder, rows))


def test_find_answer_prefers_the_given_place_then_whole_words():
    row = {"context": "10 or 1 or 1", "answer_start": 11, "answer": "1", "answers": ["1"]}
    assert find_answer(row, "Title\n10 or 1 or 1") == (17, 18)
    assert find_answer(row, "Another text says 10 or 1.") == (24, 25)
    assert find_answer({**row, "context": None}, "only 10 here") == (5, 6)
    assert find_answer({**row, "answer": "type  {2}", "answers": ["x"]}, "a Type\n{2} plug") == (2, 10)
    assert find_answer({**row, "answer": "none", "answers": ["none", "here"]}, "only 10 here") == (8, 12)
    assert find_answer({**row, "answer": "none", "answers": []}, "only 10 here") is None


def test_windows_share_the_stride_and_leave_nothing_out(tiny_encoder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    passage = " ".join(f"{name} {number}" for number in range(40) for name in NAMES[:2])
    (message,) = [m["content"] for m in build_messages("", "where does anna live?", [passage]) if m["role"] == "user"]
    windows = read_windows(tokenizer, message, Reading(40, stride=8))
    tokens = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    read = [[(s, e) for s, e in zip(w.starts, w.ends, strict=True) if s >= 0] for w in windows]
    assert max(len(w.inputs["input_ids"]) for w in windows) == 40
    assert [place for n, part in enumerate(read) for place in (part if n == 0 else part[8:])] == tokens
    assert all(a[-8:] == b[:8] for a, b in itertools.pairwise(read))


@pytest.mark.real_model
def test_bundled_encoder_learns_three_classes_from_forty_rows(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_base_model(BUNDLED_ENCODER, base)
    rows, others = intents()
    labels = tuple(dict.fromkeys(row["answer"] for row in rows))
    job = job_of(
        tmp_path,
        base,
        rows,
        labels=labels,
        base_model=BUNDLED_ENCODER,
        lora=Lora(r=8, alpha=16, dropout=0.0, target_modules=("query", "value")),
        learning_rate=4e-3,
        epochs=4,
        batch_size=8,
    )
    train_classifier(job)
    _, engine = serve(job, tmp_path)
    got = [it.text for it in engine.generate([row["question"] for row in others], max_new_tokens=8)]
    assert got == [row["answer"] for row in others]


def intents():
    """Return 39 rows of three classes, and nine others."""
    things = ["the grey jacket", "my new kettle", "a pair of boots", "order 1188", "the desk lamp", "two blue mugs"]
    forms = {
        "return": ["I want to send back {}", "{} does not fit, how do I return it", "please refund {}"],
        "delivery": ["where is {} now", "when will {} arrive", "track the parcel with {}"],
        "payment": ["my card was refused for {}", "can I pay {} by invoice", "I was charged twice for {}"],
    }
    made = [
        {"question": form.format(thing), "answer": label}
        for thing in things
        for label, own in forms.items()
        for form in own
    ]
    return made[:39], made[45:54]
