import logging
import math
import shutil
from itertools import chain

import pytest

from ev_platform.errors import UserError
from ev_platform.training import causal, checkpoints
from ev_platform.training.base import sha256_weights
from ev_platform.training.causal import answer_loss, train_causal
from ev_platform.training.loop import Job
from ev_platform.training.order import plan_batches
from ev_platform_tests.tiny import tiny_recipe

torch = pytest.importorskip("torch")

LENGTHS = [(37 * number) % 90 + 10 for number in range(70)]


def make_job(base, rows, folder, log=None, **recipe):
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    fields = {"save_steps": 1, "max_steps": 4, **recipe}
    return Job(base, rows, rows.head(2), tiny_recipe(**fields), (), "", folder / "out", folder / "checkpoints", log)


def flat(batches):
    return list(chain.from_iterable(chain.from_iterable(batches)))


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_plan_gives_every_row_once_an_epoch_and_each_epoch_another_order(batching):
    plan = plan_batches(LENGTHS, tiny_recipe(batching=batching, max_steps=None, epochs=2, max_length=128), 1)
    batches = list(plan)
    first, second = flat(batches[: plan.n_steps_per_epoch]), flat(batches[plan.n_steps_per_epoch :])
    assert sorted(first) == sorted(second) == list(range(len(LENGTHS)))
    assert first != second
    assert plan.tokens_seen(plan.n_steps) == 2 * sum(LENGTHS)
    assert plan.tokens_seen(1) == sum(LENGTHS[row] for row in flat(batches[:1]))


def test_grouped_batches_hold_rows_of_like_length():
    batches = list(plan_batches(LENGTHS, tiny_recipe(batch_size=4, max_steps=None), 1))
    padded = sum(max(LENGTHS[row] for row in flat([batch])) * len(batch) for batch in batches)
    assert padded < 1.06 * sum(LENGTHS)
    assert max(map(len, batches)) == 4
    # Steps of any length follow each other, rather than from short to long.
    means = [LENGTHS[batch[0][0]] for batch in batches]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_packs_are_within_max_length_and_nearly_full():
    plan = plan_batches(LENGTHS, tiny_recipe(batching="packed", max_length=128, max_steps=None, batch_size=1), 1)
    filled = [sum(LENGTHS[row] for row in unit) for batch in plan for unit in batch]
    assert max(filled) <= 128
    assert sum(filled) / len(filled) > 0.9 * 128


@pytest.mark.parametrize(("batch_size", "accumulation", "n_rows"), [(1, 4, 7), (2, 3, 7), (2, 4, 70), (4, 2, 9)])
@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_every_step_has_as_many_batches_as_are_accumulated(batching, batch_size, accumulation, n_rows):
    recipe = tiny_recipe(batching=batching, batch_size=batch_size, max_steps=None, epochs=2, max_length=128)
    plan = plan_batches(LENGTHS[:n_rows], recipe, accumulation)
    assert len(plan) == plan.n_steps * accumulation
    assert all(1 <= len(batch) <= batch_size for batch in plan)
    assert set(flat(plan)) == set(range(n_rows))


def test_more_processes_see_the_rows_of_one_process_with_as_much_accumulation():
    recipe = tiny_recipe(batch_size=2, max_steps=None)
    assert list(plan_batches(LENGTHS, recipe, 1, n_processes=4)) == list(plan_batches(LENGTHS, recipe, 4))


def test_every_figure_of_a_step_is_logged_and_tracked(tiny_base, rows, tmp_path):
    tracked = []
    job = make_job(tiny_base, rows, tmp_path, log=lambda metrics, step: tracked.append((step, metrics)), eval_steps=2)
    figures, steps = train_causal(job)
    names = {"loss", "learning_rate", "grad_norm", "tokens_seen", "elapsed_s", "tokens_per_second", "peak_memory_bytes"}
    assert [step for step, _ in tracked] == [0, 1, 2, 2, 3, 4, 4]
    assert all(set(metrics) == names for _, metrics in tracked if "loss" in metrics)
    assert [step for step, metrics in tracked if "validation_loss" in metrics] == [0, 2, 4]
    assert [step.loss for step in steps] == [metrics.get("loss") for _, metrics in tracked]
    assert steps[-1].tokens_seen == figures["n_tokens_seen"]
    assert all(step.peak_memory_bytes > 50_000_000 for step in steps)  # torch alone takes more


def test_energy_is_estimated_where_its_library_is_installed(tiny_base, rows, tmp_path):
    from importlib.util import find_spec

    figures, _ = train_causal(make_job(tiny_base, rows, tmp_path))
    if find_spec("codecarbon") is None:
        assert figures["energy_kwh"] is None
    else:
        assert 0 < figures["energy_kwh"] < 1


def test_resumed_run_tracks_the_earlier_steps_too(tiny_base, rows, tmp_path, monkeypatch):
    def ends_after_two(metrics, step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_causal(make_job(tiny_base, rows, tmp_path, log=ends_after_two))
    tracked = []
    figures, _ = train_causal(make_job(tiny_base, rows, tmp_path, log=lambda _, step: tracked.append(step)))
    assert figures["resumed_from_step"] == 2
    assert sorted(set(tracked)) == [0, 1, 2, 3, 4]


def with_loss(monkeypatch, change):
    calls = []

    def changed(model, batch, n_items=None):
        loss = answer_loss(model, batch, n_items)
        if not torch.is_grad_enabled():
            return loss
        calls.append(1)
        return change(loss, len(calls))

    monkeypatch.setattr(causal, "answer_loss", changed)


def test_nan_loss_is_told_and_leaves_the_last_good_checkpoint(tiny_base, rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        with_loss(patched, lambda loss, call: loss * math.nan if call == 3 else loss)
        sentence = (
            r"^The training loss became NaN at step 3: lower learning_rate in the recipe\. "
            r"The same recipe goes on from step 2\.$"
        )
        with pytest.raises(UserError, match=sentence):
            train_causal(make_job(tiny_base, rows, tmp_path))
        assert [found.name for found in (tmp_path / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    figures, steps = train_causal(make_job(tiny_base, rows, tmp_path))
    assert figures["resumed_from_step"] == 2
    assert all(math.isfinite(step.loss) for step in steps if step.loss is not None)


def test_gradient_that_is_not_a_number_is_told_before_its_weights_are_saved(tiny_base, rows, tmp_path, monkeypatch):
    # The loss is finite, its gradient is not: only the next loss would show it.
    with_loss(monkeypatch, lambda loss, call: loss + (0 * loss).sqrt() if call == 2 else loss)
    with pytest.raises(UserError, match=r"^The gradient became NaN at step 2: .* goes on from step 1\.$"):
        train_causal(make_job(tiny_base, rows, tmp_path))


def test_weight_that_is_not_a_number_is_never_a_checkpoint(tiny_base, rows, tmp_path, monkeypatch):
    from transformers import Trainer

    save = Trainer._save_checkpoint

    def damaged(trainer, model, trial):
        next(p for p in trainer.model.parameters() if p.requires_grad).data[0, 0] = math.nan
        save(trainer, model, trial)

    monkeypatch.setattr(Trainer, "_save_checkpoint", damaged)
    with pytest.raises(UserError, match=r"^A weight became NaN at step 1: .* starts again: no checkpoint yet\.$"):
        train_causal(make_job(tiny_base, rows, tmp_path))
    assert checkpoints.find_last(tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_full_memory_is_told(tiny_base, rows, tmp_path, monkeypatch, error):
    def fail(loss, call):
        if call == 3:
            raise error
        return loss

    with_loss(monkeypatch, fail)
    with pytest.raises(UserError, match=r"^Out of memory at step 3: in the recipe, lower batch_size .* from step 2\.$"):
        train_causal(make_job(tiny_base, rows, tmp_path))


def test_other_errors_stay_what_they_are(tiny_base, rows, tmp_path, monkeypatch):
    with_loss(monkeypatch, lambda loss, call: loss.no_such_attribute)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        train_causal(make_job(tiny_base, rows, tmp_path))


def test_checkpoint_that_cannot_be_trusted_is_set_aside_with_a_warning(tiny_base, rows, tmp_path, caplog, monkeypatch):
    train_causal(make_job(tiny_base, rows, tmp_path))
    whole = sha256_weights(tmp_path / "out")
    folder = tmp_path / "checkpoints"
    weights = folder / "checkpoint-4" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with caplog.at_level(logging.WARNING, logger=checkpoints.__name__):
        figures, _ = train_causal(make_job(tiny_base, rows, tmp_path))
    assert figures["resumed_from_step"] == 0
    assert "damaged (adapter_model.safetensors); it is set aside as unusable-checkpoint-4" in caplog.text
    assert sha256_weights(tmp_path / "out") == whole

    monkeypatch.setattr(checkpoints, "version", lambda name: "0.1" if name == "torch" else "9")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=checkpoints.__name__):
        assert checkpoints.find_last(folder) is None
    assert "checkpoint-4: written with torch 2." in caplog.text
    assert sorted(found.name for found in folder.glob("*checkpoint*")) == ["unusable-checkpoint-4"]
