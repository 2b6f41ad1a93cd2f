"""Supervised fine-tuning of a causal language model: TRL's SFTTrainer, with or without a PEFT adapter.

The loss is on the answer and its end token only, and so are the logits. On a CPU everything stays in float32: bf16 is
emulated there and about 17 times slower.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.errors import UserError
from ev_platform.training.base import hide_loading_bars, load_tokenizer
from ev_platform.training.loop import Job, Result, arguments, fit, make_portable
from ev_platform.training.recipes import Recipe

_IGNORED = -100  # label of a token without a loss
_PROBE_ROWS = 3


def train_causal(job: Job) -> Result:
    """Train, and save the adapter (method `full`: the model) with its tokenizer.

    Returns:
        As `fit`; `n_rows_too_long` counts the rows with more tokens than the recipe's `max_length`.

    Raises:
        UserError: If the base model cannot do what the recipe asks, no row fits, the chat template would teach another
            prompt than the one served, or as `fit`.
    """
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    hide_loading_bars()
    recipe = job.recipe
    tokenizer = load_tokenizer(job.base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    _check_model(job)
    rows, n_too_long = _fitting(encode(tokenizer, job.training), recipe.max_length)
    looks, n_looks_too_long = _fitting(encode(tokenizer, job.validation), recipe.max_length)
    if not rows:
        lengths = [len(row["input_ids"]) for row in encode(tokenizer, job.training)]
        raise UserError(
            f"No training row fits max_length {recipe.max_length}: {job.training.height} rows, the shortest has "
            f"{min(lengths, default='no')} tokens; raise max_length or shorten contexts."
        )
    looks.sort(key=lambda row: len(row["input_ids"]))  # little padding

    class AnswerTrainer(SFTTrainer):
        """Computes logits where there is a loss; on a CPU, TRL computes those of the prompt and the padding too."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if self.aux_loss_enabled or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if num_items_in_batch is None:  # evaluation
                num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
            # The items are those of all processes, whose losses and gradients are averaged.
            return answer_loss(model, inputs, num_items_in_batch) * self.accelerator.num_processes

    set_seed(recipe.seed)
    trainer: Any = AnswerTrainer(
        model=load_model(job.base, recipe),
        args=SFTConfig(**arguments(job, len(rows)), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(looks) if looks else None,
        processing_class=tokenizer,
        peft_config=_adapter(recipe, job),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL makes the adapter of a quantised model bf16, peft makes it float32 again when a run is resumed.
            parameter.data = parameter.data.to(torch.float32)
    _check_rows_apart(trainer.model, rows, recipe, tokenizer.pad_token_id)
    figures, steps = fit(
        trainer,
        job,
        n_tokens=sum(len(row["input_ids"]) for row in rows),
        n_answer_tokens=sum(label != _IGNORED for row in rows for label in row["labels"]),
    )
    trainer.model.save_pretrained(job.out)
    make_portable(job)
    tokenizer.save_pretrained(job.out)
    if recipe.method != "full":
        shutil.copy2(job.base / "config.json", job.out / "config.json")
    return figures | {"n_rows_too_long": n_too_long, "n_validation_rows_too_long": n_looks_too_long}, steps


def encode(tokenizer: Any, table: pl.DataFrame) -> list[dict[str, list[int]]]:
    """Return `input_ids` and `labels` of every chat; labels are the answer's tokens with its end, else -100.

    The prompt's tokens are those that an engine sends: the rendered template, tokenised without special tokens.

    Raises:
        UserError: If a prompt is rendered or tokenised otherwise once its answer follows, or an answer has no end.
    """
    chats = table["messages"].to_list()
    if not chats:
        return []
    prompts = [tokenizer.apply_chat_template(c[:-1], tokenize=False, add_generation_prompt=True) for c in chats]
    wholes = [tokenizer.apply_chat_template(c, tokenize=False) for c in chats]
    asked, answered = (
        tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for texts in (prompts, wholes)
    )
    rows = []
    for number, (prompt, ids) in enumerate(zip(asked, answered, strict=True)):
        answer = ids[len(prompt) :]
        if ids[: len(prompt)] != prompt:
            raise UserError(
                f"Row {number + 1} ({chats[number][-1]['content'][:40]!r}): with its answer, the chat template gives "
                "another prompt than the one that is served; remove white space around the answer, or choose "
                "another base model."
            )
        if tokenizer.eos_token_id not in answer:
            raise UserError(
                f"The chat template does not close an answer with {tokenizer.eos_token}, so the model would not learn "
                "to stop: choose another base model."
            )
        rows.append({"input_ids": ids, "labels": [_IGNORED] * len(prompt) + answer})
    return rows


def collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Any]:
    """Join rows or packs into a batch of tensors (rows, longest).

    Padding stands left, so that the answers of single rows end together. Packs have no attention mask: from their
    positions, which start again with every row, transformers builds one that keeps rows apart; padding is to it a
    row of its own.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    is_packed = any("seq_lengths" in row for row in rows)

    def stack(columns: list[list[int]], filler: int) -> Any:
        return torch.tensor([[filler] * (longest - len(column)) + column for column in columns])

    batch = {
        "input_ids": stack([row["input_ids"] for row in rows], pad_id),
        "labels": stack([row["labels"] for row in rows], _IGNORED),
    }
    lengths = [row.get("seq_lengths", [len(row["input_ids"])]) for row in rows]
    positions = [[position for n in own for position in range(n)] for own in lengths]
    batch["position_ids"] = stack(positions, 0)
    if not is_packed:
        batch["attention_mask"] = stack([[1] * len(row["input_ids"]) for row in rows], 0)
    return batch


def answer_loss(model: Any, batch: dict[str, Any], n_items: Any = None) -> Any:
    """Return the cross entropy of a batch's answers, summed and divided by `n_items` (None: the batch's labels)."""
    import torch

    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=_IGNORED)
    wanted = (targets != _IGNORED).any(dim=0).nonzero().flatten()
    logits = model(**inputs, use_cache=False, logits_to_keep=wanted).logits
    targets = targets[:, wanted]
    has_loss = targets != _IGNORED
    loss = torch.nn.functional.cross_entropy(logits[has_loss].float(), targets[has_loss], reduction="sum")
    return loss / (has_loss.sum() if n_items is None else n_items)


def _fitting(rows: list[dict[str, list[int]]], max_length: int) -> tuple[list[dict[str, list[int]]], int]:
    fitting = [row for row in rows if len(row["input_ids"]) <= max_length]
    return fitting, len(rows) - len(fitting)


def _check_model(job: Job) -> None:
    """Check the recipe against the model's shape, which a model without weights shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    recipe, lora = job.recipe, job.recipe.lora
    config: Any = AutoConfig.from_pretrained(job.base)
    if recipe.max_length > config.max_position_embeddings:
        raise UserError(
            f"max_length {recipe.max_length} is beyond the window of {recipe.base_model}, "
            f"{config.max_position_embeddings} tokens: lower max_length in the recipe."
        )
    if lora is None or lora.target_modules == "all-linear":
        return
    if lora.last_layers is not None and lora.last_layers > config.num_hidden_layers:
        raise UserError(
            f"lora.last_layers is {lora.last_layers}, but {recipe.base_model} has {config.num_hidden_layers} layers."
        )
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config)
    head = shape.get_output_embeddings()
    # peft leaves out a name that is not there without a word, as long as another is.
    known = {n.rpartition(".")[2] for n, m in shape.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    missing = [name for name in lora.target_modules if name.rpartition(".")[2] not in known]
    if missing and known:
        raise UserError(
            f"lora.target_modules: {recipe.base_model} has no layer {missing[0]!r}; it has {', '.join(sorted(known))}."
        )


def load_model(base: Path, recipe: Recipe) -> Any:
    """Load a base model for training: float32 on a CPU, bf16 where its weights stay frozen on a GPU, or NF4."""
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    is_gpu = torch.cuda.is_available()
    # Frozen weights may be bf16; those that are trained need the digits of float32 for small steps.
    dtype = torch.bfloat16 if is_gpu and recipe.method != "full" else torch.float32
    quantization = None
    if recipe.method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=quantization)
    for module in model.modules():
        # Else bitsandbytes packs the weights for inference at the first look at the validation set, and from then on no
        # gradient passes through them: adapters below the last layer stop learning, and nothing says so.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)
    return model


def _adapter(recipe: Recipe, job: Job) -> Any:
    from peft import LoraConfig
    from transformers import AutoConfig

    lora = recipe.lora
    if lora is None:
        return None
    n_layers = AutoConfig.from_pretrained(job.base).num_hidden_layers
    modules, last = lora.target_modules, lora.last_layers
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        layers_to_transform=None if last is None else list(range(n_layers - last, n_layers)),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        task_type="CAUSAL_LM",
    )


def _check_rows_apart(model: Any, rows: list[dict[str, list[int]]], recipe: Recipe, pad_id: int) -> None:
    """Compare the loss of a few short rows alone with that of the same rows in one batch, joined as for training."""
    import torch

    short = sorted(rows, key=lambda row: len(row["input_ids"]))[:_PROBE_ROWS]
    # Rows of one length would leave padding unseen.
    short[0] = {name: column[-(len(column) * 3 // 4) :] for name, column in short[0].items()}
    together: list[dict[str, Any]] = [dict(row) for row in short]
    if recipe.batching == "packed":
        joined = {name: [value for row in short for value in row[name]] for name in ("input_ids", "labels")}
        together = [joined | {"seq_lengths": [len(row["input_ids"]) for row in short]}, dict(short[0])]
        short = [*short, short[0]]

    def loss(batch: list[dict[str, Any]]) -> float:
        tensors = {name: tensor.to(model.device) for name, tensor in collate(batch, pad_id).items()}
        return float(answer_loss(model, tensors, 1))

    is_training = model.training
    model.eval()
    with torch.no_grad():
        alone, joint = sum(loss([row]) for row in short), loss(together)
    model.train(is_training)
    # float32 differs by 1e-7 here; padding that is attended, by 1e-3 and more. A GPU computes in bf16.
    tolerance = 3e-2 if model.device.type == "cuda" else 1e-4
    if abs(alone - joint) > tolerance * alone:
        raise UserError(
            f"{recipe.base_model} reads rows of one batch, or padding, as if they belonged together (loss {joint:.4f} "
            f"instead of {alone:.4f} with batching {recipe.batching}): set batching to length_grouped and batch_size "
            "to 1, or choose another base model."
        )
