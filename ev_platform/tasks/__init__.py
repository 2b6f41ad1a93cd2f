"""Task folders: what a person writes to get a model.

A task is a folder with `job_description.json`, `train.csv|jsonl|json`, `test.csv|jsonl|json`, `unstructured.csv` (texts
without labels or questions), `config.yaml` and `sources.yaml` (what to collect). The layout is that of the distil labs
task folders. What a task *type* does with its rows is in this package too, one file each, behind `TaskType`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError, model_validator

from ev_platform.errors import UserError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Model = TypeVar("Model", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0, le=1)]
NO_ANSWER = "The passages do not say."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mirror(_Strict):
    """A folder that stands for a site: it is served on loopback while its pages are fetched over HTTP.

    Attributes:
        base_url: Pages below it come from the folder; documents keep this address.
        folder: Relative to the task's folder.
    """

    base_url: HttpUrl
    folder: str


class Sources(_Strict):
    """What to collect (`sources.yaml`).

    Attributes:
        seeds: Where the crawl starts.
        allowed_hosts: Hosts that may be fetched from, `host` or `host:port`; by default those of the seeds.
        max_depth: Links to follow away from a seed.
        max_pages: Upper bound of fetched addresses.
        max_bytes: Upper bound of one body.
        concurrency: Simultaneous requests.
        per_host_concurrency: Simultaneous requests to one host.
        delay_s: Pause between two requests to one host; a longer Crawl-delay in robots.txt wins, and a host that asks
            for more than a minute is not fetched.
        timeout_s: For one request.
        obey_robots: Whether robots.txt, and robots rules inside pages, bind.
        sitemaps: Whether addresses are also taken from the seeds' hosts' sitemaps.
        fetcher: `http`, or `browser` for pages that scripts build: what was fetched is rendered in Chromium.
        licence: Of pages that declare none.
        publisher: Of pages that declare none.
        pdfs: Globs of PDF files, relative to the task's folder or absolute.
        texts: Globs of Markdown or plain text files, likewise.
        mirrors: Sites that lie in a folder.
    """

    seeds: tuple[HttpUrl, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_depth: int = Field(default=3, ge=0)
    max_pages: int = Field(default=500, ge=1)
    max_bytes: int = Field(default=20_000_000, ge=1_000)
    concurrency: int = Field(default=8, ge=1, le=64)
    per_host_concurrency: int = Field(default=4, ge=1, le=64)
    delay_s: float = Field(default=0.0, ge=0)
    timeout_s: float = Field(default=20.0, gt=0)
    obey_robots: bool = True
    sitemaps: bool = True
    fetcher: Literal["http", "browser"] = "http"
    licence: str = "unknown"
    publisher: str = "unknown"
    pdfs: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    mirrors: tuple[Mirror, ...] = ()


class CorpusConfig(_Strict):
    """Filters and chunking.

    Attributes:
        languages: ISO 639-1 codes that are kept.
        min_relevance: Lowest relevance, 0 to 1; 0.5 is where the evidence that a page is about the task is even. Of the
            labelled English pages of 20 real sites, 94 to 96 % of those on charging stay and 92 % of those on other
            things go, by the wording of the description.
        min_words: Shortest document.
        near_duplicate_jaccard: Word 5-gram Jaccard from which two documents count as one.
        chunk_tokens: Longest chunk, in the student's tokens.
        chunk_min_tokens: A shorter section is joined with its neighbour.
        extract_timeout_s: Longest time that the text of one file may take; of a PDF, for every 8 pages.
        max_pdf_pages: A longer PDF is set aside.
    """

    languages: tuple[str, ...] = ("en",)
    min_relevance: Fraction = 0.5
    min_words: int = Field(default=50, ge=1)
    near_duplicate_jaccard: Fraction = 0.8
    chunk_tokens: int = Field(default=160, ge=32)
    chunk_min_tokens: int = Field(default=40, ge=1)
    extract_timeout_s: float = Field(default=60.0, gt=0)
    max_pdf_pages: int = Field(default=2000, ge=1)


class Price(_Strict):
    """What a million tokens cost, in dollars.

    Attributes:
        input: Tokens of the prompt.
        output: Tokens of the reply.
        cache_write: Tokens of the prompt that the provider keeps; as `input` where None.
        cache_read: Tokens of the prompt that the provider had kept; as `input` where None.
        batch: Factor on all of them for calls in a batch.
        max_prompt_tokens: Longest prompt these prices hold for; None where they hold for any. Calls that may be longer
            are not made.
    """

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_write: float | None = Field(default=None, ge=0)
    cache_read: float | None = Field(default=None, ge=0)
    batch: float = Field(default=1.0, gt=0, le=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)


class TeacherConfig(_Strict):
    """Who writes questions and labels, and what it may cost.

    Attributes:
        provider: `offline` needs no key; `anthropic`; `openai_compatible` (any server that speaks its chat API);
            `recorded` replays the file that `recording` names.
        model: As the provider calls it.
        base_url: Of an OpenAI-compatible server; the provider's own where None.
        recording: JSONL of replies, relative to the task's folder.
        price: Replaces the price table's; must be given for a model that is not in it.
        max_cost_usd: Never exceeded by what the provider counts for one run.
        use_batches: Whether many calls go through the provider's batch interface: half the price, up to a day's
            wait.
        batch_size: Most calls in one batch.
        concurrency: Calls under way at the same time.
        max_tokens: Longest reply to one call.
        timeout_s: For one call.
        max_retries: After 429, 5xx, 529 and broken connections.
        resend_interrupted: Whether calls that a killed run left under way are made again; they may be paid twice.
        is_checking: Whether every generated candidate is also checked by the teacher with its source in front.
    """

    provider: Literal["offline", "anthropic", "openai_compatible", "recorded"] = "offline"
    model: str | None = None
    base_url: HttpUrl | None = None
    recording: str | None = None
    price: Price | None = None
    max_cost_usd: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    use_batches: bool = True
    batch_size: int = Field(default=1000, ge=1, le=100_000)
    concurrency: int = Field(default=8, ge=1, le=256)
    max_tokens: int = Field(default=2000, ge=64)
    timeout_s: float = Field(default=120.0, gt=0)
    max_retries: int = Field(default=4, ge=0)
    resend_interrupted: bool = False
    is_checking: bool = True

    def identity(self) -> dict[str, Any]:
        """Return what decides what comes of asking; how fast it goes plays no part."""
        speed = {"use_batches", "batch_size", "concurrency", "timeout_s", "max_retries"}
        return self.model_dump(mode="json", exclude=speed)


class TeacherEvaluationConfig(_Strict):
    """The examination of the teacher before it is paid for more.

    Attributes:
        max_rows: Test rows it answers, spread evenly over the file.
        metric: That decides; None: `accuracy` for classification, else `judge` where there is one, else `token_f1`.
        proceed: From this value on the verdict is proceed.
        rethink: Below this value it is rethink; between the two, iterate.
        is_judged: Whether the teacher's own model also judges each answer.
        overruled_by: Why runs go on whatever the verdict; for one run only, its configuration says so instead.
    """

    max_rows: int = Field(default=50, ge=1)
    metric: Literal["exact_match", "token_f1", "rouge_l", "meteor", "judge", "accuracy"] | None = None
    proceed: Fraction = 0.6
    rethink: Fraction = 0.3
    is_judged: bool = True
    overruled_by: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> TeacherEvaluationConfig:
        if self.rethink > self.proceed:
            raise ValueError(
                f"rethink ({self.rethink}) is above proceed ({self.proceed}): lower the one or raise the other"
            )
        if self.metric == "judge" and not self.is_judged:
            raise ValueError("metric is judge, but is_judged is false: set it to true or name another metric")
        return self


class DatasetConfig(_Strict):
    """Generation, filters and splits.

    Attributes:
        max_examples: Upper bound of generated or labelled training rows, spread evenly over chunks or classes.
        max_per_chunk: Upper bound for one chunk.
        kinds: Question kinds, in turn over the chunks.
        difficulties: In turn.
        registers: In whose words a question is asked, in turn.
        topics: Questions prefer these, where a passage is about one.
        n_shots: Train rows shown to the teacher as examples.
        unanswerable_fraction: Share of the generated rows whose passage does not hold the answer.
        validation_fraction: Share of the training documents held out for validation.
        n_contexts: Most passages in a training prompt; each row draws a number from one to this. The answer's own
            passage is always among them, if the row is answerable.
        max_question_words: Of a generated question.
        max_answer_words: Of a generated answer; a hand-written one is as long as people want it.
        min_label_confidence: Lowest confidence of a label that the teacher gave.
        near_duplicate_question: Word 3-gram overlap from which two generated questions count as one.
        max_test_similarity: Cosine of the sentence embeddings from which a training question counts as a test question.
        seed: For every random choice.
    """

    max_examples: int = Field(default=150, ge=0)
    max_per_chunk: int = Field(default=3, ge=1, le=20)
    kinds: tuple[str, ...] = ("definition", "number", "comparison", "procedure", "reason", "yes_no", "requirement")
    difficulties: tuple[str, ...] = ("easy", "medium", "hard")
    registers: tuple[str, ...] = ("layperson", "practitioner", "expert")
    topics: tuple[str, ...] = ()
    n_shots: int = Field(default=4, ge=0, le=20)
    unanswerable_fraction: Fraction = 0.0
    validation_fraction: Fraction = 0.1
    n_contexts: int = Field(default=2, ge=1, le=8)
    max_question_words: int = Field(default=40, ge=5)
    max_answer_words: int = Field(default=60, ge=1)
    min_label_confidence: Fraction = 0.5
    near_duplicate_question: Fraction = 0.8
    max_test_similarity: Fraction = 0.95
    seed: int = 17


class TrainingConfig(_Strict):
    """When another model is trained; how is in the recipe.

    Attributes:
        min_changed_share: Share of the rows that a model was trained on from which new, gone or different rows have
            another one trained; below it the model is kept, and the changes add up until they reach it. One row in
            fifty by default: what fewer change cannot be found with some hundred test rows, and a training takes from
            minutes to hours. 0: any change. Another recipe, base model or way of training always has one trained, and
            so has a row that meets a test row or was taken down.
    """

    min_changed_share: Fraction = 0.02


class RetrievalConfig(_Strict):
    """The retriever of evaluation and serving.

    Attributes:
        top_k: Passages given to the model.
        candidates: Passages that each of the two searches hands to the fusion.
        max_false_abstention: Share of the task's own training questions that may lie below the score from which on
            passages are near enough to answer from; 0: the model never abstains by score.
    """

    top_k: int = Field(default=2, ge=1, le=16)
    candidates: int = Field(default=20, ge=1)
    max_false_abstention: float = Field(default=0.02, ge=0, lt=0.5)


class OutOfDomainConfig(_Strict):
    """Questions that have nothing to do with the task: by them the model learns when to abstain, and is measured.

    Attributes:
        file: YAML file below the task's folder with questions by topic, instead of the built-in ones.
        without: Topics to leave out, since they are the task's own.
    """

    file: str | None = None
    without: tuple[str, ...] = ()


class EvaluationConfig(_Strict):
    """The benchmark.

    Attributes:
        max_rows: Upper bound of test rows, spread evenly over the file.
        max_new_tokens: Longest answer, in evaluation and in serving.
        bootstrap: Resamples for the intervals.
        seeds: Further seeds that the recipe is trained with, to see how much of a score is chance; none by default.
        out_of_domain: Questions that the model should not answer.
        n_judged: Pairs of answers that the teacher judges, where it can; paid for below `teacher.max_cost_usd`.
        speed_requests: Questions of the inference benchmark, at each concurrency.
        concurrencies: Questions answered at once in the inference benchmark.
        machine_usd_per_hour: What the machine costs; for the cost of 1,000 answers.
    """

    max_rows: int = Field(default=200, ge=1)
    max_new_tokens: int = Field(default=40, ge=1)
    bootstrap: int = Field(default=2000, ge=100)
    seeds: tuple[int, ...] = ()
    out_of_domain: OutOfDomainConfig = OutOfDomainConfig()
    n_judged: int = Field(default=50, ge=0)
    speed_requests: int = Field(default=8, ge=1)
    concurrencies: tuple[Annotated[int, Field(ge=1, le=64)], ...] = (1, 4)
    machine_usd_per_hour: float = Field(default=0.10, ge=0, allow_inf_nan=False)


class PromotionConfig(_Strict):
    """What a new version has to show before it answers in the place of the champion.

    Attributes:
        champion_margin: How much of the deciding metric (0 to 1) the lower end of its interval against the champion may
            lose.
        min_rows: Test rows below which nothing can be concluded.
        max_latency_ratio: Median latency against the champion's, or without one the base's with the same passages.
        max_latency_ms_p95: Of one answer; None: no bound.
        retention_margin: Share of general questions it may lose against the base; the loss counts where its whole
            interval lies above this.
        max_perplexity_ratio: Perplexity of neutral text against the base's.
        abstention_margin: Share of unanswerable questions, and of answerable ones, whose right treatment it may lose
            against the champion, or without one the base; and of questions outside the task, against the champion.
        min_export_agreement: Share of tokens on which the served export agrees with the trained model.
        min_replay_agreement: Share of answers that the endpoint gives as the evaluation did.
    """

    champion_margin: Fraction = 0.02
    min_rows: int = Field(default=20, ge=2)
    max_latency_ratio: float = Field(default=2.0, gt=0)
    max_latency_ms_p95: float | None = Field(default=None, gt=0)
    retention_margin: Fraction = 0.10
    max_perplexity_ratio: float = Field(default=2.0, ge=1)
    abstention_margin: Fraction = 0.10
    min_export_agreement: Fraction = 0.85
    min_replay_agreement: Fraction = 1.0


class Columns(_Strict):
    """What the columns of `train` and `test` are called, where their names say nothing (`columns: {question: text}`).

    Attributes:
        question: The column with what is asked, or with the text to label.
        answer: The column with the answer, or with the label.
        context: The column with the passage to answer from.
        source: The column with the address of the document that holds the answer.
    """

    question: str | None = None
    answer: str | None = None
    context: str | None = None
    source: str | None = None


class Files(_Strict):
    """Files of rows by another name or in another place (`files: {train: ../banking77/train.csv}`).

    Attributes:
        train: Train rows, relative to the task's folder or absolute.
        test: Test rows.
        unstructured: Text without labels or questions.
        rows: One file of rows that brings no split; instead of `train` and `test`.
        test_fraction: Share of the documents of `rows` that becomes test rows.
    """

    train: str | None = None
    test: str | None = None
    unstructured: str | None = None
    rows: str | None = None
    test_fraction: Fraction = 0.2

    @model_validator(mode="after")
    def _one_way(self) -> Files:
        if self.rows and (self.train or self.test):
            raise ValueError("rows stands instead of train and test: name either the one or the others")
        return self


class SweepConfig(BaseModel):
    """Recipes to try: every key but `max_trials` is a recipe's (`learning_rate`, `lora.r`), with a list of values.

    Attributes:
        max_trials: Upper bound of recipes that are trained; of a larger grid, so many are drawn by the recipe's seed.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    max_trials: int = Field(default=8, ge=1, le=64)

    @property
    def grid(self) -> dict[str, list[Any]]:
        """Values by key."""
        return self.model_extra or {}

    @model_validator(mode="after")
    def _lists(self) -> SweepConfig:
        if not self.grid:
            raise ValueError("it names no key of the recipe: write one with a list of values, such as lora.r: [8, 16]")
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{key} should have a list of values to try, such as {key}: [..., ...]")
        return self


class TaskConfig(_Strict):
    """`config.yaml`.

    Attributes:
        type: Task type.
        columns: Of the files of rows.
        files: Where the rows lie, if not in the task's folder under their usual names.
        no_answer: What is answered where a row (SQuAD 2.0) says that its passage does not hold the answer.
        recipe: Name of a recipe in `ev_platform/training/recipes`, or the path of one below the task's folder.
        base_model: Replaces the recipe's base model.
        training: When another model is trained.
        sweep: Changes of the recipe that are tried before the model is trained; the validation set chooses.
        promotion: The gate before a new version answers in the place of the champion.
    """

    type: str = "open_book_qa"
    columns: Columns = Columns()
    files: Files = Files()
    no_answer: str = Field(default=NO_ANSWER, min_length=1)
    recipe: str = "smollm2-135m-cpu"
    base_model: str | None = None
    sweep: SweepConfig | None = None
    corpus: CorpusConfig = CorpusConfig()
    teacher: TeacherConfig = TeacherConfig()
    teacher_evaluation: TeacherEvaluationConfig = TeacherEvaluationConfig()
    dataset: DatasetConfig = DatasetConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()


class JobDescription(BaseModel):
    """`job_description.json`: the task in a sentence or two, as a model and a teacher will read it.

    Attributes:
        task_description: What the model is for.
        classes_description: What each label of a classification task means.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    task_description: str = Field(min_length=10)
    classes_description: dict[str, str] = {}


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg'].lower()}{more}"


def read_model(kind: type[Model], file: Path) -> Model:
    """Read a YAML or JSON file into a model.

    Raises:
        UserError: If the file does not parse or does not fit; names the file and the field.
    """
    try:
        text = file.read_text(encoding="utf-8")
        data: Any = json.loads(text) if file.suffix == ".json" else (yaml.safe_load(text) or {})
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid {file.suffix[1:].upper()}: {' '.join(str(error).split())}.") from error
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{file}: {_explain(error)}.") from error


@dataclass(frozen=True)
class Task:
    """A task folder that exists; its files are read when they are asked for."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> TaskConfig:
        """`config.yaml`, or the defaults."""
        file = self.folder / "config.yaml"
        return read_model(TaskConfig, file) if file.exists() else TaskConfig()

    @cached_property
    def sources(self) -> Sources:
        """`sources.yaml`, or nothing to collect."""
        file = self.folder / "sources.yaml"
        return read_model(Sources, file) if file.exists() else Sources()

    @cached_property
    def job(self) -> JobDescription:
        """`job_description.json`.

        Raises:
            UserError: If it is missing or unusable.
        """
        file = self.folder / "job_description.json"
        if not file.exists():
            raise UserError(f'{file} is missing: write {{"task_description": "what the model is for"}} there.')
        return read_model(JobDescription, file)

    @property
    def description(self) -> str:
        """The task in words.

        Raises:
            UserError: If `job_description.json` is missing or unusable.
        """
        return self.job.task_description

    @cached_property
    def classes(self) -> dict[str, str]:
        """Label to its description; empty where the task type has no labels.

        The labels are those of `classes_description`, else those of the train rows, without descriptions.

        Raises:
            UserError: If they are to be found in the train rows and those cannot be read.
        """
        from ev_platform.tasks.rows import read_rows
        from ev_platform.tasks.types import get_task_type

        if not get_task_type(self.config.type).has_classes:
            return {}
        return self.job.classes_description or dict.fromkeys(sorted({r.answer for r in read_rows(self, "train")}), "")

    @property
    def instructions(self) -> str:
        """The system message of every prompt: the description, with the classes where there are any."""
        from ev_platform.tasks.types import get_task_type

        return get_task_type(self.config.type).instructions(self.description, self.classes)


def find_tasks(tasks_dir: Path) -> dict[str, Task]:
    """Return the embedded example and every folder of `tasks_dir` that holds a `job_description.json`, by name."""
    folders = [EXAMPLES / "ev_charging"]
    if tasks_dir.is_dir():
        folders += sorted(f.parent for f in tasks_dir.glob("*/job_description.json"))
    return {folder.name: Task(folder.name, folder) for folder in folders}


def get_task(name: str, tasks_dir: Path) -> Task:
    """Return a task by its name.

    Raises:
        UserError: If there is no such folder.
    """
    tasks = find_tasks(tasks_dir)
    if name not in tasks:
        raise UserError(
            f"There is no task {name!r}: make the folder {tasks_dir / name} with a job_description.json in it, "
            f"or choose one of {', '.join(tasks)}."
        )
    return tasks[name]
