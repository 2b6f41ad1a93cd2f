"""`config.yaml`: the whole configuration of a task, a model for each stage.

What does not belong here: how a model is trained (`training.recipes`), and secrets (`settings`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from ev_platform.tasks.models import Strict

Fraction = Annotated[float, Field(ge=0, le=1)]
NO_ANSWER = "The passages do not say."


class CorpusConfig(Strict):
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


class Price(Strict):
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


class TeacherConfig(Strict):
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


class TeacherEvaluationConfig(Strict):
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


class DatasetConfig(Strict):
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


class TrainingConfig(Strict):
    """When another model is trained; how is in the recipe.

    Attributes:
        min_changed_share: Share of the rows that a model was trained on from which new, gone or different rows have
            another one trained; below it the model is kept, and the changes add up until they reach it. One row in
            fifty by default: what fewer change cannot be found with some hundred test rows, and a training takes from
            minutes to hours. 0: any change. Another recipe, base model or way of training always has one trained, and
            so has a row that meets a test row or was taken down.
    """

    min_changed_share: Fraction = 0.02


class RetrievalConfig(Strict):
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


class OutOfDomainConfig(Strict):
    """Questions that have nothing to do with the task: by them the model learns when to abstain, and is measured.

    Attributes:
        file: YAML file below the task's folder with questions by topic, instead of the built-in ones.
        without: Topics to leave out, since they are the task's own.
    """

    file: str | None = None
    without: tuple[str, ...] = ()


class EvaluationConfig(Strict):
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


class PromotionConfig(Strict):
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


class Columns(Strict):
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


class Files(Strict):
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


class TaskConfig(Strict):
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
