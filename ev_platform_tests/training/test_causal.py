import json
import math

import pytest

from ev_platform.errors import UserError
from ev_platform.training import causal
from ev_platform.training.base import BUNDLED, sha256_weights, write_base_model
from ev_platform.training.causal import train_causal
from ev_platform.training.loop import Job
from ev_platform.training.train import train
from ev_platform_tests.tiny import tiny_recipe

from .conftest import make_rows

torch = pytest.importorskip("torch")


def run(base, rows, folder, validation=None, **recipe):
    (folder / "out").mkdir(parents=True)
    looks = rows.clear() if validation is None else validation
    job = Job(base, rows, looks, tiny_recipe(**recipe), (), "", folder / "out", folder / "checkpoints")
    return train_causal(job)


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "out" / "adapter_model.safetensors")


def test_same_seed_gives_the_same_adapter_bytes(tiny_base, rows, tmp_path):
    _, first = run(tiny_base, rows, tmp_path / "first")
    _, second = run(tiny_base, rows, tmp_path / "second")
    run(tiny_base, rows, tmp_path / "other", seed=18)
    assert [row.loss for row in first] == [row.loss for row in second]
    assert sha256_weights(tmp_path / "first" / "out") == sha256_weights(tmp_path / "second" / "out")
    assert sha256_weights(tmp_path / "first" / "out")[0] != sha256_weights(tmp_path / "other" / "out")[0]


def test_head_of_the_recipe_names_the_trainer(tiny_base, rows, tmp_path):
    (tmp_path / "out").mkdir()
    job = Job(tiny_base, rows, rows.clear(), tiny_recipe(), (), "", tmp_path / "out", tmp_path / "checkpoints")
    figures, steps = train(job)
    assert figures["n_steps"] == len(steps) == 3
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_no_row_within_max_length_is_told(tiny_base, rows, tmp_path):
    shortest = rows["n_tokens"].min()
    with pytest.raises(UserError, match=f"max_length 32: 6 rows, the shortest has {shortest} tokens; raise max_length"):
        run(tiny_base, rows, tmp_path, max_length=32)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"lora": {"last_layers": 3}}, r"^lora\.last_layers is 3, but tiny has 2 layers\.$"),
        ({"max_length": 4096}, r"^max_length 4096 is beyond the window of tiny, 2048 tokens: lower max_length in the"),
        (
            {"lora": {"target_modules": ["q_proj", "query"]}},
            r"^lora\.target_modules: tiny has no layer 'query'; it has down_proj, gate_proj, k_proj, o_proj, q_proj,",
        ),
    ],
)
def test_recipe_that_the_model_cannot_follow_is_told_before_weights_are_loaded(
    tiny_base, rows, tmp_path, monkeypatch, recipe, sentence
):
    monkeypatch.setattr(causal, "load_model", lambda base, recipe: pytest.fail("loaded"))
    with pytest.raises(UserError, match=sentence):
        run(tiny_base, rows, tmp_path, **recipe)


def test_last_layers_adapts_only_the_topmost(tiny_base, rows, tmp_path):
    run(tiny_base, rows, tmp_path, lora={"last_layers": 1})
    assert {name.split("layers.")[1].split(".")[0] for name in adapter(tmp_path)} == {"1"}


def test_rank_stabilised_scale_and_magnitudes_are_those_of_the_recipe(tiny_base, rows, tmp_path):
    run(tiny_base, rows, tmp_path, lora={"use_rslora": True, "use_dora": True})
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (True, True)
    assert any("lora_magnitude_vector" in name for name in adapter(tmp_path))


def test_qlora_trains_on_weights_in_four_bits(tiny_base, rows, tmp_path, monkeypatch):
    import bitsandbytes

    load, seen = causal.load_model, []

    def watched(base, recipe):
        model = load(base, recipe)
        seen.extend(m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
        return model

    monkeypatch.setattr(causal, "load_model", watched)
    metrics, steps = run(tiny_base, rows, tmp_path, method="qlora")
    assert len(seen) == 2 * 7  # every projection of both layers
    assert {layer.weight.quant_type for layer in seen} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in seen)  # the scales are quantised too
    assert metrics["n_steps"] == 3
    assert all(math.isfinite(row.loss) for row in steps)
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter(tmp_path).items() if "lora_B" in name)
    assert {tensor.dtype for tensor in adapter(tmp_path).values()} == {torch.float32}


def test_full_training_saves_a_model_of_its_own(tiny_base, rows, tmp_path):
    from transformers import AutoModelForCausalLM

    fields = tiny_recipe().model_dump() | {"method": "full", "lora": None}
    (tmp_path / "out").mkdir()
    recipe = type(tiny_recipe())(**fields)
    job = Job(tiny_base, rows, rows.clear(), recipe, (), "", tmp_path / "out", tmp_path / "checkpoints")
    figures, _ = train_causal(job)
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_base, job.out))
    assert figures["n_trainable_parameters"] == sum(p.numel() for p in base.parameters())
    assert not any(
        torch.equal(old, new) for old, new in zip(base.parameters(), tuned.parameters(), strict=True) if old.dim() == 2
    )


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(tiny_base, rows, tmp_path, batching):
    fields = {"batching": batching, "max_length": 180, "eval_steps": 1}
    _, large = run(tiny_base, rows, tmp_path / "large", batch_size=6, **fields)
    _, small = run(tiny_base, rows, tmp_path / "small", batch_size=2, gradient_accumulation=3, **fields)
    for one, other in zip(large, small, strict=True):
        assert one.tokens_seen == other.tokens_seen
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


def test_checkpointed_activations_give_the_same_losses(tiny_base, rows, tmp_path):
    _, plain = run(tiny_base, rows, tmp_path / "plain")
    _, recomputed = run(tiny_base, rows, tmp_path / "recomputed", gradient_checkpointing=True)
    assert [row.loss for row in plain] == pytest.approx([row.loss for row in recomputed], rel=1e-6)


def test_weight_decay_optimiser_and_clipping_are_those_of_the_recipe(tiny_base, rows, tmp_path, monkeypatch):
    from trl import SFTTrainer

    seen = {}
    original = SFTTrainer.train

    def watched(trainer, *args, **kwargs):
        result = original(trainer, *args, **kwargs)
        seen["optimizer"] = trainer.optimizer.optimizer
        seen["max_grad_norm"] = trainer.args.max_grad_norm
        seen["checkpointing"] = any(getattr(m, "gradient_checkpointing", False) for m in trainer.model.modules())
        return result

    monkeypatch.setattr(SFTTrainer, "train", watched)
    run(tiny_base, rows, tmp_path, weight_decay=0.125, max_grad_norm=0.5)
    assert type(seen["optimizer"]) is torch.optim.AdamW
    assert {group["weight_decay"] for group in seen["optimizer"].param_groups if group["params"]} == {0.125}
    assert (seen["max_grad_norm"], seen["checkpointing"]) == (0.5, False)


def test_validation_loss_is_measured_before_and_after(tiny_base, rows, tmp_path):
    metrics, steps = run(tiny_base, rows.head(4), tmp_path, validation=rows.tail(2), max_steps=None)
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
    metrics, steps = run(
        base,
        rows,
        tmp_path,
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
