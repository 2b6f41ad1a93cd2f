"""A model directory as one GGUF file, the form that llama.cpp and with it Ollama reads.

Written with llama.cpp's own `gguf` package, which has the writer and the names but no converter. It covers the
architectures of the shipped recipes (Llama, and Mistral, which is a Llama to llama.cpp); llama.cpp's
convert_hf_to_gguf.py knows hundreds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError

_MODEL_TYPES = ("llama", "mistral")
_FLOAT16_MODEL = 1  # llama.cpp's LLAMA_FTYPE_MOSTLY_F16
_ELSEWHERE = "convert it with llama.cpp's convert_hf_to_gguf.py"


def write_gguf(model: Path, file: Path) -> None:
    """Write a model directory as GGUF: matrices in float16, vectors in float32, tokenizer and chat template inside.

    The tokenizer adds no special tokens by itself: the chat template writes all of them, as everywhere here.

    Args:
        model: Model directory.
        file: To write.

    Raises:
        UserError: If the architecture or the tokenizer is none that this knows.
    """
    import gguf

    config = json.loads((model / "config.json").read_text())
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    kind = config.get("model_type")
    has_biases = any(config.get(name) for name in ("attention_bias", "mlp_bias"))
    if kind not in _MODEL_TYPES or has_biases or rope.get("rope_type", "default") != "default":
        raise UserError(f"{model.name} ({kind}) cannot be written as GGUF here, only plain Llama models: {_ELSEWHERE}.")
    n_heads, n_layers = config["num_attention_heads"], config["num_hidden_layers"]
    n_kv_heads = config.get("num_key_value_heads") or n_heads
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(model.name)
    writer.add_file_type(_FLOAT16_MODEL)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // n_heads)
    _add_tokenizer(writer, model, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n_layers)
    for name, tensor in _tensors(model):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise UserError(f"{model.name} has weights that GGUF has no name for, such as {name}: {_ELSEWHERE}.")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _interleave(tensor, n_heads if "q_proj" in name else n_kv_heads)
        writer.add_tensor(target, tensor.half().numpy() if tensor.dim() > 1 else tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no dictionary
                yield name, opened.get_tensor(name)


def _interleave(weight: Any, n_heads: int) -> Any:
    # transformers rotates the halves of a head, llama.cpp its neighbouring pairs.
    n_rows, n_columns = weight.shape
    halves = weight.reshape(n_heads, 2, n_rows // n_heads // 2, n_columns)
    return halves.swapaxes(1, 2).reshape(n_rows, n_columns).contiguous()


def _add_tokenizer(writer: Any, model: Path, n_vocabulary: int) -> None:
    import gguf

    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "BPE":
        raise UserError(f"The tokenizer of {model.name} is no byte pair encoding: {_ELSEWHERE}.")
    ids = dict(tokenizer["model"]["vocab"])
    kinds = dict.fromkeys(ids, gguf.TokenType.NORMAL)
    if tokenizer["model"].get("byte_fallback"):  # SentencePiece
        kinds |= {text: gguf.TokenType.BYTE for text in ids if text.startswith("<0x") and len(text) == 6}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_is_space_prefixed(tokenizer, model.name))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(tokenizer, model.name))
    for added in tokenizer["added_tokens"]:
        ids[added["content"]] = added["id"]
        is_special = added["special"]
        kinds[added["content"]] = gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED
    texts = {number: text for text, number in ids.items()}
    unused = {number: f"[PAD{number}]" for number in range(n_vocabulary) if number not in texts}
    ordered = [texts.get(number) or unused[number] for number in range(n_vocabulary)]
    writer.add_token_list(ordered)
    # A SentencePiece merge is the likelier, the lower its piece's id; llama.cpp asks for the scores themselves.
    writer.add_token_scores([-float(number) for number in range(n_vocabulary)])
    writer.add_token_types([kinds.get(text, gguf.TokenType.UNUSED) for text in ordered])
    special = gguf.SpecialVocab(model, load_merges=True, n_vocab=n_vocabulary)
    special.add_special_token = {"bos": False, "eos": False}
    special.add_to_gguf(writer, quiet=True)


def _pre_tokenizer(tokenizer: dict[str, Any], name: str) -> str:
    """Return llama.cpp's name of how a byte-level tokenizer splits a text into words before it merges."""
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    is_bytes = steps[-1].get("type") == "ByteLevel" and steps[-1].get("use_regex") and not steps[-1]["add_prefix_space"]
    is_digits = [step.get("type") for step in steps[:-1]] == ["Digits"] and steps[0].get("individual_digits")
    if tokenizer.get("normalizer") or not is_bytes or (len(steps) > 1 and not is_digits):
        raise UserError(f"The tokenizer of {name} splits words in a way that is unknown here: {_ELSEWHERE}.")
    return "smollm" if is_digits else "gpt-2"


def _is_space_prefixed(tokenizer: dict[str, Any], name: str) -> bool:
    """Return whether a SentencePiece tokenizer begins every text, also after a special token, with a space."""
    normalizer = tokenizer.get("normalizer") or {}
    normalizers = normalizer.get("normalizers", [normalizer])
    scheme = (tokenizer.get("pre_tokenizer") or {}).get("prepend_scheme")
    if any(step.get("type") == "Prepend" for step in normalizers) or scheme == "always":
        return True
    if scheme == "first":
        raise UserError(f"The tokenizer of {name} puts a space before the first word only: {_ELSEWHERE}.")
    return False
