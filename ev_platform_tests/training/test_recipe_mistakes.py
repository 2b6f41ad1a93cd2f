"""What a person may get wrong in a recipe: each is told in one sentence, before a heavy library is imported."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.folders import check_folder
from ev_platform.training.recipes import load_recipe

HEAVY = ["torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors", "sentence_transformers"]
TEXT = """base_model: bundled:smollm2-135m-instruct
method: lora
lora: {r: 8, alpha: 16, dropout: 0.0, target_modules: [q_proj, v_proj]}
learning_rate: 1.0e-3
scheduler: cosine
warmup_ratio: 0.1
epochs: 1
batch_size: 4
max_length: 512
seed: 17
"""
ENCODER = TEXT.replace("bundled:smollm2-135m-instruct", "bundled:all-minilm-l6-v2").replace(
    "[q_proj, v_proj]", "[query, value]"
)
SPANS, LABELS = {"type": "extractive_qa"}, {"type": "classification"}


def change(text, **changes):
    return yaml.safe_dump(yaml.safe_load(text) | changes)


def lora(text=TEXT, **changes):
    keys = yaml.safe_load(text)
    return yaml.safe_dump(keys | {"lora": keys["lora"] | changes})


@pytest.fixture
def folder(tmp_path):
    """Return a task folder that nothing is wrong with."""
    folder = tmp_path / "pumps"
    folder.mkdir()
    job = {"task_description": "Answer questions about heat pumps.", "classes_description": {"a": "A.", "b": "B."}}
    (folder / "job_description.json").write_text(json.dumps(job))
    (folder / "train.csv").write_text("question,answer\nHow loud is the pump?,a\nWho may open the lid?,b\n")
    (folder / "test.csv").write_text("question,answer\nHow warm is the water?,a\n")
    (folder / "sources.yaml").write_text("seeds: ['https://pumps.example/']\n")
    return folder


@pytest.fixture
def light(monkeypatch):
    """Make every import of a heavy library fail, also where another test has imported it."""
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)


def write(folder, recipe, config=None):
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": "own.yaml", "type": "open_book_qa"} | (config or {})))
    if recipe is not None:
        (folder / "own.yaml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
    return Task("pumps", folder)


def told(task):
    with pytest.raises(UserError) as caught:
        load_recipe(task)
    said = str(caught.value)
    assert said.startswith(str(task.folder)) and said.endswith(".") and "\n" not in said
    return said.removeprefix(f"{task.folder}/")


MISTAKES = {
    "misspelt key": (
        change(TEXT, lerning_rate=1e-4).replace("\nlearning_rate: 0.001", ""),
        {},
        "own.yaml: there is no key lerning_rate (did you mean learning_rate?).",
    ),
    "key of another trainer": (
        change(TEXT, per_device_train_batch_size=4),
        {},
        "own.yaml: there is no key per_device_train_batch_size: write batch_size.",
    ),
    "4-bit full fine-tuning": (
        change(TEXT, method="full", lora=None, load_in_4bit=True),
        {},
        "own.yaml: there is no key load_in_4bit: write method: qlora.",
    ),
    "key of lora at the top": (change(TEXT, alpha=16), {}, "own.yaml: there is no key alpha: write lora.alpha."),
    "misspelt key of lora": (
        lora(dropuot=0.1),
        {},
        "own.yaml: there is no key lora.dropuot (did you mean lora.dropout?).",
    ),
    "key that looks like none": (change(TEXT, xyz=1), {}, "own.yaml: there is no key xyz: remove it."),
    "missing key": (
        TEXT.replace("seed: 17", ""),
        {},
        "own.yaml: seed is missing: write it, or take it from a shipped recipe with `extends`.",
    ),
    "text for a number": (
        change(TEXT, batch_size="four"),
        {},
        "own.yaml: batch_size is 'four', but should be a valid integer.",
    ),
    "yes for a number": (
        TEXT.replace("epochs: 1", "epochs: yes"),
        {},
        "own.yaml: epochs should not be true: yes, no, on and off are true and false in YAML.",
    ),
    "number for a mapping": (change(TEXT, lora=16), {}, "own.yaml: lora is 16, but should hold keys with values."),
    "no such method": (
        change(TEXT, method="dora"),
        {},
        "own.yaml: method is 'dora', but should be 'lora', 'qlora' or 'full'.",
    ),
    "no epochs": (change(TEXT, epochs=0), {}, "own.yaml: epochs is 0, but should be greater than 0."),
    "endless epochs": (
        TEXT.replace("epochs: 1", "epochs: .inf"),
        {},
        "own.yaml: epochs is inf, but should be a finite number.",
    ),
    "learning rate of 20": (
        TEXT.replace("1.0e-3", "2e1"),
        {},
        "own.yaml: learning_rate is '2e1', but should be less than 1.",
    ),
    "negative seed": (change(TEXT, seed=-1), {}, "own.yaml: seed is -1, but should be greater than or equal to 0."),
    "warm-up beyond the end": (
        change(TEXT, warmup_ratio=1.5),
        {},
        "own.yaml: warmup_ratio is 1.5, but should be less than 1.",
    ),
    "two mistakes": (
        change(TEXT, warmup_ratio=1.5, seed=-1),
        {},
        "own.yaml: warmup_ratio is 1.5, but should be less than 1 (and 1 more).",
    ),
    "no target modules": (
        lora(target_modules=[]),
        {},
        "own.yaml: lora.target_modules should be all-linear, or a list of names of layers, such as [q_proj, v_proj].",
    ),
    "last layers of all-linear": (
        lora(target_modules="all-linear", last_layers=2),
        {},
        "own.yaml: lora: last_layers needs target_modules as a list of names, not all-linear.",
    ),
    "full with lora": (change(TEXT, method="full"), {}, "own.yaml: method full trains all weights: remove lora"),
    "lora without lora": (
        change(TEXT, lora=None),
        {},
        "own.yaml: method lora needs lora: give r, alpha, dropout and target_modules.",
    ),
    "qlora of an encoder": (
        change(ENCODER, head="classification", method="qlora"),
        LABELS,
        "own.yaml: the head classification sits on a small encoder, which 4 bits would not help: set method to lora or",
    ),
    "packed rows for an encoder": (
        change(ENCODER, head="extractive", batching="packed"),
        SPANS,
        "own.yaml: the head extractive reads one row at a time: set batching to length_grouped.",
    ),
    "stride as long as the window": (
        change(ENCODER, head="extractive", spans={"stride": 256}),
        SPANS,
        "own.yaml: spans.stride is 256, but must be below half of max_length 512: lower it.",
    ),
    "spans for text": (
        change(TEXT, spans={"stride": 64}),
        {},
        "own.yaml: spans says how passages are cut for the head extractive, not for causal: remove it.",
    ),
    "no YAML": ("a: [", {}, "own.yaml is not valid YAML: "),
    "key twice": (TEXT + "seed: 18\n", {}, "own.yaml is not valid YAML: the key seed stands twice"),
    "not UTF-8": (b"base_model: caf\xe9", {}, "own.yaml is not UTF-8 (byte 15): save it as UTF-8."),
    "empty file": ("# nothing yet\n", {}, "own.yaml is empty: write a recipe, such as `extends: smollm2-135m-cpu`"),
    "list": ("- lora\n", {}, "own.yaml holds a list: write keys with values, such as `extends: smollm2-135m-cpu`."),
    "no such extended recipe": (
        "extends: smollm-135m-cpu\n",
        {},
        "own.yaml: extends names 'smollm-135m-cpu' (did you mean smollm2-135m-cpu?); it can be one of llama",
    ),
    "misspelt key beside extends": (
        "extends: smollm2-135m-cpu\nepoch: 2\n",
        {},
        "own.yaml: there is no key epoch (did you mean epochs?).",
    ),
    "no such recipe": (
        None,
        {"recipe": "tinyllama-qlora"},
        "config.yaml: there is no recipe 'tinyllama-qlora' (did you mean tinyllama-1.1b-qlora?); choose one of llama-2",
    ),
    "misspelt file": (
        TEXT,
        {"recipe": "onw.yaml"},
        "config.yaml: there is no recipe 'onw.yaml' (did you mean own.yaml?); choose one of llama-2-7b-qlora, ",
    ),
    "head that the type cannot have": (
        change(ENCODER, head="extractive"),
        {},
        "own.yaml: the type open_book_qa cannot have the head extractive: take a recipe with the head causal, or set "
        "type in config.yaml to extractive_qa.",
    ),
    "shipped recipe that the type cannot have": (
        None,
        {"recipe": "minilm-classification-lora"},
        "config.yaml: recipe minilm-classification-lora: the type open_book_qa cannot have the head classification: ",
    ),
    "early stopping without validation": (
        change(TEXT, early_stopping=2),
        {"dataset": {"validation_fraction": 0}},
        "own.yaml: early_stopping looks at validation rows, and dataset.validation_fraction in config.yaml is 0: raise",
    ),
    "text of an encoder": (
        ENCODER,
        {},
        "own.yaml: the head causal writes text, and bundled:all-minilm-l6-v2 is an encoder, which cannot: set head to",
    ),
    "head on a model that writes": (
        change(TEXT, head="extractive"),
        SPANS,
        "own.yaml: the head extractive sits on an encoder, and bundled:smollm2-135m-instruct is none: set base_model",
    ),
    "longer than the window": (
        change(ENCODER, head="extractive", max_length=1024),
        SPANS,
        "own.yaml: max_length is 1024, but bundled:all-minilm-l6-v2 reads 512 tokens at most: lower it.",
    ),
    "more layers than there are": (
        lora(last_layers=31),
        {},
        "own.yaml: lora.last_layers is 31, but bundled:smollm2-135m-instruct has 30 layers: lower it.",
    ),
    "layers of another architecture": (
        lora(target_modules=["query", "v_proj"]),
        {},
        "own.yaml: lora.target_modules names query, which bundled:smollm2-135m-instruct does not have: choose among ",
    ),
    "no such bundled model": (
        TEXT.replace("-instruct", ""),
        {},
        "own.yaml: base_model bundled:smollm2-135m is not bundled (did you mean bundled:smollm2-135m-instruct?); ",
    ),
    "empty base model": (
        change(TEXT, base_model=""),
        {},
        "own.yaml: base_model is '', but should have at least 1 character.",
    ),
    "base model that is no path": (
        change(TEXT, base_model="x" * 5000),
        {},
        f"own.yaml: base_model '{'x' * 60}' cannot be a path: name a model folder.",
    ),
    "base model that is nothing": (
        change(TEXT, base_model="tinyllama"),
        {},
        "own.yaml: base_model 'tinyllama' does not exist: name a model folder, owner/name on the model hub",
    ),
    "base model of config.yaml that is nowhere": (
        TEXT,
        {"base_model": "./models/mine"},
        "config.yaml: base_model './models/mine' does not exist: name a model folder, owner/name on the model hub",
    ),
}


@pytest.mark.parametrize(("recipe", "config", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_recipe_mistake_is_told_in_one_sentence_before_anything_loads(recipe, config, sentence, folder, light):
    assert told(write(folder, recipe, config)).startswith(sentence)


def test_recipe_without_the_mistakes_loads_without_a_heavy_import(folder, light):
    assert load_recipe(write(folder, TEXT)).method == "lora"


@pytest.mark.parametrize("key", ["method: qlora", "optimizer: paged_adamw_8bit"])
def test_recipe_that_needs_a_missing_library_is_told(key, folder, light, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    name, value = key.split(": ")
    said = told(write(folder, change(TEXT, **{name: value})))
    assert said.startswith(f"own.yaml: {name} {value} needs bitsandbytes, which is not installed: install the extra")


@pytest.mark.parametrize("descriptions", [{}, {"a": "A."}])
def test_classification_head_of_a_task_with_fewer_than_two_classes_is_told(descriptions, folder, light):
    job = {"task_description": "Say which kind it is.", "classes_description": descriptions}
    (folder / "job_description.json").write_text(json.dumps(job))
    (folder / "train.csv").write_text("question,answer\nHow loud is the pump?,a\n")
    said = told(write(folder, change(ENCODER, head="classification"), LABELS))
    assert said.startswith("own.yaml: the head classification needs at least two classes, and pumps has fewer: name")


def model_folder(tmp_path, tiny_base, **config):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads((tiny_base / "config.json").read_text()) | config))
    (folder / "model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("config", "recipe", "sentence"),
    [
        ({"architectures": ["BertForMaskedLM"]}, TEXT, "the head causal writes text, and {} is an encoder"),
        ({"architectures": None, "model_type": "bert"}, TEXT, "the head causal writes text, and {} is an encoder"),
        ({}, change(TEXT, head="extractive"), "the head extractive sits on an encoder, and {} is none"),
        ({}, change(TEXT, max_length=4096), "max_length is 4096, but {} reads 2048 tokens at most"),
        ({}, lora(last_layers=3), "lora.last_layers is 3, but {} has 2 layers"),
        ({}, lora(target_modules=["c_attn"]), "lora.target_modules names c_attn, which {} does not have: choose among"),
    ],
)
def test_recipe_that_does_not_suit_a_model_folder_is_told(config, recipe, sentence, folder, tmp_path, tiny_base, light):
    model = model_folder(tmp_path, tiny_base, **config)
    kind = SPANS if "extractive" in recipe else {}
    said = told(write(folder, recipe, {"base_model": str(model)} | kind))
    assert said.startswith(f"own.yaml: {sentence.format(model)}")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda model: (model / "config.json").unlink(), "holds no config.json: name a model folder."),
        (lambda model: (model / "config.json").write_text("[1]"), "has a config.json that is no JSON object: fetch it"),
        (
            lambda model: (model / "model.safetensors").unlink(),
            "holds no weights (*.safetensors): name a model folder.",
        ),
        (
            lambda model: (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "has weights that are cut off, or no safetensors: fetch them again.",
        ),
        (
            lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9]),
            "has weights that are cut off, or no safetensors: fetch them again.",
        ),
    ],
)
def test_model_folder_that_is_not_whole_is_told(damage, sentence, folder, tmp_path, tiny_base, light):
    model = model_folder(tmp_path, tiny_base)
    damage(model)
    said = told(write(folder, TEXT, {"base_model": str(model)}))
    assert said.startswith(f"config.yaml: base_model {model} {sentence}")


def test_model_file_in_place_of_its_folder_is_told(folder, tmp_path, tiny_base, light):
    file = model_folder(tmp_path, tiny_base) / "model.safetensors"
    said = told(write(folder, TEXT, {"base_model": str(file)}))
    assert said == f"config.yaml: base_model {file} is a file: name the folder with config.json and *.safetensors."


def test_task_check_finds_the_recipe_s_mistake_and_no_other(folder, light):
    write(folder, change(TEXT, epochs=0))
    (finding,) = [finding for finding in check_folder(folder).findings if finding.stops]
    assert (finding.kind, finding.message) == (
        "recipe",
        f"{folder / 'own.yaml'}: epochs is 0, but should be greater than 0.",
    )


def test_task_check_tells_an_unknown_type_once(folder, light):
    write(folder, TEXT, {"type": "sorting"})
    (finding,) = [finding for finding in check_folder(folder).findings if finding.stops]
    assert finding.kind == "type"


def test_task_check_leaves_unreadable_rows_to_their_own_sentence(folder, light):
    (folder / "job_description.json").write_text(json.dumps({"task_description": "Say which kind it is."}))
    (folder / "train.csv").write_text("question,answer\nHow loud is the pump?,\n")
    write(folder, change(ENCODER, head="classification"), LABELS)
    kinds = [finding.kind for finding in check_folder(folder).findings if finding.stops]
    assert kinds == ["wrong_row"]


def test_task_check_as_a_command_tells_a_mistake_without_loading_a_model_library(folder, capsys):
    write(folder, change(TEXT, max_length=10_000))
    command = [sys.executable, "-X", "importtime", "-m", "ev_platform.cli", "task", "check", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\ntask check, with -X importtime: {time.perf_counter() - start:.2f} s")
    assert done.returncode == 1
    said = f"- {folder / 'own.yaml'}: max_length is 10000, but bundled:smollm2-135m-instruct reads 8192 tokens at most"
    assert said in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ev_platform.training.recipes" in imported
    assert not imported & {*HEAVY, "bitsandbytes", "ray", "dagster"}
