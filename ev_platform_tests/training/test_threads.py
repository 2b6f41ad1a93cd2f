"""Trained weights depend on the number of threads in their last digits: a recipe that says it gives the same bytes."""

import json

import pytest

from ev_platform.engine import load_generator
from ev_platform.identity import frame_fingerprint
from ev_platform.records import TrainingStep
from ev_platform.storage import Store
from ev_platform.training.artifacts import Answers, build_adapter, build_base_model
from ev_platform.training.causal import train_causal
from ev_platform.training.loop import Job
from ev_platform.training.packages import write_ctranslate2
from ev_platform_tests.tiny import CONNECTORS, TRAIN, tiny_recipe

from .conftest import make_rows
from .killed import run


def in_a_process(threads: int):
    """Return what trains in another process that would have so many threads."""

    def train(job):
        result = job.out.with_suffix(".json")
        assert run(job, result, ("on threads", threads)) == 0
        said = json.loads(result.read_text())
        return said["figures"], [TrainingStep(**step) for step in said["steps"]]

    return train


@pytest.mark.slow  # four processes that import torch
@pytest.mark.parametrize("method", ["lora", "full"])
def test_recipe_with_threads_gives_the_same_fingerprints_in_other_folders_and_processes(tiny_base, tmp_path, method):
    # Long enough that threads share sums: without `threads` in the recipe the two adapters differ.
    rows = make_rows(tiny_base, [(question, answer) for question, answer, _ in TRAIN], CONNECTORS)
    recipe = tiny_recipe(base_model=str(tiny_base), threads=2, lora={"dropout": 0.1})
    if method == "full":
        recipe = recipe.model_copy(update={"method": "full", "lora": None})
    prints = []
    for folder, threads in (("one", 1), ("another/with a longer name", 3)):
        store = Store(tmp_path / folder)
        base = build_base_model(store, recipe)
        tables = build_adapter(
            store, recipe, Answers((), ""), base, rows.head(4), rows.tail(2), {}, "code", train=in_a_process(threads)
        )
        assert json.loads(tables["adapter"].item(0, "metrics"))["n_threads"] == 2
        prints.append({table: frame_fingerprint(table, frame) for table, frame in tables.items()})
        files = list((store.root / tables["adapter"].item(0, "path")).iterdir())
        assert not [file for file in files if str(store.root).encode() in file.read_bytes()]
    assert prints[0] == prints[1]


def test_model_loaded_for_answering_leaves_torch_its_threads(tiny_base, rows, tmp_path):
    import ctranslate2
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (tmp_path / "export").mkdir()
        (tmp_path / "out").mkdir()
        write_ctranslate2(tiny_base, tmp_path / "export")
        generator = load_generator(tmp_path / "export", intra_threads=1)
        assert torch.get_num_threads() == 2
        # Whoever loads one without it leaves this thread with one; training does not mind.
        plain = ctranslate2.Generator(str(tmp_path / "export"), intra_threads=1)
        assert torch.get_num_threads() == 1
        job = Job(tiny_base, rows, rows.head(0), tiny_recipe(), (), "", tmp_path / "out", tmp_path / "checkpoints")
        figures, _ = train_causal(job)
        assert figures["n_threads"] == 2
        del generator, plain
    finally:
        torch.set_num_threads(usual)
