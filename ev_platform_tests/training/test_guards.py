"""One test for each way in which a fine-tuning run can be wrong while its loss falls all the same."""

import json

import polars as pl
import pytest

from ev_platform.engine import TransformersEngine
from ev_platform.errors import UserError
from ev_platform.training import causal
from ev_platform.training.base import load_tokenizer
from ev_platform.training.causal import answer_loss, collate, encode, train_causal
from ev_platform.training.loop import Job
from ev_platform_tests.tiny import CHAT_TEMPLATE, TRAIN, tiny_recipe

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def model(tiny_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def make_job(base, rows, folder, validation=None, **recipe):
    (folder / "out").mkdir(parents=True)
    looks = rows.clear() if validation is None else validation
    return Job(base, rows, looks, tiny_recipe(**recipe), (), "", folder / "out", folder / "checkpoints")


def watch_batches(monkeypatch):
    """Record what the trainer computes its loss on."""
    batches = []

    def watched(model, batch, n_items=None):
        if torch.is_grad_enabled():
            batches.append({name: tensor.clone() for name, tensor in batch.items()})
        return answer_loss(model, batch, n_items)

    monkeypatch.setattr(causal, "answer_loss", watched)
    return batches


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_loss_is_on_every_answer_and_its_end_only(tiny_base, tokenizer, rows, tmp_path, monkeypatch, batching):
    batches = watch_batches(monkeypatch)
    train_causal(make_job(tiny_base, rows, tmp_path, max_steps=None, epochs=3, batching=batching))
    trained = []
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            edges = (labels != -100).int().diff(prepend=torch.tensor([0]), append=torch.tensor([0]))
            for start, end in zip((edges == 1).nonzero(), (edges == -1).nonzero(), strict=True):
                assert torch.equal(labels[start:end], ids[start:end])
                assert tokenizer.decode(ids[:start]).endswith("<|im_start|>assistant\n")
                trained.append(tokenizer.decode(labels[start:end]))
    # The template closes a message with its end token and a line break.
    assert sorted(trained) == sorted(f"{answer}<|im_end|>\n" for _, answer, _ in TRAIN * 3)
    assert {len(batch["labels"]) for batch in batches} == ({1} if batching == "packed" else {2})


def test_end_token_is_trained(tokenizer, rows):
    for row in encode(tokenizer, rows):
        assert tokenizer.eos_token_id in row["labels"]


def test_template_that_does_not_end_an_answer_is_told(tiny_base, rows):
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ message['content'] }}<|im_end|>", "{{ message['content'] }}")
    with pytest.raises(UserError, match=r"does not close an answer with <\|im_end\|>, so the model would not learn"):
        encode(tokenizer, rows)


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_trained_prompt_is_the_one_the_engine_sends(tiny_base, rows, tmp_path, monkeypatch, batching):
    batches = watch_batches(monkeypatch)
    train_causal(make_job(tiny_base, rows, tmp_path, max_steps=None, epochs=2, batching=batching))
    engine = TransformersEngine(tiny_base)
    sent = [engine._encode(engine.render(messages[:-1])) for messages in rows["messages"].to_list()]
    seen = [
        line
        for batch in batches
        for line in zip(*map(torch.Tensor.tolist, (batch["input_ids"], batch["labels"])), strict=True)
    ]
    for prompt in sent:
        places = [
            (labels[at : at + len(prompt)], labels[at + len(prompt)])
            for ids, labels in seen
            for at in range(len(ids) - len(prompt))
            if ids[at : at + len(prompt)] == prompt
        ]
        assert len(places) == 2  # once an epoch
        assert all(set(masked) == {-100} and first != -100 for masked, first in places)


def test_template_with_another_prompt_once_it_is_answered_is_told(tiny_base, rows):
    tokenizer = load_tokenizer(tiny_base)
    # As templates of reasoning models do: what stands before an answer is not what asks for one.
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(UserError, match=r"^Row 1 \('11 kW'\): with its answer, the chat template gives another"):
        encode(tokenizer, rows)


def test_row_over_max_length_is_left_out_and_counted_never_cut(tiny_base, tokenizer, rows, tmp_path, monkeypatch):
    batches = watch_batches(monkeypatch)
    # What the table says about lengths is not what counts.
    rows = rows.with_columns(pl.lit(1).cast(pl.Int64).alias("n_tokens"))
    lengths = sorted(len(row["input_ids"]) for row in encode(tokenizer, rows))
    limit = lengths[-2]
    job = make_job(tiny_base, rows, tmp_path, validation=rows, max_length=limit, max_steps=None, batch_size=1)
    figures, steps = train_causal(job)
    n_long = sum(length > limit for length in lengths)
    assert n_long >= 1
    assert (figures["n_rows"], figures["n_rows_too_long"]) == (rows.height - n_long, n_long)
    assert figures["n_validation_rows_too_long"] == n_long
    assert sorted(batch["input_ids"].shape[1] for batch in batches) == lengths[: rows.height - n_long]
    assert steps[-1].tokens_seen == sum(lengths[: rows.height - n_long])


def test_row_in_a_padded_batch_has_its_own_loss(tokenizer, model, rows):
    encoded = encode(tokenizer, rows)
    together = collate(encoded, tokenizer.pad_token_id)
    assert (together["attention_mask"] == 0).any()
    alone = sum(answer_loss(model, collate([row], tokenizer.pad_token_id), 1) for row in encoded)
    assert torch.allclose(answer_loss(model, together, 1), alone, rtol=1e-5)


def test_row_in_a_pack_has_its_own_loss(tokenizer, model, rows):
    encoded = encode(tokenizer, rows)

    def pack(members):
        joined = {name: [value for row in members for value in row[name]] for name in ("input_ids", "labels")}
        return joined | {"seq_lengths": [len(row["input_ids"]) for row in members]}

    for number, row in enumerate(encoded):
        others = [{**other, "labels": [-100] * len(other["labels"])} for other in encoded if other is not row]
        # Two packs of unlike length, so that there is padding too; only one row has a loss.
        batch = collate([pack([*others[:2], row, *others[2:4]]), pack(others[4:])], tokenizer.pad_token_id)
        alone = answer_loss(model, collate([row], tokenizer.pad_token_id), 1)
        assert torch.allclose(answer_loss(model, batch, 1), alone, rtol=1e-5), number


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_model_that_mixes_the_rows_of_a_batch_is_told(tiny_base, rows, tmp_path, monkeypatch, batching):
    broken = {"length_grouped": ("attention_mask", torch.ones_like), "packed": ("position_ids", arange_like)}[batching]

    def mixing(rows, pad_id):
        batch = collate(rows, pad_id)
        if broken[0] in batch:
            batch[broken[0]] = broken[1](batch[broken[0]])
        return batch

    monkeypatch.setattr(causal, "collate", mixing)
    with pytest.raises(UserError, match=f"reads rows of one batch, or padding, as if .* with batching {batching}"):
        train_causal(make_job(tiny_base, rows, tmp_path, batching=batching))


def arange_like(positions):
    return torch.arange(positions.shape[1]).expand_as(positions)


def test_run_that_moves_no_weight_is_told(tiny_base, rows, tmp_path):
    # All of the single step is warm-up, at a learning rate of 0.
    with pytest.raises(UserError, match=r"left 12 of 12 trained tensors unchanged in 1 steps: raise epochs"):
        train_causal(make_job(tiny_base, rows, tmp_path, max_steps=1))


def test_run_that_leaves_a_part_of_the_adapter_still_is_told(tiny_base, rows, tmp_path, monkeypatch):
    load = causal.load_model

    def detached(base, recipe):
        model = load(base, recipe)
        model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:]))
        return model

    monkeypatch.setattr(causal, "load_model", detached)
    with pytest.raises(UserError, match=r"left 6 of 12 trained tensors unchanged in 3 steps"):
        train_causal(make_job(tiny_base, rows, tmp_path))


def test_qlora_still_learns_below_the_last_layer_after_a_look_at_validation(tiny_base, rows, tmp_path, monkeypatch):
    """After a pass in evaluation mode, bitsandbytes' weights on a CPU let no gradient through any more."""
    from bitsandbytes.nn import modules

    # Of processors that have these instructions; others never pack the weights.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    figures, steps = train_causal(make_job(tiny_base, rows, tmp_path, validation=rows, method="qlora", eval_steps=1))
    assert figures["n_unchanged_tensors"] == 0
    assert sum(step.validation_loss is not None for step in steps) == 4


def test_tokenizer_and_template_are_saved_with_the_adapter(tiny_base, rows, tmp_path):
    job = make_job(tiny_base, rows, tmp_path)
    train_causal(job)
    saved, own = load_tokenizer(job.out), load_tokenizer(tiny_base)
    messages = rows["messages"].to_list()[0]
    assert saved.apply_chat_template(messages) == own.apply_chat_template(messages)
    assert saved.get_vocab() == own.get_vocab()
    assert (saved.eos_token, saved.chat_template) == (own.eos_token, own.chat_template)
    assert json.loads((job.out / "config.json").read_text()) == json.loads((tiny_base / "config.json").read_text())
