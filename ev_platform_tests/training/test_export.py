import json

import pytest

from ev_platform.engine import CTranslate2Engine, TransformersEngine, load_engine
from ev_platform.training.base import sha256_weights
from ev_platform.training.causal import train_causal
from ev_platform.training.export import export_serving_model, merge_adapter
from ev_platform.training.loop import Job
from ev_platform_tests.tiny import PAGES, tiny_recipe, write_tiny_model

PROMPTS = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for _, _, text in PAGES.values()]


def job_of(base, rows, folder, recipe):
    return Job(base, rows, rows.head(0), recipe, (), "", folder, folder.with_name(f"{folder.name}-checkpoints"))


def export(model, folder):
    return export_serving_model(model, folder, tiny_recipe(), (), "")


@pytest.fixture(scope="module")
def adapter(tiny_base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    train_causal(job_of(tiny_base, rows, folder, tiny_recipe(learning_rate=0.05)))
    return folder


@pytest.fixture(scope="module")
def merged(tiny_base, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    merge_adapter(tiny_base, adapter, folder)
    return folder


def logits(model, folder):
    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model.eval()(ids).logits


def test_merged_model_computes_what_base_and_adapter_compute(tiny_base, adapter, merged):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = logits(AutoModelForCausalLM.from_pretrained(tiny_base), tiny_base)
    together = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), adapter), tiny_base)
    alone = logits(AutoModelForCausalLM.from_pretrained(merged), merged)
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(base, alone, atol=1e-2)


def test_model_of_which_all_weights_were_trained_is_its_own_merged_model(tiny_base, rows, tmp_path):
    trained, out = tmp_path / "trained", tmp_path / "out"
    trained.mkdir()
    out.mkdir()
    recipe = tiny_recipe().model_copy(update={"method": "full", "lora": None, "learning_rate": 1e-3})
    train_causal(job_of(tiny_base, rows, trained, recipe))
    assert not (trained / "adapter_config.json").exists()
    merge_adapter(tiny_base, trained, out)
    assert sha256_weights(out) == sha256_weights(trained)
    assert sha256_weights(out)[0] != sha256_weights(tiny_base)[0]
    assert TransformersEngine(out).generate(PROMPTS[:1], max_new_tokens=2)[0].n_completion_tokens > 0


def test_export_says_what_the_merged_model_says(merged, tmp_path):
    out = tmp_path / "serving"
    out.mkdir()
    assert export(merged, out) == "ctranslate2-int8"
    exported, reference = load_engine(out), TransformersEngine(merged)
    assert isinstance(exported, CTranslate2Engine)
    assert exported.window == reference.window == 2048
    got = exported.generate(PROMPTS, max_new_tokens=1)
    wanted = reference.generate(PROMPTS, max_new_tokens=1)
    assert [c.n_prompt_tokens for c in got] == [c.n_prompt_tokens for c in wanted]
    # int8 may tip a close call of one token; five of six answers that begin alike rule out another template.
    assert sum(a.text == b.text for a, b in zip(got, wanted, strict=True)) >= len(PROMPTS) - 1
    assert len({c.text for c in wanted}) > 1


def test_export_renders_the_chat_template_of_training(tiny_base, merged, tmp_path):
    from transformers import AutoTokenizer

    out = tmp_path / "serving"
    out.mkdir()
    export(merged, out)
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    wanted = AutoTokenizer.from_pretrained(tiny_base).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert load_engine(out).render(messages) == wanted


def test_architecture_without_converter_is_served_by_transformers(tmp_path):
    model, out = write_tiny_model(tmp_path / "olmo", architecture="olmo"), tmp_path / "serving"
    out.mkdir()
    assert json.loads((model / "config.json").read_text())["model_type"] == "olmo"
    assert export(model, out) == "transformers"
    engine = load_engine(out)
    assert isinstance(engine, TransformersEngine)
    got = engine.generate(PROMPTS[:2], max_new_tokens=4)
    wanted = TransformersEngine(model).generate(PROMPTS[:2], max_new_tokens=4)
    assert [(c.text, c.n_completion_tokens) for c in got] == [(c.text, c.n_completion_tokens) for c in wanted]
    assert all(c.n_completion_tokens > 0 for c in got)
