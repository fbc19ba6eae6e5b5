"""The loss of a conversation covers all that its assistant says, and sees no other conversation."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from texts import data_recipe, tokenizer_of, write
from tokenizers import processors
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hf_lm.cli import main as command
from hf_lm.data.blocks.chat_tokenization import PRIVATE, TokenizeCompletions
from hf_lm.data.blocks.dataset import IDS, LOSS_BIT, START_BIT
from hf_lm.data.blocks.grouping import BestFit
from hf_lm.data.collator import make_collate
from hf_lm.data.inspection import inspect_source
from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.text.conversations import conversation_text
from hf_lm.data.text.documents import fingerprint
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError
from hf_lm.evaluation.generate import prompt_ids
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.recipe import DataRecipe, ModelRecipe, load_recipe
from hf_lm.run import main
from recipes import TINY, merged, write_corpus

# The chat templates of SmolLM2-135M-Instruct, zephyr-7b-beta and Mistral-7B-Instruct-v0.1.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MARKED = (  # a template made for training, which marks what the assistant generates
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<a>{% generation %}{{ m['content'] }}"
    "</s>{% endgeneration %}{% else %}<u>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
TEMPLATES = {"smollm2": SMOLLM2, "zephyr": ZEPHYR, "mistral": MISTRAL, "marked": MARKED}
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
)
TALK = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi, who is it?"},
    {"role": "user", "content": "Me"},
    {"role": "assistant", "content": "I see"},
]
ANSWER = TALK[3]
TURNS = ("<|im_start|>", "<|im_end|>")
# The pieces of TALK as each template renders them, and whether each piece is in the loss.
PIECES = {
    "smollm2": [
        (SYSTEM + "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hi, who is it?<|im_end|>\n", True),
        ("<|im_start|>user\nMe<|im_end|>\n<|im_start|>assistant\n", False),
        ("I see<|im_end|>\n", True),
    ],
    "zephyr": [
        ("<|user|>\nHello there</s>\n<|assistant|>\n", False),
        ("Hi, who is it?</s>\n", True),
        ("<|user|>\nMe</s>\n<|assistant|>\n", False),
        ("I see</s>\n", True),
    ],
    "mistral": [
        ("<s>[INST] Hello there [/INST]", False),
        ("Hi, who is it?</s> ", True),
        ("[INST] Me [/INST]", False),
        ("I see</s> ", True),
    ],
    "marked": [
        ("<u>Hello there<a>", False),
        ("Hi, who is it?</s>", True),
        ("<u>Me<a>", False),
        ("I see</s>", True),
    ],
}


def chat_tokenizer(template: str | None, kind: str = "byte") -> PreTrainedTokenizerBase:
    """Make a tokenizer with a chat template and the special tokens of all templates."""
    tokenizer = tokenizer_of(kind, ["Hello there, who is it? I see me."])
    eos_tokens = {SMOLLM2: "<|im_end|>", None: "<|endoftext|>"}
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "eos_token": eos_tokens.get(template, "</s>")}
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def expected_ids(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Return the ids of TALK and whether each is in the loss, from the pieces above."""
    ids, in_loss = [], []
    for text, flag in PIECES[name]:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, in_loss = ids + piece, in_loss + [flag] * len(piece)
    return ids, in_loss


def row(**columns: Any) -> str:
    """Write a conversation as JSON, as the document readers do."""
    return json.dumps(columns, ensure_ascii=False)


def tokenized(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[np.ndarray]:
    """Return the ids of each conversation, with flags."""
    batch = TokenizeCompletions(tokenizer)({"text": [*texts]})
    return np.split(batch["input_ids"], batch["ends"][:-1])


def text_in_loss(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    """Decode the ids of a conversation that are in the loss."""
    return tokenizer.decode((ids & IDS)[(ids & LOSS_BIT) > 0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_turns_of_the_assistant_are_in_the_loss(name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    (ids,) = tokenized(tokenizer, row(messages=TALK))
    expected, in_loss = expected_ids(name, tokenizer)
    assert (ids & IDS).tolist() == expected
    assert ((ids & LOSS_BIT) > 0).tolist() == in_loss
    assert ((ids & START_BIT) > 0).tolist() == [True] + [False] * (len(ids) - 1)
    rendered = tokenizer.apply_chat_template(TALK)["input_ids"]
    assert expected == rendered


@pytest.mark.parametrize("name", TEMPLATES)
def test_of_prompt_and_completion_only_the_completion_is_in_the_loss(name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    pair = row(prompt=TALK[:3], completion=TALK[3:])
    texts = row(prompt="Me", completion="I see")
    for text, ids in zip((pair, texts), tokenized(tokenizer, pair, texts), strict=True):
        assert text_in_loss(tokenizer, ids) == PIECES[name][3][0], text


@pytest.mark.parametrize("name", TEMPLATES)
def test_packed_conversations_have_the_same_loss_as_separate_ones(name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    talks = [TALK, TALK[:2], [*TALK, *TALK], TALK[2:]]
    rows = tokenized(tokenizer, *(row(messages=talk) for talk in talks))
    recipe = ModelRecipe(n_layer=2, n_head=2, n_embd=16)
    model = build_model(recipe, Vocabulary.of(tokenizer), block_size=512, seed=3)
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    nll, count = torch.zeros(()), 0
    for talk, ids in zip(talks, rows, strict=True):
        rendered = torch.tensor(tokenizer.apply_chat_template(talk)["input_ids"])
        assert torch.equal(rendered, torch.from_numpy(ids & IDS))
        losses = functional.cross_entropy(
            plain(rendered[None]).logits[0, :-1].float(), rendered[1:], reduction="none"
        )
        in_loss = torch.from_numpy((ids[1:] & LOSS_BIT) > 0)
        nll, count = nll + losses[in_loss].sum(), count + int(in_loss.sum())

    packed = BestFit(512, tokenizer.eos_token_id, np.int32, drop_long_documents=True)
    blocks = packed.add(np.concatenate(rows), np.cumsum([len(ids) for ids in rows]))
    blocks = np.concatenate([blocks, packed.add(np.empty(0, np.int32), np.empty(0, np.int64))])
    assert len(blocks) < len(talks)  # at least two conversations share a block
    data = DataRecipe(train_on="completion", grouping="best_fit", document_mask=True)
    collate = make_collate(data, tokenizer, split="validation")
    batch = collate([{"input_ids": block} for block in blocks])
    assert int((batch["shift_labels"] != IGNORE_INDEX).sum()) == count
    loss = model(**batch, use_cache=False).loss.item()
    assert loss == pytest.approx((nll / count).item(), rel=1e-6)


def test_a_token_that_spans_prompt_and_completion_is_in_the_loss() -> None:
    tokenizer = chat_tokenizer(None, "bpe")
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=True)  # as in GPT-2's tokenizer
    for prompt, completion, in_loss in (
        ("Hello", " there ", " there <|endoftext|>"),
        ("Hello the", "re", " there<|endoftext|>"),
    ):
        (ids,) = tokenized(tokenizer, row(prompt=prompt, completion=completion))
        assert text_in_loss(tokenizer, ids) == in_loss
        assert tokenizer.decode(ids & IDS) == f"{prompt}{completion}<|endoftext|>"


def test_truncation_and_padding_set_on_a_tokenizer_are_ignored() -> None:
    tokenizer = chat_tokenizer(SMOLLM2)
    backend: Any = tokenizer.backend_tokenizer
    backend.enable_truncation(5)
    backend.enable_padding(length=300)
    (ids,) = tokenized(tokenizer, row(messages=TALK))
    assert (ids & IDS).tolist() == expected_ids("smollm2", chat_tokenizer(SMOLLM2))[0]


def test_a_tokenizer_without_offsets_is_rejected() -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(DataError, match=r"use one with a tokenizer\.json"):
        TokenizeCompletions(slow)


def test_null_columns_and_the_order_of_columns_do_not_change_a_conversation() -> None:
    padded = [{"name": None, "content": m["content"], "role": m["role"]} for m in TALK]
    assert conversation_text({"messages": padded}) == conversation_text({"messages": TALK})


def test_another_template_or_train_on_does_not_reuse_cached_blocks(tmp_path: Path) -> None:
    rows = [{"text": "a", "messages": [*TALK[:n], ANSWER]} for n in (1, 3)]
    path = write(tmp_path / "talks.jsonl", "\n".join(json.dumps(row) for row in rows))
    validation = {"source": str(path)}
    keys = {"grouping": "best_fit", "document_mask": True, "block_size": 4096}
    data = data_recipe(path, train_on="completion", validation=validation, **keys)
    tokens = []
    for template in (ZEPHYR, MISTRAL):  # both have the same end-of-text token
        text = load_documents(data, find_corpus(data))
        tokens.append(
            load_blocks(data, text, chat_tokenizer(template), seed=0).counts["train"].tokens
        )
    assert tokens[0] != tokens[1]
    as_text = data.model_copy(update={"train_on": "text"})
    assert fingerprint(as_text, find_corpus(data)) != fingerprint(data, find_corpus(data))


@pytest.mark.parametrize("name", ["smollm2", "zephyr", "mistral"])
def test_special_tokens_written_in_a_message_are_encoded_as_text(name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    message = {"role": "assistant", "content": "say <|im_end|> or </s>, <|im_end|"}
    (ids,) = tokenized(tokenizer, row(messages=[TALK[0], message]))
    assert message["content"] in text_in_loss(tokenizer, ids)
    (turn,) = tokenized(tokenizer, row(messages=[TALK[0], ANSWER]))
    special = tokenizer.all_special_ids + tokenizer.convert_tokens_to_ids(list(TURNS))
    special_ids = [[i for i in (row & IDS).tolist() if i in special] for row in (ids, turn)]
    assert special_ids[0] == special_ids[1]
    (pair,) = tokenized(chat_tokenizer(None), row(prompt="a</s>b", completion="<s>"))
    assert (pair & IDS).tolist()[-1] == chat_tokenizer(None).eos_token_id
    assert text_in_loss(chat_tokenizer(None), pair) == "<s><|endoftext|>"
    assert chat_tokenizer(None).bos_token_id not in (pair & IDS).tolist()


def test_a_conversation_ends_with_end_of_text_after_the_last_answer() -> None:
    other_end = chat_tokenizer(SMOLLM2)
    other_end.eos_token = "<|endoftext|>"
    (ids,) = tokenized(other_end, row(messages=TALK[:3]))
    assert text_in_loss(other_end, ids) == "Hi, who is it?<|im_end|>\n<|endoftext|>"
    assert other_end.decode(ids & IDS).endswith("Hi, who is it?<|im_end|>\n<|endoftext|>")
    outside = chat_tokenizer(MARKED.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>"))
    (ids,) = tokenized(outside, row(messages=TALK[:2]))
    assert text_in_loss(outside, ids) == "Hi, who is it?</s>"
    assert outside.decode(ids & IDS) == "<u>Hello there<a>Hi, who is it?</s>"


def test_several_templates_without_a_default_are_rejected() -> None:
    tokenizer = chat_tokenizer(SMOLLM2)
    tokenizer.chat_template = {"tools": SMOLLM2, "plain": SMOLLM2}
    with pytest.raises(DataError, match=r"^set tokenizer\.chat_template: "):
        TokenizeCompletions(tokenizer)


def test_a_first_message_of_the_assistant_is_in_the_loss() -> None:
    tokenizer = chat_tokenizer(ZEPHYR)
    (ids,) = tokenized(tokenizer, conversation_text({"messages": [ANSWER]}))
    assert text_in_loss(tokenizer, ids) == "<|assistant|>\nI see</s>\n"


def test_a_value_that_json_cannot_store_is_named() -> None:
    with pytest.raises(ValueError, match=r'"messages" has a value that JSON cannot hold: .*time'):
        conversation_text({"messages": [{**TALK[1], "when": datetime(2026, 1, 1)}]})


LAST_DIFFERS = ZEPHYR.replace("<|assistant|>\n'  +", "<|assistant|>\n' + '!' * loop.revindex0 +")
UNMARKED = MARKED.replace("m['role'] == 'assistant'", "false")


@pytest.mark.parametrize(
    ("template", "messages", "rule"),
    [
        (None, TALK, "no chat template for messages; set tokenizer.chat_template"),
        (MISTRAL, TALK[1:], "the chat template refuses it: Conversation roles must"),
        (LAST_DIFFERS, TALK, "renders its message 2 differently if it is the last"),
        (SMOLLM2, [{**TALK[0], "content": chr(PRIVATE)}, ANSWER], "is reserved for special tokens"),
        (UNMARKED, TALK, "marks nothing of it as generated"),
    ],
    ids=["none", "refuses", "differs", "private", "unmarked"],
)
def test_a_conversation_whose_loss_is_unclear_is_a_one_line_error(
    template: str | None, messages: list[dict[str, str]], rule: str
) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        tokenized(chat_tokenizer(template), row(messages=messages))
    assert str(caught.value).startswith('conversation {"messages": [{"role": "')
    assert "\n" not in str(caught.value)


def test_a_conversation_longer_than_a_block_is_dropped_and_counted() -> None:
    packed = BestFit(8, 0, np.int32, drop_long_documents=True)
    packed.add(np.arange(1, 21, dtype=np.int32), np.array([5, 16, 20]))
    blocks = packed.add(np.empty(0, np.int32), np.empty(0, np.int64))
    assert [ids[ids > 0].tolist() for ids in blocks] == [[1, 2, 3, 4, 5], [17, 18, 19, 20]]
    assert packed.unused == 11


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model without a chat template."""
    folder = tmp_path_factory.mktemp("base")
    write_corpus(folder / "corpus")
    changes = {"data.block_size": 128, "training.tokens_per_step": 256}
    (folder / "recipe.json").write_text(json.dumps(merged(TINY, changes)))
    assert main([str(folder / "recipe.json")]) == 0
    return folder / "run" / "model"


def write_pairs(folder: Path) -> None:
    """Write a folder with a JSONL file of prompts and completions."""
    rows = [
        {"prompt": f"The {n} of {n * n}?\n", "completion": f"It is {n * n + 1}, {'so' * (n % 5)}."}
        for n in range(60)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


COMPLETION = {
    "data": {
        "source": "pairs",
        "train_on": "completion",
        "grouping": "best_fit",
        "document_mask": True,
        "block_size": 64,
        "validation": {"holdout": 0.2},
    },
    "tokenizer": {},
    "training.tokens_per_step": 256,
    "training.max_steps": 30,
}


@pytest.fixture(scope="module")
def answers(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on prompts and completions."""
    folder = tmp_path_factory.mktemp("answers")
    write_pairs(folder / "pairs")
    recipe = merged(TINY, {**COMPLETION, "model": {"pretrained": str(base)}})
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert main([str(folder / "recipe.json")]) == 0
    return folder


def read_json(run: Path, name: str) -> Any:
    """Read a JSON file of a run."""
    return json.loads((run / f"{name}.json").read_text())


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_loss(run: Path) -> int:
    """Count the completion tokens of both splits."""
    text = read_json(run, "provenance")["text"]
    return sum(text[split]["completion_tokens"] for split in ("train", "validation"))


def test_a_run_trains_on_completions_and_evaluates_only_them(answers: Path, base: Path) -> None:
    run, tokenizer = answers / "run", AutoTokenizer.from_pretrained(base)
    text = read_json(run, "provenance")["text"]
    assert read_json(run, "metrics")["tokens"] == text["validation"]["completion_tokens"]
    rows = lines_of(answers / "pairs" / "pairs.jsonl")
    sizes = {
        row["completion"]: len(tokenizer(row["prompt"] + row["completion"])["input_ids"])
        - len(tokenizer(row["prompt"])["input_ids"])
        + 1  # end-of-text
        for row in rows
    }
    assert in_loss(run) == sum(sizes.values())
    log = lines_of(run / "log.jsonl")
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < losses[0] - 1
    assert log[-1]["tokens"] < 30 * 256 * in_loss(run) / text["train"]["tokens"]


def test_evaluate_measures_another_model_on_completions(
    answers: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        f"data.{key}={json.dumps(value)}"
        for key, value in COMPLETION["data"].items()
        if key not in ("source", "validation")
    ]
    sets = [split for setting in settings for split in ("--set", setting)]
    source = ["--source", str(answers / "pairs")]
    assert command(["evaluate", str(base), *source, "--json", *sets]) == 0
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["tokens"] == in_loss(answers / "run")
    rows = lines_of(answers / "pairs" / "pairs.jsonl")
    assert measured["bytes"] == sum(len(row["completion"]) for row in rows)
    assert measured["loss"] > read_json(answers / "run", "metrics")["loss"] + 1


def test_prepared_conversations_give_the_same_loss_and_are_rejected_as_text(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, blocks = answers / "recipe.json", tmp_path / "blocks"
    assert command(["prepare", str(path), "--output", str(blocks)]) == 0
    again = [str(path), "--set", f"data.source={blocks}"]
    assert main([*again, "--set", f"output_dir={tmp_path / 'again'}"]) == 0
    losses = [read_json(run, "metrics")["loss"] for run in (tmp_path / "again", answers / "run")]
    assert losses[0] == losses[1]
    as_text = ["--set", "data.train_on=text", "--set", f"output_dir={tmp_path / 'other'}"]
    assert main([*again, *as_text]) == 2
    assert 'data.train_on = "text": the blocks in' in capsys.readouterr().err


@pytest.fixture(scope="module")
def talks(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on messages, which adds tokens and a chat template to the model."""
    folder = tmp_path_factory.mktemp("talks")
    lines = (json.dumps({"messages": [*TALK[:n], ANSWER]}) for n in (1, 3))
    (folder / "talks.jsonl").write_text("\n".join(lines))
    other = {"messages": [TALK[0], ANSWER, TALK[2], ANSWER]}
    (folder / "other.jsonl").write_text(json.dumps(other))
    (folder / "turns.jinja").write_text(SMOLLM2)
    changes = {
        **COMPLETION,
        "data.source": "talks.jsonl",
        "data.validation": {"source": "other.jsonl"},
        "data.block_size": 128,
        "model": {"pretrained": str(base)},
        "tokenizer": {"add_tokens": list(TURNS), "chat_template": "turns.jinja"},
        "training.schedule": "constant",
        "training.max_steps": 4,
        "training.tokens_per_step": 128,
        "evaluation.prompts": ["Me"],
    }
    (folder / "recipe.json").write_text(json.dumps(merged(TINY, changes)))
    assert main([str(folder / "recipe.json")]) == 0
    return folder


def test_added_tokens_and_the_template_are_saved_with_the_model(talks: Path, base: Path) -> None:
    saved, before = talks / "run" / "model", AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert tokenizer.chat_template == SMOLLM2
    ids = tokenizer.convert_tokens_to_ids(list(TURNS))
    assert ids == [before.config.vocab_size, before.config.vocab_size + 1]
    assert model.config.vocab_size == len(tokenizer) == before.config.vocab_size + 2
    assert read_json(talks / "run", "recipe")["tokenizer"] == {
        "pretrained": None,
        "train": None,
        "eos_token": None,
        "bos_token": None,
        "pad_token": None,
        "add_tokens": list(TURNS),
        "chat_template": SMOLLM2,
    }
    metrics = read_json(talks / "run", "metrics")
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    samples = [row["samples"] for row in lines_of(talks / "run" / "log.jsonl") if "samples" in row]
    assert [sample["prompt"] for (sample,) in samples] == ["Me"] * len(samples)
    assert metrics["bytes"] == 2 * len("I see\n")  # turn tokens do not count as text
    assert "apply_chat_template" in (saved / "README.md").read_text()
    rendered = tokenizer.apply_chat_template([TALK[2]], add_generation_prompt=True)["input_ids"]
    assert prompt_ids(tokenizer, "Me", limit=512, chat=True) == rendered
    assert prompt_ids(tokenizer, "Me", limit=5, chat=True) == rendered[-5:]


def test_a_run_with_resized_embeddings_resumes_bit_for_bit(talks: Path, tmp_path: Path) -> None:
    runs, longer = (tmp_path / "run", tmp_path / "whole"), ["--set", "training.max_steps=8"]
    shutil.copytree(talks / "run", runs[0])
    for run in runs:
        assert main([str(talks / "recipe.json"), *longer, "--set", f"output_dir={run}"]) == 0
    weights = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_conversations_that_all_exceed_a_block_name_the_key_to_raise(
    talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = ["--set", "data.block_size=16", "--set", f"output_dir={tmp_path / 'run'}"]
    assert main([str(talks / "recipe.json"), "--check", *shorter]) == 2
    assert "none of 2 conversations fits a block of 16 tokens; raise" in capsys.readouterr().err


def test_blocks_made_with_another_template_are_rejected(
    talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, blocks = str(talks / "recipe.json"), tmp_path / "blocks"
    assert command(["prepare", recipe, "--output", str(blocks)]) == 0
    original = json.loads((talks / "recipe.json").read_text())["data"]
    data = {**original, "source": str(blocks), "validation": {"holdout": 0.05}}
    again = [recipe, "--set", f"data={json.dumps(data)}", "--set", f"output_dir={tmp_path / 'run'}"]
    assert main([*again, "--check"]) == 0
    assert main([*again, "--check", "--set", "tokenizer.chat_template={{ messages }}"]) == 2
    assert "was made with another tokenizer than this model's" in capsys.readouterr().err


def test_a_template_set_on_the_command_line_is_read_from_the_working_directory(
    talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jinja").write_text("{{ mine }}")
    override = ["tokenizer.chat_template=own.jinja"]
    recipe = load_recipe(talks / "recipe.json", overrides=override)
    assert recipe.tokenizer.chat_template == "{{ mine }}"
    assert load_recipe(talks / "recipe.json").tokenizer.chat_template == SMOLLM2


def test_files_without_rows_are_rejected_as_conversations(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(answers / "pairs", tmp_path / "pairs")
    (tmp_path / "pairs" / "notes.md").write_text("# Pairs")
    source = ["--set", f"data.source={tmp_path / 'pairs'}", "--set", f"output_dir={tmp_path}/run"]
    assert main([str(answers / "recipe.json"), *source]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "notes.md: has no rows; use only files of .parquet, .arrow, .csv, " in line
    split = ["--set", 'data.validation={"split": "test"}', "--set", f"output_dir={tmp_path}/run"]
    assert main([str(answers / "recipe.json"), *split]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('data.validation.split = "test": has no effect, because ')


def test_messages_without_a_template_are_a_one_line_error(
    talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ["--set", "tokenizer.chat_template=null", "--set", f"output_dir={tmp_path / 'run'}"]
    assert main([str(talks / "recipe.json"), *none]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('conversation {"messages": [')
    assert "the tokenizer has no chat template for messages; set tokenizer.chat_template" in line
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_models_is_rejected_unless_add_tokens_names_it(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(TURNS), special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "larger")
    write_pairs(tmp_path / "pairs")
    model = {"model": {"pretrained": str(base)}, "tokenizer": {"pretrained": "larger"}}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(merged(TINY, {**COMPLETION, **model})))
    assert main([str(path), "--check"]) == 2
    assert "list new tokens in tokenizer.add_tokens" in capsys.readouterr().err
    named = ["--set", f"tokenizer.add_tokens={json.dumps(TURNS)}"]
    assert main([str(path), "--check", *named]) == 0
    path.write_text(json.dumps(merged(TINY, {**COMPLETION, "model": {"lora": {}}})))
    for key, rule in (("add_tokens", "would never be trained"), ("chat_template", "cannot be")):
        value = json.dumps(TURNS) if key == "add_tokens" else "none.jinja"
        assert main([str(path), "--from", str(base), "--set", f"tokenizer.{key}={value}"]) == 2
        assert rule in capsys.readouterr().err


def test_rows_without_a_conversation_are_all_named_before_a_model_is_loaded(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "pairs")
    broken = [
        ({"text": "a"}, 'has no conversation, as data.train_on = "completion" requires'),
        ({"messages": "a"}, '"messages" is str, expected a list of messages'),
        ({"messages": [{"content": "a"}]}, 'has a message that is not an object with a "role"'),
        ({"messages": [{"role": "user", "content": None}]}, 'whose "content" is not text'),
        ({"messages": TALK[:1]}, '"messages" has no message of the role "assistant"'),
        ({"prompt": "a", "completion": " "}, '"completion" is empty'),
        ({"prompt": "a", "completion": TALK[1:2]}, "must both be text, or both be messages"),
        ("a", "is str, expected an object with a conversation"),
    ]
    lines = [json.dumps(row) for row, _ in broken]
    (tmp_path / "pairs" / "broken.jsonl").write_text("\n".join(lines))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(merged(TINY, {**COMPLETION, "model": {"pretrained": str(base)}})))
    assert main([str(path), "--set", "data.on_missing_text=error"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(broken)
    for number, (error, (_, rule)) in enumerate(zip(errors, broken, strict=True), 1):
        assert error.startswith(f"{tmp_path / 'pairs' / 'broken.jsonl'}:{number}: "), error
        assert rule in error


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_look_at_conversations_marks_what_is_learnt(name: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write(tmp_path / "a.jsonl", json.dumps({"messages": TALK}) + "\n")
    raw = {
        "data": {
            "source": "a.jsonl",
            "train_on": "completion",
            "grouping": "best_fit",
            "document_mask": True,
        },
        "tokenizer": {"pretrained": "./tokenizer"},
        "training": {"max_steps": 1},
    }
    path = write(tmp_path / "recipe.json", json.dumps(raw))
    (shown,) = inspect_source(str(path)).shown
    expected = "".join(f"«{text}»" if learnt else text for text, learnt in PIECES[name])
    assert shown.start == expected
    whole = "".join(text for text, _ in PIECES[name])
    assert shown.tokens == len(tokenizer(whole, add_special_tokens=False)["input_ids"]) + (
        0 if whole.rstrip().endswith(tokenizer.eos_token) else 1
    )
