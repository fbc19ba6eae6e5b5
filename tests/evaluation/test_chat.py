"""A chat shows the model what was said, in whole messages, and its answers piece by piece."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from texts import tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_lm.cli import main
from hf_lm.errors import RecipeError
from hf_lm.evaluation.chat import Chat
from hf_lm.evaluation.generate import generate_samples

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def chat_of(model: Any, tokenizer: Any, **options: Any) -> tuple[Chat, list[str]]:
    """A chat whose answers are the likeliest tokens, and the pieces that it writes."""
    pieces = list[str]()
    given = {"max_new_tokens": 12, "temperature": 0.0, **options}
    return Chat(model, tokenizer, write=pieces.append, **given), pieces


def conversing(context: int = 512) -> tuple[Any, Any]:
    """A random model of bytes, and its tokenizer with a chat template."""
    tokenizer = tokenizer_of("byte", [])
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    return GPT2LMHeadModel(config).eval(), tokenizer


def test_a_model_without_a_template_continues_the_text_of_both(tiny_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    chat, pieces = chat_of(model, tokenizer, max_new_tokens=3)
    first = chat.say("The ")
    second = chat.say(" run")
    assert "".join(pieces) == first + second
    for prompt, answer in (("The ", first), (f"The {first} run", second)):
        (sample,) = generate_samples(model, tokenizer, [prompt], max_new_tokens=3, temperature=0)
        assert sample["text"] == answer
    chat.reset()
    assert chat.say("The ") == first
    with pytest.raises(RecipeError, match="no chat template"):
        chat_of(model, tokenizer, system="Be brief.")


def test_a_conversation_is_rendered_with_what_was_said_before() -> None:
    model, tokenizer = conversing()
    chat, pieces = chat_of(model, tokenizer, system="Be brief.")
    first = chat.say("Hello.")
    second = chat.say("And now?")
    assert "".join(pieces) == first + second
    text = f"system: Be brief.\nuser: Hello.\nassistant: {first}\nuser: And now?\nassistant: "
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert second == tokenizer.decode(expected, skip_special_tokens=True)


def test_other_seeds_and_turns_give_other_answers() -> None:
    model, tokenizer = conversing()
    chats = [chat_of(model, tokenizer, temperature=2.0, seed=seed)[0] for seed in (0, 0, 1)]
    answers = [chat.say("Hello.") for chat in chats]
    assert answers[0] == answers[1] != answers[2]


def test_the_oldest_messages_are_left_out_where_the_context_is_full() -> None:
    chat, _ = chat_of(*conversing(context=128), system="S", max_new_tokens=100)
    assert (chat.max_new_tokens, chat.limit) == (64, 64)
    messages = [{"role": "system", "content": "S"}]
    for number in range(4):
        messages += [{"role": "user", "content": f"u{number}"}]
        messages += [{"role": "assistant", "content": f"a{number}"}]
    messages.append({"role": "user", "content": "last"})
    ids = chat.conversation_ids(messages)
    text = "system: S\nuser: u3\nassistant: a3\nuser: last\nassistant: "
    assert chat.tokenizer.decode(ids) == text
    with pytest.raises(RecipeError, match="the context has 64 for it; shorten it"):
        chat.say("long " * 20)
    assert chat.messages == [{"role": "system", "content": "S"}]


def test_a_template_that_refuses_an_instruction_is_one_line() -> None:
    model, tokenizer = conversing()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + TEMPLATE
    assert chat_of(model, tokenizer)[0].say("Hello.")
    with pytest.raises(RecipeError, match=r"the chat template refuses the messages: no system"):
        chat_of(model, tokenizer, system="Be brief.")[0].say("Hello.")


def test_the_command_reads_lines_and_texts_of_several_lines(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    typed = 'The \n/reset\n\n/what\n"""The\n run"""\n/reset\nThe \n/exit\nnever read\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    options = ["--max-new-tokens", "3", "--temperature", "0"]
    assert main(["chat", str(tiny_run / "model"), *options]) == 0
    shown = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    prompts = ["The ", "The\n run"]
    samples = generate_samples(model, tokenizer, prompts, max_new_tokens=3, temperature=0)
    first, second = (sample["text"] for sample in samples)
    rest = shown.removeprefix(f"{first}\n/what: no such command; ")
    assert rest.split("\n", 1)[1] == f"{second}\n{first}\n"


def test_a_text_that_cannot_be_encoded_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    model, _ = conversing()
    tokenizer = tokenizer_of("char", ["abc "])
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("é\nab\n"))
    assert main(["chat", str(tmp_path), "--max-new-tokens", "3"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert "it has no token for 'é' (U+00E9)" in first
    assert set(second) <= set("abc ")
