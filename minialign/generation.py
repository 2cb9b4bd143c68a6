r"""Writing text: batched, with the key-value cache, from an explicit generator.

    π_T(y) = softmax(logits / T)                 temperature; T → 0 is greedy
    top-k                                        the k likeliest tokens
    top-p                                        the fewest that hold a share p           Holtzman et al. 2020, §3.1

Details that matter:
    1. Prompts are padded on the left, so that every row's last token is real (test_left_padding_changes_no_logit).
    2. A token is drawn by inverting the cumulative distribution with one uniform number a row: on a CPU about fifteen
       times faster than torch.multinomial. All are drawn at once, on the CPU: no row depends on when others stop.
    3. A row goes on until all rows have ended; what follows its end token, which belongs to the completion, is cut off
       afterwards (test_what_stands_after_the_end_token_has_no_influence).
    4. Log-probabilities are those of the distribution that was sampled from, temperature, top-k and top-p included; at
       temperature 0, which is no distribution to learn from, those of temperature 1.
    5. An encoder-decoder's encoder reads each prompt once, padded on the right; its decoder begins with the begin token
       (test_an_encoder_decoder_reads_each_prompt_once).

Read next: training.py.
Try it:  python -m minialign sample RUN --prompt "Once"
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.batching import pad
from minialign.cache import Cache
from minialign.heads import LanguageModel, evaluating
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.tokenizer import END, Tokenizer
from minialign.transformer import TransformerConfig

ENDED_AT_ONCE, NO_WORDS = " (nothing: the model ended at once)", " (nothing but blanks or special tokens)"


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    new_tokens: int = 48  # most tokens to write, the end token included
    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the fewest tokens that hold this share of the probability; 1 keeps all

    def __post_init__(self):
        if self.new_tokens < 1:
            raise UserError(f"new tokens is {self.new_tokens}; it must be at least 1")
        if not self.temperature >= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"temperature {self.temperature} (at least 0), top-k {self.top_k} (at least 0) or top-p "
                            f"{self.top_p} (above 0, at most 1) is out of range")


@dataclass
class Generated:
    """What a model wrote after B prompts, N = B K completions."""

    prompt: Tensor  # (B, P) ids, padded on the left; an encoder-decoder's on the right
    prompt_mask: Tensor  # (B, P) true at real tokens
    completion: Tensor  # (N, R) ids; PAD after the end token
    mask: Tensor  # (N, R) true up to and with the end token
    logprobs: Tensor  # (N, R) log-probability of each sampled token, 0 outside the mask
    end: int = END  # id of the end token

    def ids(self) -> list[list[int]]:
        """N completions as lists of ids, the end token included."""
        return [row[keep].tolist() for row, keep in zip(self.completion, self.mask)]

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """N completions as text."""
        return [tokenizer.decode(row) for row in self.ids()]

    def shown(self, tokenizer: Tokenizer) -> list[str]:
        """The same for people: what has no words says so."""
        return [text if text.strip() else ENDED_AT_ONCE if row[0] == self.end else NO_WORDS
                for text, row in zip(self.texts(tokenizer), self.ids())]

    def ended(self) -> Tensor:
        """(N,) whether the model ended its completion itself, within the length."""
        return ((self.completion == self.end) & self.mask).any(dim=1)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """(B, V) logits with −∞ at what top-k and top-p leave out; the likeliest token always stays."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # probability of all likelier tokens
        logits = logits.scatter(-1, order, ordered.masked_fill(before >= top_p, -torch.inf))
    return logits


def sample_token(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B,) ids: the first whose cumulative probability exceeds the uniform number.

    Args:
        probabilities: (B, V), temperature and filters applied; uniform: (B,) in [0, 1).
    """
    cumulative = probabilities.cumsum(dim=-1)  # (B, V)
    threshold = uniform[:, None] * cumulative[:, -1:]  # rounding may leave the last entry below 1
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=probabilities.shape[-1] - 1)


def end_mask(tokens: Tensor, end: int = END) -> Tensor:
    """(B, R) true up to and with the first end token of each row; all true in a row that has none."""
    ends = (tokens == end).long()
    return ends.cumsum(dim=1) - ends == 0


@torch.no_grad()
def generate(model: LanguageModel, prompts: Sequence[Sequence[int]], config: SamplingConfig, generator: torch.Generator,
             stop_early: bool = True, completions: int = 1, part: tuple[int, int] = (0, 1)) -> Generated:
    """Continue prompts, all in one batch.

    Args:
        model: a decoder or an encoder-decoder.
        prompts: B lists of ids, one each at least: what the decoder goes on from, or the encoder reads.
        config: how tokens are chosen.
        generator: where chance comes from; same state, same text.
        stop_early: stop when every row has ended (False: always compute all tokens, for timings).
        completions: K to each prompt, which is read once for all of them; the N = B K rows of one prompt stand
            together.
        part: (i, n) where these are the i-th of n equal parts of the prompts: each row has the lots that it has in all.
    Raises:
        UserError: no prompts, a model that does not write, or prompt and completion that do not fit the context.
    """
    if not prompts:
        raise UserError("there are no prompts to continue")
    check_room(model.config, max(map(len, prompts)), config.new_tokens)
    begin, end, filler = model.special
    N, device, (i, n) = len(prompts) * completions, device_of(model), part
    uniforms = torch.rand(config.new_tokens, n * N, generator=generator)[:, i * N : (i + 1) * N].to(device)  # (R, N)
    completion = torch.full((N, config.new_tokens), filler, device=device)
    logprobs, finished = torch.zeros(completion.shape, device=device), completion.new_zeros(N, dtype=torch.bool)
    with evaluating(model):
        if model.config.kind == "encoder-decoder":
            prompt, prompt_mask = pad(prompts, value=filler, device=device)  # (B, P)
            start, start_mask = prompt.new_full((len(prompts), 1), begin), None  # what the decoder reads first
            decoder, memory = model.body.decoder, (model.body.encoder(prompt, prompt_mask), prompt_mask)
        else:
            prompt, prompt_mask = start, start_mask = pad(prompts, "left", value=filler, device=device)  # (B, P)
            decoder, memory = model.body, ()
        cache = Cache(model.config, len(prompts), start.shape[1] + config.new_tokens, device=device)
        hidden = decoder(start, start_mask, cache, *memory)[:, -1]  # (B, D)
        if completions > 1:
            cache.repeat(torch.arange(len(prompts), device=device).repeat_interleave(completions))
            hidden, *memory = (x.repeat_interleave(completions, dim=0) for x in (hidden, *memory))  # (N, D), …
        for t in range(config.new_tokens):
            logits = shape_logits(model.logits(hidden).float(), config)  # (N, V)   16 bits would merge neighbours
            probabilities = logits.softmax(dim=-1)
            token = logits.argmax(dim=-1) if config.temperature == 0 else sample_token(probabilities, uniforms[t])
            completion[:, t], logprobs[:, t] = token, probabilities.gather(1, token[:, None]).squeeze(1).log()
            finished |= token == end
            if t + 1 == config.new_tokens or (stop_early and bool(finished.all())):
                break
            hidden = decoder(token[:, None], None, cache, *memory)[:, -1]
    completion, logprobs = completion[:, : t + 1], logprobs[:, : t + 1]
    mask = end_mask(completion, end)
    return Generated(prompt, prompt_mask, completion.masked_fill(~mask, filler), mask, logprobs * mask, end)


def check_room(shape: TransformerConfig, prompt: int, new_tokens: int) -> None:
    """Raise UserError unless a model of this shape can read a prompt and write so many new tokens."""
    if shape.kind == "encoder":
        raise UserError("an encoder reads and does not write; use a decoder or an encoder-decoder")
    needed, each = (max(prompt, new_tokens), " each") if shape.kind == "encoder-decoder" else (prompt + new_tokens, "")
    if needed > shape.context:
        raise UserError(f"a prompt of {prompt} tokens and {new_tokens} new ones do not{each} fit the model's context "
                        f"of {shape.context}; shorten the prompt or ask for fewer new tokens")


def shape_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, then top-k, then top-p: the order in which the common libraries apply them."""
    if config.temperature not in (0, 1.0):  # what is divided is at most 0, so a tiny temperature cannot overflow
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(config.temperature, 1e-30)
    return filter_logits(logits, config.top_k, config.top_p)


def as_prompt(tokenizer: Tokenizer, ids: list[int], kind: str = "decoder") -> list[int]:
    """A text's ids as a model of a kind reads a prompt: after the begin token, which a published T5 does not have. What
    an encoder-decoder reads ends with the end token: nothing else tells its decoder where the text stops."""
    begin = [] if tokenizer.ends_prompts else [tokenizer.begin]
    return [*begin, *ids, *([tokenizer.end] if kind == "encoder-decoder" else [])]


def prompt_ids(tokenizer: Tokenizer, texts: Sequence[str], kind: str = "decoder") -> list[list[int]]:
    """Texts as the ids of prompts, see `as_prompt`."""
    return [as_prompt(tokenizer, ids, kind) for ids in tokenizer.encode_many(list(texts))]


def continue_texts(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], config: SamplingConfig,
                   generator: torch.Generator, batch: int = 64,
                   read: Callable[[Generated, Tokenizer], list[str]] = Generated.texts) -> list[str]:
    """The model's continuation of each prompt, in their order; rows of similar length are computed together. To print
    them, `read` them with Generated.shown."""
    ids = prompt_ids(tokenizer, prompts, model.config.kind)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(ids)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        written = read(generate(model, [ids[i] for i in rows], config, generator), tokenizer)
        for i, text in zip(rows, written):
            texts[i] = text
    return texts
