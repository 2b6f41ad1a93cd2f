"""What leaves the platform, read by what will read it, as far as that can be had here."""

import json
import re

import pytest

from ev_platform.engine import CTranslate2Engine, TransformersEngine, load_engine
from ev_platform.errors import UserError
from ev_platform.prompting import build_messages
from ev_platform.training.gguf_file import write_gguf
from ev_platform.training.packages import go_template, write_ctranslate2, write_ollama
from ev_platform.training.parity import agreement
from ev_platform_tests.dataset.test_export import MISTRAL
from ev_platform_tests.tiny import CHAT_TEMPLATE, write_tiny_model

INSTRUCTIONS = 'Answer "briefly".\nSay 11 kW, not {{ 11 }}.'
CHAT = [
    {"role": "system", "content": INSTRUCTIONS},
    {"role": "user", "content": "A page > Its part\nText with 2024 | and {{ .System }}.\n\nQuestion: Why?"},
    {"role": "assistant", "content": "Because of </s> it."},
    {"role": "user", "content": "Question: And 'then'?"},
    {"role": "assistant", "content": "11 kW"},
    {"role": "user", "content": "Question: ümläut €?"},
]
# SmolLM2's own, which brings a system message where a chat has none.
SMOLLM = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As TinyLlama and Zephyr have it; as Llama 2, which leaves the space before an answer to the model; and as Mistral's
# v0.3: the system message stands in the last question.
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
LLAMA = (
    "{% for m in messages[1:] %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' }}"
    "{% if loop.first %}{{ '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}{% endfor %}"
)
LAST_QUESTION = (
    "{{ '<s>' }}{% for m in messages[1:] %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (messages[0]['content'] + '\n\n' if loop.last else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    from transformers import AutoTokenizer

    def tokenizer(template):
        loaded = AutoTokenizer.from_pretrained(tiny_base)
        loaded.chat_template = template
        return loaded

    return tokenizer


def render_go(template, messages):
    """Evaluate those parts of Go's text/template that `go_template` writes, as Ollama calls them.

    Go's own package was compared with the chat template once, on 21 chats; it is no part of the tests' machine.
    """
    single = {"System": messages[0]["content"], "Prompt": messages[-1]["content"], "Response": ""}
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    out = []

    def run(position, message, is_on):
        while position < len(parts):
            if is_on:
                out.append(parts[position])
            if position + 1 == len(parts):
                return position
            action = parts[position + 1]
            position += 2
            if action == "range .Messages":
                for one in messages:
                    end = run(position, one, True)
                position = end
            elif action.startswith("if "):
                is_done = False
                while True:
                    holds = action == "else" or message["role"] == action.split('"')[1]
                    position = run(position, message, holds and not is_done)
                    is_done = is_done or holds
                    action = parts[position - 1]
                    if action == "end":
                        break
            elif action == "end" or action.startswith("else"):
                return position
            elif action == ".Response":  # what follows it is left out while it is being made
                return len(parts)
            elif is_on:
                named = {".Content": message and message["content"]} | {f".{k}": v for k, v in single.items()}
                out.append("{{" if action == '"{{"' else named[action])
        return position

    run(0, None, True)
    return "".join(out)


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, SMOLLM, ZEPHYR, LLAMA], ids=["chatml", "smollm", "zephyr", "llama"]
)
@pytest.mark.parametrize("n", [2, 4, 6])
def test_go_template_gives_the_chat_template_s_text_letter_by_letter(tokenizer, template, n):
    loaded = tokenizer(template)
    wanted = loaded.apply_chat_template(CHAT[:n], tokenize=False, add_generation_prompt=True)
    made = go_template(loaded)
    assert ".Messages" in made
    assert render_go(made, CHAT[:n]) == wanted


def test_template_that_moves_the_system_message_becomes_one_for_single_questions(tokenizer):
    loaded = tokenizer(LAST_QUESTION)
    made = go_template(loaded)
    assert ".Messages" not in made
    wanted = loaded.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert render_go(made, CHAT[:2]) == wanted


def test_go_s_own_braces_in_a_chat_template_are_letters(tokenizer):
    loaded = tokenizer("{% for m in messages %}{{ '{{ ' + m['role'] + ' }}' + m['content'] }}{% endfor %}")
    made = go_template(loaded)
    assert render_go(made, CHAT[:2]) == f"{{{{ system }}}}{INSTRUCTIONS}{{{{ user }}}}{CHAT[1]['content']}"


def test_template_that_refuses_a_system_message_is_told(tokenizer):
    with pytest.raises(UserError, match="refuses a system message, which every prompt has: no system message here"):
        go_template(tokenizer(MISTRAL))


def test_template_that_changes_messages_is_told(tokenizer):
    with pytest.raises(UserError, match="does not repeat its messages as they are"):
        go_template(tokenizer("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"))


def read_modelfile(text):
    """Read a Modelfile as Ollama's parser does: a value in three quotes runs on to the next three at a line's end."""
    commands = {}
    for name, quoted, rest in re.findall(
        r'^(FROM|TEMPLATE|SYSTEM|PARAMETER) (?:"""((?:.|\n)*?)"""$|(.*)$)',
        re.sub(r"^#.*\n", "", text, flags=re.M),
        re.M,
    ):
        commands.setdefault(name, []).append(quoted or rest)
    return commands


@pytest.fixture(scope="module")
def ollama(tiny_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("ollama")
    write_ollama(tiny_base, out, instructions=INSTRUCTIONS, example=CHAT[:3], max_new_tokens=40)
    return out


def test_ollama_folder_holds_a_modelfile_with_everything_that_evaluation_fixed(ollama, tokenizer):
    text = (ollama / "Modelfile").read_text()
    commands = read_modelfile(text)
    assert commands["FROM"] == ["./model.gguf"]
    assert commands["SYSTEM"] == [INSTRUCTIONS]
    assert commands["TEMPLATE"] == [go_template(tokenizer(CHAT_TEMPLATE))]
    assert commands["PARAMETER"] == [
        "temperature 0",
        "repeat_penalty 1",
        "num_ctx 2048",
        "num_predict 40",
        'stop "<|im_end|>"',
    ]
    assert "#   Question: Why?\n" in text
    assert sorted(file.name for file in ollama.iterdir()) == ["Modelfile", "model.gguf"]


def test_gguf_is_the_same_model_to_another_reader(ollama, tiny_base):
    from transformers import AutoTokenizer

    prompts = [CHAT[:3], CHAT[:5], build_messages(INSTRUCTIONS, "How much?", ["11 kW at home."])]
    found = agreement(tiny_base, ollama, prompts)
    assert (found.n, found.rate, found.token_rate) == (3, 1.0, 1.0)
    assert found.n_tokens > 10
    # The chat template and the special tokens travel inside the file.
    inside = AutoTokenizer.from_pretrained(ollama, gguf_file="model.gguf")
    assert inside.chat_template == CHAT_TEMPLATE
    assert inside.eos_token == "<|im_end|>"


def test_gguf_with_tied_embeddings_names_them_once(tmp_path):
    import gguf
    from safetensors.torch import load_file, save_file

    model = write_tiny_model(tmp_path / "tied")
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    write_gguf(model, tmp_path / "model.gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert "token_embd.weight" in names
    assert "output.weight" not in names


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "qwen2"}, r"\(qwen2\) cannot be written as GGUF here"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3"}}, "cannot be written as GGUF here"),
        ({"attention_bias": True}, "cannot be written as GGUF here"),
    ],
)
def test_model_that_gguf_would_misread_is_told(changes, told, tmp_path):
    model = write_tiny_model(tmp_path / "other")
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        write_gguf(model, tmp_path / "model.gguf")


def with_tokenizer(folder, **changes):
    model = write_tiny_model(folder)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"] |= changes.pop("model", {})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | changes))
    return model


def field(file, name):
    import gguf

    return gguf.GGUFReader(file).get_field(name).contents()


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"model": "gpt2", "pre": "gpt-2"}),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
                }
            },
            {"model": "gpt2", "pre": "smollm"},
        ),
        (
            {"model": {"byte_fallback": True}, "normalizer": {"type": "Prepend", "prepend": "▁"}},
            {"model": "llama", "pre": "default", "add_space_prefix": True},
        ),
        (
            {"model": {"byte_fallback": True}, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}},
            {"model": "llama", "add_space_prefix": False},
        ),
    ],
)
def test_gguf_says_how_the_tokenizer_splits(changes, wanted, tmp_path):
    write_gguf(with_tokenizer(tmp_path / "model", **changes), tmp_path / "model.gguf")
    assert {name: field(tmp_path / "model.gguf", f"tokenizer.ggml.{name}") for name in wanted} == wanted
    # The chat template writes every special token itself.
    assert not field(tmp_path / "model.gguf", "tokenizer.ggml.add_bos_token")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits words in a way that is unknown here"),
        ({"normalizer": {"type": "Lowercase"}}, "splits words in a way that is unknown here"),
        (
            {"model": {"byte_fallback": True}, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}},
            "puts a space before the first word only",
        ),
        ({"model": {"type": "WordPiece"}}, "is no byte pair encoding"),
    ],
)
def test_tokenizer_that_gguf_would_misread_is_told(changes, told, tmp_path):
    model = with_tokenizer(tmp_path / "model", **changes)
    with pytest.raises(UserError, match=f"{told}.*convert_hf_to_gguf"):
        write_gguf(model, tmp_path / "model.gguf")


def test_encoder_is_no_model_for_ollama(tmp_path):
    model = tmp_path / "encoder"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["BertForQuestionAnswering"]}')
    with pytest.raises(UserError, match="BertForQuestionAnswering writes no text, so Ollama cannot run it"):
        write_ollama(model, tmp_path, instructions="a", example=CHAT, max_new_tokens=8)
    assert not (tmp_path / "Modelfile").exists()


@pytest.mark.parametrize(("text", "told"), [('Say """ this', "three quotes in a row"), ("a\u00a0b", r"'\\xa0'")])
def test_instructions_that_a_modelfile_cannot_hold_are_told(tiny_base, tmp_path, text, told):
    with pytest.raises(UserError, match=f"The system message holds {told}, which a Modelfile cannot"):
        write_ollama(tiny_base, tmp_path, instructions=text, example=CHAT, max_new_tokens=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("compute", "bytes_per_weight"), [("int8", 1), ("float16", 2)])
def test_ctranslate2_export_is_loaded_by_the_engine(tiny_base, tmp_path, compute, bytes_per_weight):
    out = tmp_path / "export"
    out.mkdir()
    write_ctranslate2(tiny_base, out, compute)
    engine, reference = load_engine(out), TransformersEngine(tiny_base)
    assert isinstance(engine, CTranslate2Engine)
    assert (engine.window, engine.render(CHAT)) == (reference.window, reference.render(CHAT))
    n_weights = sum(p.numel() for p in reference._model.parameters())
    assert (out / "model.bin").stat().st_size == pytest.approx(bytes_per_weight * n_weights, rel=0.25)
    assert json.loads((out / "config.json").read_text())


def test_float16_export_says_what_the_model_says_on_a_cpu_too(tiny_base, tmp_path):
    out = tmp_path / "export"
    out.mkdir()
    write_ctranslate2(tiny_base, out, "float16")
    assert agreement(tiny_base, out, [CHAT[:3], CHAT[:5]]).token_rate == 1.0


def test_architecture_without_converter_is_told(tmp_path):
    model, out = write_tiny_model(tmp_path / "olmo", architecture="olmo"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="CTranslate2 cannot convert OlmoForCausalLM: serve the model itself"):
        write_ctranslate2(model, out)
