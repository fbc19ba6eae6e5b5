"""Talk with a model: a conversation by its chat template, or a text that both write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from hf_lm.errors import RecipeError
from hf_lm.evaluation.generate import (
    context_length,
    generate_ids,
    generation_mode,
    prompt_ids,
    sampling_options,
)


class Chat:
    """Keeps what was said so far, and answers with a model.

    With a chat template, each text is a user's message and the model sees the messages before it;
    the oldest are left out where the context is full. Without one, the model continues the text.

    Args:
        model: any causal language model.
        tokenizer: the tokenizer of the model.
        write: called with each piece of an answer as soon as its words are whole.
        system: the instruction that a conversation begins with.
        max_new_tokens: the most tokens of an answer, which has half of the context at most in a
            conversation.
        temperature: 0 takes the likeliest token.
        seed: the same seed gives the same answers.

    Raises:
        RecipeError: there is an instruction, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        write: Callable[[str], object],
        system: str | None = None,
        max_new_tokens: int,
        temperature: float,
        seed: int = 0,
    ) -> None:
        if system and not tokenizer.chat_template:
            raise RecipeError("--system: the model has no chat template; it continues texts")
        self.model, self.tokenizer, self.system, self.seed = model, tokenizer, system, seed
        self.is_chat = bool(tokenizer.chat_template)
        context = context_length(model)
        self.max_new_tokens = min(max_new_tokens, context // 2) if self.is_chat else max_new_tokens
        reserved = self.max_new_tokens if self.is_chat else 1
        self.limit = max(1, context - reserved)  # ids of a prompt
        self.sampling = sampling_options(temperature)
        self.streamer = PieceStreamer(tokenizer, write)
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.text, self.turns = "", 0

    def say(self, text: str) -> str:
        """Return what the model answers, after writing it piece by piece.

        Raises:
            RecipeError: the tokenizer cannot encode the text, or it is too long for the context;
                it counts as not said.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        if self.is_chat:
            ids = self.conversation_ids(messages)
        else:
            ids = prompt_ids(self.tokenizer, self.text + text, limit=self.limit)
        with generation_mode(self.model):
            torch.manual_seed(self.seed + self.turns)
            new_ids = generate_ids(
                self.model,
                ids,
                max_new_tokens=self.max_new_tokens,
                streamer=self.streamer,
                **self.sampling,
            )
        answer = str(self.tokenizer.decode(new_ids, skip_special_tokens=True))
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self.text, self.turns = self.text + text + answer, self.turns + 1
        return answer

    def conversation_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation, without its oldest messages if it is too long.

        Raises:
            RecipeError: the newest message alone is too long, or the template refuses one.
        """
        first = 1 if self.system else 0
        while True:
            ids = self.rendered_ids(messages)
            if len(ids) <= self.limit:
                return ids
            if len(messages) <= first + 1:
                raise RecipeError(
                    f"the message has {len(ids):,} tokens with the template, and the context has "
                    f"{self.limit:,} for it; shorten it"
                )
            del messages[first : first + 2]  # a user's and the answer to it

    def rendered_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of messages by the chat template.

        Raises:
            RecipeError: the template refuses them, as some do an instruction.
        """
        try:
            rendered: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        except TemplateError as error:
            raise RecipeError(f"the chat template refuses the messages: {error}") from None
        return rendered["input_ids"]


class PieceStreamer(TextStreamer):
    """Writes an answer in pieces of whole words, in place of printing it.

    Args:
        tokenizer: decodes the ids.
        write: called with each piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: Any = None) -> None:
        """Write a piece."""
        if text:
            self.write(text)
