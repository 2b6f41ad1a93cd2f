"""A model and a task so small that the whole graph runs over them in seconds, with nothing faked."""

import csv
import json
from pathlib import Path

from ev_platform.training.recipes import Lora, Recipe

BASE_URL = "https://tiny.example/"
DESCRIPTION = "Answer the question about electric vehicle charging stations from the passages."
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONNECTORS = """The Type 2 connector is the usual AC plug for electric cars in Europe, and every public AC charging
station has it. It carries up to 43 kW over three phases, and a motor in the car locks it while current flows.
The CCS2 connector adds two thick contacts for DC below the Type 2 shape, so that one inlet in the car takes both
kinds of charging. A liquid-cooled CCS2 cable carries 500 A. The older CHAdeMO plug was designed in Japan in 2010 and
needs an inlet of its own. An electric vehicle tells the charging station over the pilot wire when it is ready, and
the station then closes its contactor. The lock of a CHAdeMO plug is in the plug itself, and the charger works it."""

PAGES = {
    "index.html": (
        "en",
        "Charging at a glance",
        """An electric vehicle charging station gives energy to the battery of an electric car. Stations at
home usually deliver 11 kW, and a car with an empty battery of 60 kWh is full again after six hours. Fast charging
stations beside the motorway deliver DC power of 150 kW or more, so that a driver waits for about 25 minutes. Every
charging station in public places must accept a payment card since 2024. Before the first use an electrician tests
the residual current device, and the operator writes the result into the log of the charging station.""",
    ),
    "connectors.html": ("en", "Charging connectors", CONNECTORS),
    "connectors-print.html": ("en", "Charging connectors", CONNECTORS + " This page was laid out for a printer."),
    "cables.html": (
        "en",
        "Charging cables",
        """A Mode 3 charging cable joins the electric car to the charging station and is coded by a
resistor between the proximity contact and earth. A resistor of 220 ohm marks a cable for 32 A, and one of 680 ohm
marks a cable for 20 A. The longest cable that a station may have is 10 metres. Copper cores of 6 square millimetres
serve a charging current of 32 A. A damaged sheath takes the cable out of use at once, and the operator of the
charging station replaces it within 48 hours. Cables are tested every 12 months by an electrician.""",
    ),
    "laden.html": (
        "de",
        "Laden zu Hause",
        """Eine Ladestation für Elektroautos gibt Energie an die Batterie des Fahrzeugs ab. Zu Hause
liefern die meisten Ladestationen elf Kilowatt, und ein leeres Auto ist nach sechs Stunden wieder voll. Vor der ersten
Benutzung prüft eine Fachkraft den Schutzschalter und schreibt das Ergebnis in das Protokoll der Ladestation. Wer zur
Miete wohnt, darf von seinem Vermieter verlangen, dass er einer Ladestation auf dem eigenen Stellplatz zustimmt. Das
Kabel wird nach dem Laden ordentlich aufgehängt, damit niemand darüber stolpert.""",
    ),
    "garden.html": (
        "en",
        "Our kitchen garden",
        """Tomatoes want a warm wall and a deep bed of compost. We sow them in March on the window sill
and plant them out after the last frost in May. Beans climb along hazel sticks, and lettuce grows well in their shade.
Slugs come at night after rain, so we collect them with a torch and a bucket. In autumn the beds get a thick layer of
leaves, and the worms do the rest until spring. Strawberries are divided every third year, and the young plants move
to fresh soil beside the old apple tree.""",
    ),
}

TRAIN = [
    ("How much power do charging stations at home usually deliver?", "11 kW", "index.html"),
    ("Since when must public stations accept a payment card?", "2024", "index.html"),
    ("Who tests the residual current device before the first use?", "an electrician", "index.html"),
    ("Where was the CHAdeMO plug designed?", "Japan", "connectors.html"),
    ("Which plug is usual for AC in Europe?", "Type 2", "connectors.html"),
    ("What current does a liquid-cooled CCS2 cable carry?", "500 A", "connectors.html"),
]
TEST = [
    ("Which resistor marks a cable for 32 A?", "220 ohm", "cables.html"),
    ("How long may the cable of a station be?", "10 metres", "cables.html"),
    ("How often are cables tested?", "every 12 months", "cables.html"),
    ("How soon is a damaged cable replaced?", "within 48 hours", "cables.html"),
]

RECIPE = """base_model: replaced-by-config
method: lora
lora: {r: 4, alpha: 8, dropout: 0.0, target_modules: [q_proj, v_proj, up_proj]}
learning_rate: 0.005
scheduler: cosine
warmup_ratio: 0.1
epochs: 1
max_steps: 3
batch_size: 2
max_length: 1024
seed: 17
"""
CONFIG = """type: open_book_qa
recipe: tiny.yaml
base_model: {model}
corpus: {{min_words: 30}}
dataset: {{max_examples: 6, max_per_chunk: 3, validation_fraction: 0.4}}
evaluation: {{max_new_tokens: 8, bootstrap: 100}}
"""


def tiny_recipe(**changes) -> Recipe:
    """Return the recipe of the tiny task, for tests that train without a task."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj", "up_proj"]}
    fields = {
        "base_model": "tiny",
        "method": "lora",
        "learning_rate": 0.005,
        "scheduler": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 1,
        "max_steps": 3,
        "batch_size": 2,
        "max_length": 1024,
        "seed": 17,
    }
    lora |= changes.pop("lora", {})
    return Recipe(**{**fields, **changes, "lora": Lora(**lora)})


def write_tiny_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE tokenizer with a ChatML template; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for _, _, text in PAGES.values()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def write_tiny_model(folder: Path, *, seed: int = 0, architecture: str = "llama") -> Path:
    """Write a random two-layer model with a tokenizer; the same seed gives the same bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, OlmoConfig, OlmoForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    n_vocabulary = write_tiny_tokenizer(folder)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "olmo": (OlmoConfig, OlmoForCausalLM),
    }[architecture]
    torch.manual_seed(seed)
    model = model_class(
        config_class(
            vocab_size=n_vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            # Large enough that logits differ clearly, so that greedy decoding does not hang on rounding.
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder)
    return folder


def page(name: str, text: str | None = None) -> str:
    """Return the HTML of one page, with other words if `text` is given."""
    language, title, own = PAGES[name]
    links = "".join(f'<li><a href="/{other}">{PAGES[other][1]}</a></li>' for other in PAGES if other != name)
    paragraphs = "".join(f"<p>{part}</p>" for part in (text or own).split("\n\n"))
    return (
        f'<!DOCTYPE html><html lang="{language}"><head><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="license" href="https://creativecommons.org/licenses/by/4.0/"></head><body>'
        f'<nav><ul>{links}<li><a href="/missing.html">Gone</a></li></ul></nav>'
        f"<main><article><h1>{title}</h1>{paragraphs}</article></main></body></html>"
    )


def write_tiny_task(folder: Path, model: Path) -> Path:
    """Write a task folder: a site of six pages and a dead link behind a mirror, six training and four test rows."""
    site = folder / "site"
    site.mkdir(parents=True)
    for name in PAGES:
        (site / name).write_text(page(name), encoding="utf-8")
    (folder / "job_description.json").write_text(json.dumps({"task_description": DESCRIPTION}))
    (folder / "sources.yaml").write_text(
        f"seeds: ['{BASE_URL}index.html']\nmirrors: [{{base_url: '{BASE_URL}', folder: site}}]\n"
        "licence: CC0-1.0\npublisher: Tiny Press\n"
    )
    (folder / "config.yaml").write_text(CONFIG.format(model=model))
    (folder / "tiny.yaml").write_text(RECIPE)
    for split, rows in (("train", TRAIN), ("test", TEST)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "answer", "source"])
            writer.writerows([question, answer, BASE_URL + source] for question, answer, source in rows)
    return folder
