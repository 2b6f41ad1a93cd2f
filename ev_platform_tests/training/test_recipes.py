import pytest
import yaml

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.training.recipes import FOLDER, load_recipe
from ev_platform_tests.tiny import RECIPE

SHIPPED = sorted(file.stem for file in FOLDER.glob("*.yaml"))


def task_with(folder, config, recipe=None):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if recipe is not None:
        (folder / "own.yaml").write_text(recipe)
    return Task("t", folder)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_loads(name, tmp_path):
    recipe = load_recipe(task_with(tmp_path, {"recipe": name}))
    assert (
        recipe.model_dump(mode="json", exclude_unset=True).keys()
        == yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).keys()
    )


def test_task_replaces_the_recipe_s_base_model_and_nothing_else(tmp_path):
    plain = load_recipe(task_with(tmp_path, {"recipe": SHIPPED[0]}))
    changed = load_recipe(task_with(tmp_path, {"recipe": SHIPPED[0], "base_model": "someone/model"}))
    assert changed.base_model == "someone/model"
    assert changed.model_copy(update={"base_model": plain.base_model}) == plain


def test_recipe_of_the_task_folder_loads(tmp_path):
    recipe = load_recipe(task_with(tmp_path, {"recipe": "own.yaml"}, RECIPE))
    assert (recipe.max_steps, recipe.lora.r) == (3, 4)


@pytest.mark.parametrize(
    ("config", "recipe", "told"),
    [
        ({"recipe": "own.yaml"}, RECIPE + "packing: true\n", ["own.yaml: packing", "not permitted"]),
        (
            {"recipe": "own.yaml"},
            RECIPE.replace("[q_proj, v_proj, up_proj]", "all-linear, last_layers: 1"),
            ["own.yaml: lora", "last_layers needs target_modules as a list of names, not all-linear"],
        ),
        ({"recipe": "own.yaml"}, RECIPE.replace("seed: 17", ""), ["own.yaml: seed", "required"]),
        ({"recipe": "own.yaml"}, "a: [", ["own.yaml is not valid YAML"]),
        ({"recipe": "nope"}, None, ["config.yaml: there is no recipe 'nope'", *SHIPPED]),
        ({"recipe": "missing.yaml"}, None, ["config.yaml: there is no recipe 'missing.yaml'"]),
    ],
)
def test_recipe_that_does_not_fit_is_told(config, recipe, told, tmp_path):
    with pytest.raises(UserError) as caught:
        load_recipe(task_with(tmp_path, config, recipe))
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert "\n" not in str(caught.value)
