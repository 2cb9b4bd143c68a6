r"""Gap filling: ask a model that was pretrained on texts with something missing what stands at `___`.

    Rosa lost ___ in the barn.   ->   Rosa lost the red kite in the barn.

An encoder (masked_lm.py) puts exactly one token into each gap, each without knowing of the others; an encoder-decoder
(span_corruption.py) writes as many as it likes, one gap after the other.

Details that matter:
    1. A token of this project's tokenizers begins with its space, so the space before a gap belongs to what fills it
       (test_the_space_before_a_gap_belongs_to_what_fills_it).
    2. An encoder never puts a special token into a gap (test_an_encoder_fills_each_gap_with_one_ordinary_token).
    3. A published BERT or T5 has marks of its own, [MASK] and <extra_id_0> …
       (test_published_models_fill_gaps_by_marks_of_their_own).

Read next: instruct/sft.py.
Try it:  python -m minialign sample RUN --prompt "Rosa lost ___ in the barn."
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from minialign.generation import SamplingConfig, generate, sample_token, shape_logits
from minialign.heads import LanguageModel, evaluating
from minialign.pretrain.masked_lm import MASK
from minialign.pretrain.span_corruption import GAPS, rebuild
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.tokenizer import BEGIN, SENTINELS, SPECIAL, Tokenizer

GAP = "___"


class Marks(NamedTuple):
    """Ids that a model is given and gives beside the words."""

    before: list[int] = [BEGIN]  # what a text begins with
    after: list[int] = []  # what it ends with
    mask: int = MASK  # an encoder's gap
    gaps: Sequence[int] = GAPS  # an encoder-decoder's gaps, in order
    special: Sequence[int] = range(len(SPECIAL))  # what never comes into a gap


OURS = Marks()


def marks_of(model: LanguageModel, tokenizer: Tokenizer) -> Marks:
    """This project's marks, or those of a published BERT or T5. Raises UserError for one without marks for gaps."""
    library = tokenizer.library
    special = [i for i, token in library.get_added_tokens_decoder().items() if token.special]
    if hasattr(model, "hidden_word"):
        return Marks([tokenizer.begin], [tokenizer.end], model.hidden_word, (), special)
    if library.token_to_id("<extra_0>") is not None:
        return OURS
    gaps = [library.token_to_id(f"<extra_id_{i}>") for i in range(SENTINELS)]
    if None in gaps:
        raise UserError("the model's tokenizer has no marks for gaps; leave the gaps out")
    return Marks([], [tokenizer.end], gaps=gaps, special=special)


def fill_gaps(model: LanguageModel, tokenizer: Tokenizer, text: str, count: int, sampling: SamplingConfig,
              generator: torch.Generator) -> list[str]:
    """A text with its gaps filled, in `count` ways.

    Args:
        model: an encoder or an encoder-decoder.
        text: with at least one `___`.
        sampling: how tokens are chosen; at temperature 0 all ways are the same.
    Raises:
        UserError: no gap, more gaps than sentinels, a text that does not fit the context, or a decoder.
    """
    if model.config.kind == "decoder":
        raise UserError(f"a decoder goes on from a text and cannot fill gaps; leave {GAP} out, or use an encoder or an "
                        f"encoder-decoder")
    *before, last = re.split(f"{GAP}_*", text)  # a longer line is one gap, too
    parts = tokenizer.encode_many([*(part.rstrip(" ") for part in before), last])
    gaps = len(parts) - 1
    if not 1 <= gaps <= SENTINELS:
        raise UserError(f"the text has {gaps} gaps; mark 1 to {SENTINELS} of them with {GAP}")
    fill = fill_with_tokens if model.config.kind == "encoder" else fill_with_spans
    filled = fill(model, parts, count, sampling, generator, marks_of(model, tokenizer))
    return [tokenizer.decode(ids) for ids in filled]


def fill_with_spans(model: LanguageModel, parts: list[list[int]], count: int, sampling: SamplingConfig,
                    generator: torch.Generator, marks: Marks = OURS) -> list[list[int]]:
    """Ids of texts whose parts an encoder-decoder has joined with spans of its own."""
    ids = [token for gap, part in zip(marks.gaps, parts[1:]) for token in (gap, *part)]
    inputs = [*marks.before, *parts[0], *ids, *marks.after]
    written = generate(model, [inputs], sampling, generator, completions=count)
    return [rebuild(inputs, row[keep].tolist(), marks.gaps) for row, keep in zip(written.completion, written.mask)]


@torch.no_grad()
def fill_with_tokens(model: LanguageModel, parts: list[list[int]], count: int, sampling: SamplingConfig,
                     generator: torch.Generator, marks: Marks = OURS) -> list[list[int]]:
    """Ids of texts whose parts an encoder has joined with one token each."""
    ids = [token for part in parts[1:] for token in (marks.mask, *part)]
    tokens = torch.tensor([*marks.before, *parts[0], *ids, *marks.after], device=device_of(model))  # (T,)
    places = (tokens == marks.mask).nonzero().flatten()
    with evaluating(model):
        logits = model.logits(model.body(tokens[None])[0, places]).float()  # (gaps, V)   16 bits would merge neighbours
    logits[:, list(marks.special)] = -torch.inf
    probabilities = shape_logits(logits, sampling).softmax(dim=-1)
    uniforms = torch.rand(count, len(places), generator=generator).to(tokens.device)
    drawn = [logits.argmax(dim=-1) if sampling.temperature == 0 else sample_token(probabilities, uniform)
             for uniform in uniforms]
    return [tokens.index_copy(0, places, chosen).tolist() for chosen in drawn]
