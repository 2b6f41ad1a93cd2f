import math

import polars as pl
import pytest

from ev_platform.errors import UserError
from ev_platform.training.base import BUNDLED, sha256_weights, write_base_model
from ev_platform.training.sft import train_adapter
from ev_platform_tests.tiny import TRAIN, tiny_recipe

from .conftest import make_rows


def train(base, rows, out, validation=None, **recipe):
    out.mkdir()
    return train_adapter(base, rows, rows.head(0) if validation is None else validation, tiny_recipe(**recipe), out)


def watch_batches(monkeypatch, change_loss=lambda loss: loss):
    """Record what the trainer computes its loss on."""
    import trl

    batches = []

    class Watched(trl.SFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            batches.append({name: inputs[name].clone() for name in ("input_ids", "labels")})
            result = super().compute_loss(model, inputs, *args, **kwargs)
            return (change_loss(result[0]), *result[1:]) if isinstance(result, tuple) else change_loss(result)

    monkeypatch.setattr(trl, "SFTTrainer", Watched)
    return batches


def test_loss_is_on_the_answer_and_its_end_only(tiny_base, rows, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    batches = watch_batches(monkeypatch)
    train(tiny_base, rows, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    trained = []
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained.append(tokenizer.decode(labels[labels != -100]))
            text = tokenizer.decode(ids).replace("<|endoftext|>", "")
            assert text.endswith("<|im_start|>assistant\n" + trained[-1])
    # The template closes a message with its end token and a line break.
    assert sorted(trained) == sorted(f"{answer}<|im_end|>\n" for _, answer, _ in TRAIN)


def test_same_seed_gives_the_same_adapter_bytes(tiny_base, rows, tmp_path):
    _, first = train(tiny_base, rows, tmp_path / "first")
    _, second = train(tiny_base, rows, tmp_path / "second")
    train(tiny_base, rows, tmp_path / "other", seed=18)
    assert [row.loss for row in first] == [row.loss for row in second]
    assert sha256_weights(tmp_path / "first") == sha256_weights(tmp_path / "second")
    assert sha256_weights(tmp_path / "first")[0] != sha256_weights(tmp_path / "other")[0]


def test_rows_over_max_length_are_left_out_and_counted(tiny_base, rows, tmp_path, monkeypatch):
    batches = watch_batches(monkeypatch)
    limit = int(rows["n_tokens"].sort()[-2])  # the longest row is longer
    n_too_long = rows.filter(pl.col("n_tokens") > limit).height
    metrics, _ = train(tiny_base, rows, tmp_path / "adapter", max_length=limit, max_steps=None)
    assert (metrics["n_rows"], metrics["n_rows_too_long"]) == (rows.height - n_too_long, n_too_long)
    assert n_too_long >= 1
    assert sum(len(batch["labels"]) for batch in batches) == metrics["n_rows"]


def test_no_row_within_max_length_is_told(tiny_base, rows, tmp_path):
    shortest = rows["n_tokens"].min()
    with pytest.raises(UserError, match=f"max_length 32: 6 rows, the shortest has {shortest} tokens; raise max_length"):
        train(tiny_base, rows, tmp_path / "adapter", max_length=32)


def test_nan_loss_is_told(tiny_base, rows, tmp_path, monkeypatch):
    watch_batches(monkeypatch, change_loss=lambda loss: loss * math.nan)
    with pytest.raises(UserError, match=r"The training loss became NaN at step 1: lower learning_rate in the recipe\."):
        train(tiny_base, rows, tmp_path / "adapter")


def test_last_layers_adapts_only_the_topmost(tiny_base, rows, tmp_path):
    from safetensors.torch import load_file

    train(tiny_base, rows, tmp_path / "adapter", lora={"last_layers": 1}, max_steps=1)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split("layers.")[1].split(".")[0] for name in names} == {"1"}


def test_last_layers_beyond_the_model_is_told(tiny_base, rows, tmp_path):
    with pytest.raises(UserError, match=r"lora\.last_layers is 3, but tiny has 2 layers\."):
        train(tiny_base, rows, tmp_path / "adapter", lora={"last_layers": 3})


def test_qlora_trains_on_weights_in_four_bits(tiny_base, rows, tmp_path, monkeypatch):
    import bitsandbytes
    import trl
    from safetensors.torch import load_file

    seen = []

    class Watched(trl.SFTTrainer):
        def train(self, *args, **kwargs):
            seen.extend(m for m in self.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
            return super().train(*args, **kwargs)

    monkeypatch.setattr(trl, "SFTTrainer", Watched)
    metrics, steps = train(tiny_base, rows, tmp_path / "adapter", method="qlora", max_steps=2)
    assert len(seen) == 2 * 7  # every projection of both layers
    assert {layer.weight.quant_type for layer in seen} == {"nf4"}
    assert metrics["n_steps"] == 2
    assert all(math.isfinite(row.loss) for row in steps)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_validation_loss_is_measured_before_and_after(tiny_base, rows, tmp_path):
    metrics, steps = train(tiny_base, rows.head(4), tmp_path / "adapter", validation=rows.tail(2), max_steps=None)
    measured = [row for row in steps if row.validation_loss is not None]
    assert [row.step for row in measured] == [0, 2]
    assert metrics["validation_loss_before"] == measured[0].validation_loss
    assert metrics["validation_loss"] == measured[-1].validation_loss != measured[0].validation_loss


@pytest.mark.real_model
def test_bundled_model_learns_from_eight_rows(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_base_model(BUNDLED, base)
    pairs = [(f"Which colour has cable {n}?", "Cable colour: violet") for n in range(8)]
    rows = make_rows(base, pairs)
    metrics, steps = train(
        base,
        rows,
        tmp_path / "adapter",
        base_model=BUNDLED,
        learning_rate=1e-3,
        max_steps=4,
        scheduler="constant_with_warmup",
        warmup_ratio=0.0,
        lora={"r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"], "last_layers": 15},
    )
    losses = [row.loss for row in steps]
    assert metrics["n_steps"] == 4
    assert sum(losses[2:]) / 2 < sum(losses[:2]) / 2
