r"""Talking with an instruct model: its template puts each turn between marks, and the cache keeps what was read.

    <|im_start|>system\n{who it is}<|im_end|>\n                      once, at the beginning
    <|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n    each turn; then the model writes up to <|im_end|>

Details that matter:
    1. The marks are put in as ids. A user who types <|im_end|> types seven letters and some signs, and cannot end their
       turn with it (test_what_a_user_types_never_becomes_a_mark).
    2. A turn is read into the cache once; the next one goes on from there (test_a_conversation_reads_every_turn_once).
    3. A reply that is broken off is closed with the end mark, so that the next turn finds the conversation in order
       (test_a_reply_that_is_broken_off_leaves_the_conversation_in_order).
    4. Half of a letter is held back until its other bytes are written (test_letters_of_several_bytes_arrive_whole).

Try it:  python -m minialign chat smollm2 --prompt "…"
"""

from collections.abc import Iterator

import torch

from minialign.cache import Cache
from minialign.generation import SamplingConfig, sample_token, shape_logits
from minialign.heads import evaluating
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.pretrained.llama import Llama
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError

HALF = "\ufffd"  # what bytes decode to that are not a whole letter


def turn_ids(tokenizer: PretrainedTokenizer, role: str, text: str | list[int]) -> list[int]:
    """A whole turn: start mark, role, text (or its ids), end mark, newline."""
    ids = tokenizer.encode(text) if isinstance(text, str) else text
    return [*opening_ids(tokenizer, role), *ids, tokenizer.end, *tokenizer.encode("\n")]


def opening_ids(tokenizer: PretrainedTokenizer, role: str) -> list[int]:
    """The beginning of a turn that somebody is about to write."""
    return [tokenizer.begin, *tokenizer.encode(f"{role}\n")]


def taught_row(tokenizer: PretrainedTokenizer, system: str, prompt: list[int],
               reply: list[int]) -> tuple[list[int], int]:
    """A conversation of one turn to learn from, given the ids of both sides, and the place where the reply begins."""
    asked = [*turn_ids(tokenizer, "system", system), *turn_ids(tokenizer, "user", prompt),
             *opening_ids(tokenizer, "assistant")]
    return [*asked, *reply, tokenizer.end], len(asked)


class Conversation:
    """One conversation with one model.

    Args:
        model, tokenizer: whose marks are its begin and end tokens.
        system: what the model is told about itself.
        sampling: how its replies are written.
        generator: where chance comes from; same state and same turns, same replies.
    """

    def __init__(self, model: Llama, tokenizer: PretrainedTokenizer, system: str, sampling: SamplingConfig,
                 generator: torch.Generator):
        self.model, self.tokenizer, self.sampling, self.generator = model, tokenizer, sampling, generator
        self.device = device_of(model)
        self.cache = Cache(model.config, 1, model.config.context, device=self.device)
        self.unread = turn_ids(tokenizer, "system", system)  # ids that the model has not read yet

    def reply(self, text: str) -> Iterator[str]:
        """The model's answer to a user's turn, piece by piece as it is written.

        Raises:
            UserError: no text, or no room for it and an answer in the context; the conversation stays as it was.
        """
        if not text.strip():
            raise UserError("the prompt is empty; write something")
        unread = [*self.unread, *turn_ids(self.tokenizer, "user", text), *opening_ids(self.tokenizer, "assistant")]
        room = self.model.config.context - self.cache.length - len(unread) - 2  # two for the end of the turn
        if room < 1:
            raise UserError(f"the conversation of {self.cache.length} tokens and this turn of {len(unread)} do not fit "
                            f"the model's context of {self.model.config.context}; shorten the turn, or start a new "
                            f"conversation")
        return self._write(unread, min(room, self.sampling.new_tokens))

    def _write(self, unread: list[int], most: int) -> Iterator[str]:
        """Read what is unread, then write at most so many tokens. However it ends, the turn is closed."""
        end, waiting, last = self.tokenizer.end, [], None
        try:
            self.unread = unread
            for _ in range(most):
                last = self._next()
                self.unread = [last]
                if last == end:
                    break
                waiting.append(last)
                text = self.tokenizer.decode(waiting)
                if not text.endswith(HALF):
                    waiting = []
                    yield text
            if waiting:
                yield self.tokenizer.decode(waiting)
        finally:
            self.unread += [*([] if last == end else [end]), *self.tokenizer.encode("\n")]

    @torch.no_grad()
    def _next(self) -> int:
        """Read what is unread into the cache and choose the next token."""
        with evaluating(self.model):
            hidden = self.model.body(torch.tensor([self.unread], device=self.device), None, self.cache)[:, -1]  # (1, D)
            logits = shape_logits(self.model.logits(hidden).float(), self.sampling)  # (1, V)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        return int(sample_token(logits.softmax(dim=-1), torch.rand(1, generator=self.generator).to(self.device)))
