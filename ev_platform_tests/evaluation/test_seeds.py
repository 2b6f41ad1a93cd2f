"""Other seeds of a recipe: trained for real on a model of two layers, scored on the same rows."""

import dataclasses
import json

import polars as pl
import pytest
from _pytest.outcomes import Failed

from ev_platform.engine import load_engine
from ev_platform.evaluation import predict
from ev_platform.evaluation.seeds import score_seeds, spread_over_seeds
from ev_platform.evaluation.summary import mean_scores
from ev_platform.records import DatasetRow, SeedScore, schema_of, to_frame
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.types import get_task_type
from ev_platform.training.loop import Job
from ev_platform.training.train import train
from ev_platform_tests.tiny import TEST, TRAIN, tiny_recipe, write_tiny_model

KIND = get_task_type("closed_book_qa")
CONFIG = TaskConfig.model_validate({"type": "closed_book_qa", "evaluation": {"max_new_tokens": 4}})


def rows(split, given):
    made = []
    for number, (question, answer, _) in enumerate(given):
        messages = KIND.prompt("Answer.", question, [])
        known = dict.fromkeys(field.name for field in dataclasses.fields(DatasetRow))
        known |= {"example_id": f"exm_{split}_{number}", "split": split, "question": question, "answer": answer}
        known |= {"answers": [answer], "is_answerable": True, "context_chunk_ids": [], "output": answer}
        known |= {"messages": [*messages, {"role": "assistant", "content": answer}], "n_tokens": 40}
        made.append(DatasetRow(**known))
    return to_frame("benchmark", made)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def job(base, tmp_path):
    recipe = tiny_recipe(max_steps=2)
    folder = tmp_path / "seeds"
    return Job(base, rows("train", TRAIN), rows("validation", TEST[:2]), recipe, (), "None.", folder, folder)


def ask(folder):
    engines = {"tuned": (folder.parent.name, load_engine(folder))}
    return predict(rows("test", TEST), to_frame("chunks", []), engines, KIND, "Answer.", CONFIG)


def test_score_seeds_each_is_trained_once_and_stands_beside_the_model_s_own(job, base):
    trained = []

    def watched(one):
        trained.append((one.recipe.seed, one.out.name))
        return train(one)

    own = ask_base(base, job)
    scores = score_seeds([5, 17, 6, 5], job, own, ask, {"code": "1"}, watched)
    # 17 is the recipe's own: its model has answered already.
    assert trained == [(5, "adapter"), (6, "adapter")]
    assert scores.schema == schema_of("seed_scores")
    assert scores["seed"].unique(maintain_order=True).to_list() == [17, 5, 6]
    assert set(scores["system"]) == {"tuned"} and set(scores["n_rows"]) == {len(TEST)}
    expected = [metric for _, metric, _, _ in mean_scores(own, is_labels=False)]
    assert scores.filter(pl.col("seed") == 5)["metric"].to_list() == expected
    # Only the scores are kept, and what they were computed from decides whether they hold.
    assert sorted(file.suffix for file in job.out.iterdir()) == [".json", ".json"]
    assert score_seeds([5, 6], job, own, ask, {"code": "1"}, watched).equals(scores)
    assert len(trained) == 2
    with pytest.raises(Failed, match="trained again"):
        score_seeds([5], job, own, ask, {"code": "2"}, lambda one: pytest.fail("trained again"))


def ask_base(base, job):
    from ev_platform.training.export import export_serving_model

    folder = job.out.parent / "own"
    folder.mkdir()
    export_serving_model(base, folder, job.recipe, (), "None.")
    return ask(folder)


def test_score_seeds_killed_between_two_seeds_goes_on_with_the_second(job):
    def killed(one):
        if one.recipe.seed == 6:
            raise KeyboardInterrupt
        return train(one)

    nothing = to_frame("predictions", [])
    with pytest.raises(KeyboardInterrupt):
        score_seeds([5, 6], job, nothing, ask, {}, killed)
    (kept,) = job.out.glob("*.json")
    assert json.loads(kept.read_text())[0][0] == "tuned"
    trained = []
    score_seeds([5, 6], job, nothing, ask, {}, lambda one: trained.append(one.recipe.seed) or train(one))
    assert trained == [6]


def test_score_seeds_without_seeds_is_empty_and_trains_nothing(job):
    scores = score_seeds([], job, to_frame("predictions", []), ask, {}, pytest.fail)
    assert scores.is_empty() and scores.schema == schema_of("seed_scores")
    assert not job.out.exists()


def test_spread_over_seeds_known_figures():
    values = {1: 0.2, 2: 0.4, 3: 0.6}
    table = to_frame(
        "seed_scores",
        [SeedScore(seed, "tuned", "token_f1", value, 10) for seed, value in values.items()]
        + [SeedScore(1, "tuned_rag", "token_f1", 0.5, 10)],
    )
    tuned, other = spread_over_seeds(table).to_dicts()
    assert tuned == {
        "system": "tuned",
        "metric": "token_f1",
        "n_seeds": 3,
        "mean": pytest.approx(0.4),
        "sd": pytest.approx(0.2),
    }
    assert (other["n_seeds"], other["mean"], other["sd"]) == (1, 0.5, None)
