"""The keys of a recipe, and what they may hold.

What does not belong here: how a file is read (`reading`), and whether a recipe suits a task and its base model (`fit`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Method = Literal["lora", "qlora", "full"]
Head = Literal["causal", "extractive", "classification"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, and Pydantic would go on to read that as 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"should not be {str(value).lower()}: yes, no, on and off are true and false in YAML")
        return value


class Lora(_Strict):
    """Low-rank adaptation (Hu et al. 2021).

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: On the adapter's input.
        target_modules: `all-linear`, or names of layers.
        last_layers: Adapt only this many of the topmost blocks; needs `target_modules` by name. No gradient flows
            below them, which saves up to half of the backward pass.
        use_rslora: Multiply by alpha / sqrt(r) instead (Kalajdzievski 2023).
        use_dora: Train the weights' magnitudes too (Liu et al. 2024); slower.
    """

    r: int = Field(ge=1, le=512)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...]
    last_layers: int | None = Field(default=None, ge=1)
    use_rslora: bool = False
    use_dora: bool = False

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        is_names = isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)
        if value != "all-linear" and not (is_names and value):
            raise ValueError("should be all-linear, or a list of names of layers, such as [q_proj, v_proj]")
        return value

    @model_validator(mode="after")
    def _names_for_layers(self) -> Lora:
        if self.last_layers is not None and self.target_modules == "all-linear":
            raise ValueError("last_layers needs target_modules as a list of names, not all-linear")
        return self


class Spans(_Strict):
    """How the head `extractive` reads passages that are longer than `max_length` and chooses spans.

    Attributes:
        stride: Tokens that two neighbouring windows of one passage share.
        max_answer_tokens: Longest span.
    """

    stride: int = Field(default=128, ge=0)
    max_answer_tokens: int = Field(default=30, ge=1)


class Recipe(_Strict):
    """How a model is trained.

    Attributes:
        base_model: `bundled:smollm2-135m-instruct`, `bundled:all-minilm-l6-v2`, a model directory, or `owner/name` on
            the model hub.
        head: `causal` writes the answer; `extractive` (span of a passage) and `classification` (one of the task's
            classes) put a head on an encoder. The task's type says which of them can be had.
        method: `lora`, `qlora` (base weights in 4-bit NF4 with double quantisation; Dettmers et al. 2023), or `full`
            (all weights are trained; there is no adapter).
        lora: The adapter; None for `full`.
        learning_rate: Peak.
        scheduler: Shape after the warm-up.
        warmup_ratio: Share of the steps.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        optimizer: `paged_adamw_8bit` keeps its state in 8 bits and pages it out of a GPU that is full (bitsandbytes).
        epochs: Passes over the training set.
        max_steps: Ends earlier; None for all epochs.
        batch_size: Rows that go through the model at once.
        gradient_accumulation: Batches a step.
        batching: `length_grouped` puts rows of like length into one batch; `packed` joins rows up to `max_length`.
        max_length: Rows with more tokens are left out and counted; the head `extractive` reads them in windows.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, about a third slower.
        eval_steps: Steps between two looks at the validation set; None: once an epoch.
        early_stopping: Looks without a better validation loss after which training ends with the best weights; None:
            never.
        save_steps: Steps between two checkpoints, from which a killed run goes on.
        spans: Of the head `extractive`.
        seed: Of initial weights, order and dropout.
        threads: Of the processor. Sums are shared among them, so the last digits of the weights depend on their number:
            it makes machines with other numbers of cores, but the same kind of core, train the same bytes. None: as
            many as the process has.
    """

    base_model: str = Field(min_length=1)
    head: Head = "causal"
    method: Method
    lora: Lora | None = None
    learning_rate: float = Field(gt=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    max_grad_norm: Finite = Field(default=1.0, gt=0)
    optimizer: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    epochs: Finite = Field(gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    batching: Literal["length_grouped", "packed"] = "length_grouped"
    max_length: int = Field(ge=32)
    gradient_checkpointing: bool = False
    eval_steps: int | None = Field(default=None, ge=1)
    early_stopping: int | None = Field(default=None, ge=1)
    save_steps: int = Field(default=100, ge=1)
    spans: Spans = Spans()
    seed: int = Field(ge=0)
    threads: int | None = Field(default=None, ge=1, le=256)

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.method == "full" and self.lora is not None:
            raise ValueError(
                "method full trains all weights: remove lora (write `lora: null` where an extended recipe has it), or "
                "set method to lora or qlora"
            )
        if self.method != "full" and self.lora is None:
            raise ValueError(f"method {self.method} needs lora: give r, alpha, dropout and target_modules")
        if self.method == "qlora" and self.head != "causal":
            raise ValueError(
                f"the head {self.head} sits on a small encoder, which 4 bits would not help: set method to lora or full"
            )
        if self.head != "causal" and self.batching == "packed":
            raise ValueError(f"the head {self.head} reads one row at a time: set batching to length_grouped")
        if self.head == "extractive" and self.spans.stride >= self.max_length // 2:
            raise ValueError(
                f"spans.stride is {self.spans.stride}, but must be below half of max_length {self.max_length}: lower it"
            )
        if self.head != "extractive" and self.spans != Spans():
            raise ValueError(f"spans says how passages are cut for the head extractive, not for {self.head}: remove it")
        return self
