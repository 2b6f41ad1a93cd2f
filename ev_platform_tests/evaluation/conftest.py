import polars as pl
import pytest

from ev_platform.evaluation.metrics import score_rows
from ev_platform.records import Prediction, to_frame

N_QUESTIONS = 20


@pytest.fixture(scope="session")
def predictions() -> pl.DataFrame:
    """Four systems on 20 questions: each system knows the answer to a known number of them."""
    n_known = {"base": 1, "tuned": 6, "base_rag": 9, "tuned_rag": 17}
    answers = []
    for n in range(N_QUESTIONS):
        for system, known in n_known.items():
            # Retrieval finds the gold passage except for every fourth question; question 19 has none.
            found = [f"chk_{n}" if n % 4 else "chk_other", "chk_other2"] if system.endswith("_rag") else []
            reference = f"about {n} kilowatt of mains power"
            answers.append(
                {
                    "prediction_id": f"prd_{system}_{n}",
                    "system": system,
                    "example_id": f"exm_{n:02d}",
                    "question": f"What is question <{n}>?",
                    "reference": reference,
                    "prediction": reference
                    if n < known
                    else ("" if n % 2 else "nobody knows <script>alert(1)</script>"),
                    "context_chunk_ids": found,
                    "gold_chunk_id": None if n == 19 else f"chk_{n}",
                    "model_id": "srv_1",
                    "n_prompt_tokens": 50,
                    "n_completion_tokens": 4 + n % 3,
                    "latency_ms": 100.0 + n + (200 if found else 0),
                }
            )
    scores = score_rows([a["prediction"] for a in answers], [a["reference"] for a in answers])
    rows = [Prediction(**a, **s) for a, s in zip(answers, scores.iter_rows(named=True), strict=True)]
    return to_frame("predictions", rows)
