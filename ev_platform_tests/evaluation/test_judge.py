"""The judge against a local Anthropic server over HTTP: verdicts in both orders, people beside them, and money."""

import json

import polars as pl
import pytest

from ev_platform.evaluation import judge
from ev_platform.evaluation.judge_agreement import MIN_HUMAN, agree, find_flaw
from ev_platform.records import PairJudgement, schema_of, to_frame
from ev_platform.settings import get_settings
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform_tests.dataset import honest
from ev_platform_tests.teachers.anthropic_server import AnthropicServer

# question, reference, answer of tuned_rag, answer of base_rag, what an honest judge says
ROWS = [
    ("How much does it carry?", "43 kW", "43 kW", "The plug is blue.", "better"),
    ("Who built it?", "Siemens", "Mercedes", "It was Siemens.", "worse"),
    ("When was it built?", "2010", "in 2010", "It was built in 2010.", "tie"),
    ("How long is the cable?", "10 metres", "=5 metres", "7 metres", "tie"),
    ("Is it free?", "No", "no, never", "NO,  never", "tie"),  # the same answer: not asked
    ("What locks it?", "a motor", "a motor", "a spring", "better"),
]
CHUNK = {"chunk_id": "chk_1", "heading_path": "Plugs > Type 2", "text": "It carries 43 kW. A motor locks it."}
CONFIG = {
    "teacher": {"provider": "anthropic", "model": "claude-haiku-4-5", "use_batches": False, "max_tokens": 300},
    "evaluation": {"n_judged": 50},
}


def write_task(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job_description.json").write_text(json.dumps({"task_description": "Answer questions about plugs."}))
    (folder / "config.yaml").write_text(json.dumps(CONFIG | changes))
    (folder / "train.csv").write_text("question,answer\nWhich plug is usual?,Type 2\n")
    (folder / "test.csv").write_text("question,answer\n" + "".join(f"{q},{r}\n" for q, r, *_ in ROWS))
    return Task(folder.name, folder)


def filled(table, rows):
    schema = schema_of(table)
    return pl.DataFrame([dict.fromkeys(schema) | row for row in rows], schema=schema)


def tables(rows=ROWS):
    """Return predictions, benchmark and chunks."""
    predictions = [
        {"system": system, "example_id": f"exm_{n}", "question": row[0], "reference": row[1], "prediction": said}
        for n, row in enumerate(rows)
        for system, said in (("base", "x"), ("tuned", "y"), ("base_rag", row[3]), ("tuned_rag", row[2]))
    ]
    benchmark = [
        {"example_id": f"exm_{n}", "question": row[0], "answer": row[1], "chunk_id": "chk_1", "context": None}
        for n, row in enumerate(rows)
    ]
    return filled("predictions", predictions), filled("benchmark", benchmark), filled("chunks", [CHUNK])


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Return a function that starts a server with a judge, and points the settings to it."""
    servers = []
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")

    def serve(answerer=honest.reply, **options):
        servers.append(AnthropicServer(tmp_path / f"server-{len(servers)}.jsonl", answerer=answerer, **options))
        monkeypatch.setenv("ANTHROPIC_BASE_URL", servers[-1].url)
        get_settings.cache_clear()
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
    get_settings.cache_clear()


def run(task, store, run_id, rows=ROWS):
    return judge.judge_task(task, store, run_id, *tables(rows))


def prefer_first(request):
    return json.dumps({"reasoning": "It comes first.", "better": "first"})


# ---- verdicts ----


def test_honest_judge_gives_the_verdict_of_each_pair_with_its_calls_and_cost(serve, tmp_path):
    server = serve()
    made = run(write_task(tmp_path / "plugs"), Store(tmp_path / "data"), "one")
    assert made["verdict"].to_list() == [row[4] for row in ROWS]
    assert set(made["status"]) == {"ok"}
    assert set(made["system"]) == {"tuned_rag"} and set(made["compared_to"]) == {"base_rag"}
    assert made["example_id"].to_list() == [f"exm_{n}" for n in range(len(ROWS))]
    stats = server.stats()
    assert stats["n_requests"] == 2 * (len(ROWS) - 1)  # both orders, and none where the answers are the same
    assert made["call_ids"].list.len().to_list() == [2, 2, 2, 2, 0, 2]
    assert made["cost_usd"].sum() == pytest.approx(stats["cost_usd"])
    assert find_flaw(made) is None


def test_judge_that_prefers_a_place_is_inconsistent_and_not_believed(serve, tmp_path):
    serve(prefer_first)
    made = run(write_task(tmp_path / "plugs"), Store(tmp_path / "data"), "one")
    assert made["verdict"].to_list() == ["inconsistent"] * 4 + ["tie", "inconsistent"]
    assert made["reason"][0] == "As the first answer: better (It comes first.) As the second: worse (It comes first.)"
    assert find_flaw(made) == "5 of 5 verdicts change with the order of the answers."


def test_judge_that_is_undecided_in_one_order_only_is_inconsistent(serve, tmp_path):
    def undecided(request):
        first, _ = honest.parts_of(request, "answer")
        return json.dumps({"reasoning": "so", "better": "first" if first == "43 kW" else "tie"})

    serve(undecided)
    made = run(write_task(tmp_path / "plugs"), Store(tmp_path / "data"), "one", ROWS[:1])
    assert made["verdict"].to_list() == ["inconsistent"]


def test_judge_sees_the_passage_of_the_reference_and_every_accepted_answer(serve, tmp_path):
    seen = []

    def look(request):
        seen.append({name: honest.parts_of(request, name) for name in ("passage", "reference", "answer", "question")})
        return prefer_first(request)

    serve(look)
    task, (predictions, benchmark, chunks) = write_task(tmp_path / "plugs"), tables(ROWS[:1])
    benchmark = benchmark.with_columns(pl.Series("answers", [["43 kW", "43 kilowatts"]]))
    judge.judge_task(task, Store(tmp_path / "data"), "one", predictions, benchmark, chunks)
    assert [one["answer"] for one in sorted(seen, key=str)] == [
        ["43 kW", "The plug is blue."],
        ["The plug is blue.", "43 kW"],
    ]
    for one in seen:
        assert one["passage"] == ["Plugs > Type 2\nIt carries 43 kW. A motor locks it."]
        assert one["reference"] == ["any one of these: 43 kW; 43 kilowatts"]
        assert one["question"] == ["How much does it carry?"]


def test_judge_sees_no_passage_behind_a_question_that_none_answers(serve, tmp_path):
    seen = []

    def look(request):
        seen.append(honest.parts_of(request, "passage"))
        return prefer_first(request)

    serve(look)
    task, (predictions, benchmark, chunks) = write_task(tmp_path / "plugs"), tables(ROWS[:2])
    silent, own = pl.Series("is_answerable", [False, False]), pl.Series("context", [None, "It is blue."])
    judge.judge_task(task, Store(tmp_path / "data"), "one", predictions, benchmark.with_columns(silent, own), chunks)
    assert sorted(seen) == [[], [], ["It is blue."], ["It is blue."]]  # a context of its own is what it was asked about


def test_pairs_are_spread_evenly_over_the_rows(tmp_path):
    task = write_task(tmp_path / "plugs", evaluation={"n_judged": 3})
    predictions, benchmark, _ = tables()
    assert [pair.row["example_id"] for pair in judge.choose_pairs(predictions, benchmark, task)] == [
        "exm_0",
        "exm_2",
        "exm_4",
    ]


def test_tuned_without_passages_is_compared_with_the_base_without(tmp_path):
    predictions, benchmark, _ = tables()
    bare = predictions.filter(pl.col("system").is_in(["base", "tuned"]))
    (pair, *_) = judge.choose_pairs(bare, benchmark, write_task(tmp_path / "plugs"))
    assert (pair.system, pair.compared_to, pair.answer, pair.other) == ("tuned", "base", "y", "x")


# ---- nothing to ask ----


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"teacher": {"provider": "offline"}}, "The offline teacher has no language model"),
        ({"evaluation": {"n_judged": 0}}, "evaluation.n_judged is 0"),
        ({"type": "classification"}, "The answers are labels"),
    ],
)
def test_without_a_judge_the_table_is_empty_at_no_cost_and_says_why(serve, tmp_path, changes, why):
    server, task = serve(), write_task(tmp_path / "plugs", **changes)
    made = run(task, Store(tmp_path / "data"), "one")
    assert made.is_empty() and made.schema == schema_of("pair_judgements")
    told = judge.summarise_judgements(made, task)
    assert told["why"].startswith(why) and (told["n_judged"], told["cost_usd"]) == (0, 0)
    assert server.stats()["n_requests"] == 0


# ---- money ----


def test_judging_again_pays_for_nothing_twice(serve, tmp_path):
    server, task, store = serve(), write_task(tmp_path / "plugs"), Store(tmp_path / "data")
    first = run(task, store, "one")
    n_paid = server.stats()["n_answered"]
    assert run(task, store, "two").equals(first)
    assert server.stats()["n_answered"] == n_paid
    # One other answer: its pair is asked in both orders, and no other.
    changed = [("How much does it carry?", "43 kW", "22 kW", *ROWS[0][3:]), *ROWS[1:]]
    assert run(task, store, "three", changed)["verdict"][0] == "tie"
    assert server.stats()["n_answered"] == n_paid + 2
    assert server.stats()["n_repeated"] == 0


def test_cap_of_a_run_holds_and_what_is_left_is_asked_by_the_next(serve, tmp_path):
    server, store = serve(input_usd=5, output_usd=25), Store(tmp_path / "data")
    teacher = CONFIG["teacher"] | {"model": "claude-opus-4-5", "max_cost_usd": 0.03, "concurrency": 1}
    task = write_task(tmp_path / "plugs", teacher=teacher)
    made = run(task, store, "one")
    assert server.stats()["cost_usd"] <= 0.03
    capped = made.filter(pl.col("status") == "over_budget")
    assert 0 < capped.height < made.height
    assert capped["verdict"].null_count() == capped.height and "of the run's $0.03 are spent" in capped["reason"][0]
    assert judge.summarise_judgements(made, task)["n_failed"] == capped.height
    task = write_task(tmp_path / "plugs", teacher=teacher | {"max_cost_usd": 1.0})
    assert run(task, store, "two")["verdict"].to_list() == [row[4] for row in ROWS]
    assert server.stats()["n_repeated"] == 0


def test_reply_that_cannot_be_used_leaves_the_pair_without_a_verdict(serve, tmp_path):
    serve(lambda request: json.dumps({"reasoning": "", "better": "both"}))
    made = run(write_task(tmp_path / "plugs"), Store(tmp_path / "data"), "one", ROWS[:1])
    (row,) = made.to_dicts()
    assert (row["verdict"], row["status"]) == (None, "invalid") and row["reason"].startswith("better: Input should be")
    assert row["cost_usd"] > 0 and len(row["call_ids"]) == 2


# ---- people ----


def write_judgements(task, rows, header="question,answer_a,answer_b,better"):
    (task.folder / "judgements.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_people_are_joined_by_what_was_judged_whichever_answer_stood_first(serve, tmp_path):
    serve()
    task = write_task(tmp_path / "plugs")
    rows = [
        "How much does it carry?,43 kW,The plug is blue.,a",
        "who built  it?,It was Siemens.,MERCEDES,A",
        "When was it built?,in 2010,It was built in 2010.,tie",
        "What locks it?,a spring,a motor,a",
        "What locks it?,a spring,another answer than today's,b",
        "Is it free?,yes,no,",
    ]
    write_judgements(task, rows)
    made = run(task, Store(tmp_path / "data"), "one")
    assert made["human"].to_list() == ["better", "worse", "tie", None, None, "worse"]
    told = judge.summarise_judgements(made, task)
    assert (told["n_judged_by_people"], told["agreement"]) == (4, 0.75)
    assert told["kappa"] == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))  # chance: 1/2 x 1/4 + 1/4 x 1/2 + 1/4 x 1/4


def test_people_judge_without_a_teacher(tmp_path):
    task = write_task(tmp_path / "plugs", teacher={"provider": "offline"})
    write_judgements(task, ["What locks it?,a spring,a motor,b"])
    made = run(task, Store(tmp_path / "data"), "one")
    assert made.select("example_id", "verdict", "status", "human").rows() == [("exm_5", None, "unsupported", "better")]


def judged(verdict, human):
    return PairJudgement("exm", "tuned", "base", verdict, None, "ok", human, ["call_1"], 0.0)


def test_agreement_counts_a_verdict_that_turns_with_the_order_as_a_tie():
    made = to_frame(
        "pair_judgements",
        [judged("inconsistent", "tie"), judged("better", "better"), judged(None, "worse"), judged("worse", None)],
    )
    assert (agree(made).n, agree(made).share, agree(made).kappa) == (2, 1.0, 1.0)


def test_agreement_of_one_and_the_same_answer_has_no_kappa():
    made = to_frame("pair_judgements", [judged("better", "better")] * 3)
    assert (agree(made).share, agree(made).kappa) == (1.0, None)
    assert agree(made.clear()).n == 0 and agree(made.clear()).share is None


def test_judge_that_people_contradict_is_not_believed():
    pairs = [("better", "worse"), ("worse", "better")] * MIN_HUMAN
    assert find_flaw(to_frame("pair_judgements", [judged(*pair) for pair in pairs[: MIN_HUMAN - 1]])) is None
    flaw = find_flaw(to_frame("pair_judgements", [judged(*pair) for pair in pairs[:MIN_HUMAN]]))
    assert flaw == "On 10 pairs its agreement with people has a kappa of -1.00 < 0.4."


# ---- what decides whether it is judged again ----


def test_description_of_the_judge_changes_with_teacher_and_people_and_not_with_its_speed(tmp_path):
    before = judge.describe_judge(write_task(tmp_path / "plugs"))
    assert (
        judge.describe_judge(write_task(tmp_path / "plugs", teacher=CONFIG["teacher"] | {"concurrency": 2})) == before
    )
    for changes in ({"evaluation": {"n_judged": 2}}, {"teacher": CONFIG["teacher"] | {"model": "claude-opus-4-5"}}):
        assert judge.describe_judge(write_task(tmp_path / "plugs", **changes)) != before
    task = write_task(tmp_path / "plugs")
    write_judgements(task, ["What locks it?,a spring,a motor,b"])
    assert judge.describe_judge(task) != before


def test_failed_call_is_asked_again_and_a_good_one_is_not(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.01)
    server, store = serve(faults={"server_error": 1.0}, fault_times=100), Store(tmp_path / "data")
    teacher = CONFIG["teacher"] | {"max_retries": 0}
    task = write_task(tmp_path / "plugs", teacher=teacher)
    build = {"inputs": {}, "config": {}, "code": "1"}

    def judged_now(run_id):
        made = {"pair_judgements": run(task, store, run_id, ROWS[:2])}
        return store.build(["pair_judgements"], task.name, **build, compute=lambda: made, force=True)

    assert not judge.has_news(store, task.name)
    judged_now("one")
    assert set(store.read("pair_judgements", task.name)["status"]) == {"failed"}
    assert judge.has_news(store, task.name)
    server.options.faults = {}
    judged_now("two")
    assert store.read("pair_judgements", task.name)["verdict"].to_list() == ["better", "worse"]
    assert not judge.has_news(store, task.name)


# ---- the sheet for people ----


def test_sheet_for_people_hides_the_systems_and_comes_back_as_their_judgement(tmp_path):
    task, store = write_task(tmp_path / "plugs", teacher={"provider": "offline"}), Store(tmp_path / "data")
    predictions, benchmark, _ = tables()
    pairs = judge.choose_pairs(predictions, benchmark, task)
    sheet = judge.write_task_sheet(task, store, pairs)
    frame = pl.read_csv(sheet, infer_schema=False).fill_null("")
    assert frame.columns == ["question", "reference", "answer_a", "answer_b", "better"]
    assert frame["question"].to_list() == [row[0] for row in ROWS if row[0] != "Is it free?"]  # the answers differ
    tuned_first = [row["answer_a"].lstrip("'") == ROWS[n + (n > 3)][2] for n, row in enumerate(frame.to_dicts())]
    assert 0 < sum(tuned_first) < len(tuned_first)
    # A person prefers what the tuned system said; the cell that looks like a formula comes back as it was.
    choices = pl.Series("better", ["a" if is_first else "b" for is_first in tuned_first])
    frame.with_columns(choices).write_csv(task.folder / "judgements.csv")
    made = run(task, store, "one")
    assert made["human"].to_list() == ["better"] * 5
    assert "=5 metres" not in sheet.read_text().split(",")  # but '=5 metres, which no spreadsheet runs


def test_sheet_that_somebody_has_begun_to_fill_in_is_left_as_it_is(tmp_path):
    task, store = write_task(tmp_path / "plugs"), Store(tmp_path / "data")
    predictions, benchmark, _ = tables()
    pairs = judge.choose_pairs(predictions, benchmark, task)
    sheet = judge.write_task_sheet(task, store, pairs)
    untouched = sheet.read_bytes()
    judge.write_task_sheet(task, store, pairs[:2])
    assert len(sheet.read_bytes()) < len(untouched)
    begun = untouched.replace(b",\r\n", b",tie\r\n", 1)
    assert begun != untouched
    sheet.write_bytes(begun)
    judge.write_task_sheet(task, store, pairs[:2])
    assert sheet.read_bytes() == begun
    assert judge.write_task_sheet(task, store, []) is None
