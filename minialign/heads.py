r"""What a transformer's vectors are turned into: words, classes, one number.

    next word    logits = x Eᵀ, with the table E that turned tokens into vectors              Press & Wolf 2017
    class        logits = W x_first + b for an encoder, W x_last + b for a decoder            Devlin et al. 2019, §4.1
    score        r = w·x + b, a scalar for every token; the caller says whose token counts    Stiennon et al. 2020, §3.4

Read next: tokenizer.py.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.batching import pad
from minialign.cache import Cache
from minialign.runs.devices import default_device, device_of
from minialign.runs.errors import UserError
from minialign.runs.files import read_json
from minialign.runs.processes import SHARDED
from minialign.runs.run_folder import CONFIG, MODEL, TOKENIZER, RunFolder
from minialign.runs.settings import from_dict, to_dict
from minialign.runs.tensors import load_into, read_tensors
from minialign.tokenizer import SpecialIds, Tokenizer, check_rows, load_tokenizer
from minialign.transformer import EncoderDecoder, Transformer, TransformerConfig


def build_body(config: TransformerConfig) -> nn.Module:
    """An untrained stack of the kind that the configuration names."""
    if config.kind == "encoder-decoder":
        return EncoderDecoder(config)
    return Transformer(config, causal=config.kind == "decoder")


def initialise(module: nn.Module, config: TransformerConfig, generator: torch.Generator) -> None:
    """GPT-2's start (Radford et al. 2019, §2.3): N(0, std²), zero biases; `.output` matrices smaller by √(2 layers);
    short convolutions that change nothing yet."""
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or "convolutions" in name:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            shrink = math.sqrt(2 * config.layers) if name.endswith("output.weight") else 1.0
            parameter.data.normal_(0.0, config.initial_std / shrink, generator=generator)


class LanguageModel(nn.Module):
    """A body and, as its head, its own table of token vectors; `config` is the body's shape, `seed` of its start."""

    special = SpecialIds()  # real weights come with a tokenizer of their own, and set theirs

    def __init__(self, config: TransformerConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.body = build_body(config)
        initialise(self, config, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor, *arguments, **keywords) -> Tensor:
        """(B, T, V) logits; the arguments are the body's."""
        return self.logits(self.body(tokens, *arguments, **keywords))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V). Call it where a prediction is needed only: it is a third of a small model's work."""
        body = self.body.decoder if self.config.kind == "encoder-decoder" else self.body
        return F.linear(hidden, body.token_embedding.weight)


class ScalarModel(nn.Module):
    """A body (taken over, not copied) with one number for each token: a reward model's or a value function's.

    `head_std` is the standard deviation of the head's start: 0 makes every score 0 (a value head), None means 1/√(D+1)
    (a reward head, Ziegler et al. 2019, released code); `seed` is that of the start; `read` says which of a
    completion's numbers are its score: the one at its "end", or their "mean".
    """

    def __init__(self, body: Transformer, head_std: float | None = None, seed: int = 0, read: str = "end"):
        super().__init__()
        self.config, self.body, self.read = body.config, body, read
        self.head = nn.Linear(body.config.width, 1)
        std = 1 / math.sqrt(body.config.width + 1) if head_std is None else head_std
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(seed)).mul_(std)
        self.head.to(device_of(body))

    def forward(self, tokens: Tensor, *arguments, **keywords) -> Tensor:
        """(B, T) one number for every token."""
        return self.head(self.body(tokens, *arguments, **keywords)).squeeze(-1)


class Classifier(nn.Module):
    """A body (taken over, not copied) and a linear map from the token that has seen the whole text to the classes."""

    def __init__(self, body: Transformer, classes: int, seed: int = 0):
        super().__init__()
        self.config, self.body = body.config, body
        self.head = nn.Linear(body.config.width, classes)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        self.head.to(device_of(body))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, classes) logits of (B, T) tokens; mask (B, T) is true at real tokens."""
        hidden = self.body(tokens, mask)  # (B, T, D)
        place = first_real(mask) if self.config.kind == "encoder" else last_real(mask)
        return self.head(hidden[torch.arange(len(tokens), device=tokens.device), place])


def read_completions(body: Transformer, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
                     of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A decoder's vectors of several completions to each prompt, the prompts read once
    (test_a_prompt_is_read_once_for_all_its_answers).

    Args:
        body: a decoder's stack.
        prompts: B lists of ids, which may be empty; completions: N lists of ids.
        of: (N,) which prompt each completion goes on from.
    Returns:
        (N, T, D) vectors of the completions' tokens, and mask (N, T), true at real ones.
    Raises:
        UserError: prompt and completion do not fit the context.
    """
    device = device_of(body)
    tokens, mask = pad(completions, device=device)  # (N, T)
    if SHARDED.get():  # the gradient of a cache goes past the hooks that put a shared block's weights together
        prompts, of = [prompts[p] for p in of], range(len(completions))
    if list(of) == list(range(len(prompts))):  # one each: one pass is faster
        whole, _ = pad([[*prompt, *completion] for prompt, completion in zip(prompts, completions)], device=device)
        start = torch.tensor([len(prompt) for prompt in prompts], device=device)
        place = start[:, None] + torch.arange(tokens.shape[1], device=device)  # (N, T) where in the row
        place = place.clamp(max=whole.shape[1] - 1)[..., None].expand(-1, -1, body.config.width)
        return body(whole).gather(1, place), mask
    read, real = pad(prompts, side="left", device=device)  # (B, P)
    cache = Cache(body.config, len(prompts), read.shape[1] + tokens.shape[1], device=device)
    if read.shape[1]:
        body(read, real, cache)
    cache.repeat(torch.as_tensor(of, device=device))
    return body(tokens, mask, cache), mask


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside; afterwards every part is in the mode that it was in, a frozen one too
    (test_generation_gives_every_part_its_mode_back)."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def first_real(mask: Tensor) -> Tensor:
    """(B,) index of the first true entry of each row of (B, T)."""
    return mask.int().argmax(dim=1)


def last_real(mask: Tensor) -> Tensor:
    """(B,) index of the last true entry of each row of (B, T), wherever the padding is."""
    T = mask.shape[1]
    return (torch.arange(T, device=mask.device) * mask).argmax(dim=1)


def load_model(folder: Path, what: str | None = None,
               device: torch.device | None = None) -> tuple[nn.Module, Tokenizer]:
    """A finished run's model, in evaluation mode, and its tokenizer.

    `what` is "language-model", "scalar-model" or "decoder" (a language model of that kind) when only that will do;
    `device` where the model shall be, without it the command's.
    Raises UserError for a folder that is missing, unfinished, of another kind, or whose files do not belong together.
    """
    run = RunFolder(folder)
    check_no_other(run.path)
    config = read_json(run.path / CONFIG)
    known = isinstance(config, dict) and config.get("what")
    if known not in ("language-model", "scalar-model") or not isinstance(config.get("model"), dict):
        raise UserError("does not describe a model that this project knows; restore it from a copy", run.path / CONFIG)
    if not run.finished:
        raise UserError("this run has not finished; run its command again to go on, then come back", folder)
    found = str(config["model"].get("kind", "decoder")) if what == "decoder" and known == "language-model" else known
    if what is not None and found != what:
        raise UserError(f"holds {'an' if found[0] == 'e' else 'a'} {found}, and a {what} is needed here", folder)
    tokenizer = load_tokenizer(run.path / TOKENIZER)
    if tokenizer.fingerprint() != config.get("tokenizer"):
        raise UserError("tokenizer.json is not the one that this model was trained with; restore it from a copy",
                        folder)
    shape, tensors = from_dict(TransformerConfig, config["model"], run.path / CONFIG), read_tensors(run.path / MODEL)[0]
    check_rows(tokenizer, shape.vocabulary, folder)
    check_size(shape, tensors, run.path / CONFIG)
    model = (LanguageModel(shape) if known == "language-model"
             else ScalarModel(build_body(shape), read=config.get("read", "end")))
    load_into(model, tensors, run.path / MODEL)
    return model.to(device or default_device()).eval(), tokenizer


def check_size(shape: TransformerConfig, tensors: dict[str, Tensor], file: Path) -> None:
    """Raise UserError for a shape of a much larger model than the weights beside it, before it is built and fills the
    memory; quantized weights hold up to eight numbers in one."""
    numbers = 8 * sum(tensor.numel() for tensor in tensors.values())
    tables = shape.vocabulary, shape.feed_forward * shape.width, shape.context * (shape.positions == "learned")
    if shape.layers > len(tensors) or shape.width * max(tables) > numbers:
        raise UserError(f"describes a model of {shape.layers} layers of width {shape.width}, and the weights beside it "
                        f"are of a smaller one; use the config.json that belongs to them", file)


def check_no_other(path: Path) -> None:
    """Raise UserError for a path that holds something else than a run with a whole model, and say what that is and
    which command or option takes it."""
    if path.is_file():
        takes = "is a GGUF file; `chat` takes one" if path.suffix == ".gguf" else "is a file"
        raise UserError(f"{takes}, and the folder of a run is needed here", path)
    if not path.is_dir():
        raise UserError("there is no such run folder; make one with `minialign pretrain`", path)
    if not (path / CONFIG).exists():
        if (path / "adapter_config.json").exists():
            raise UserError("holds an adapter of the PEFT library, and a whole model is needed here; put it on its "
                            "base with `load_from_library` of minialign.lab.interchange.peft_library", path)
        if inside := sorted(part.parent.name for part in path.glob(f"*/{CONFIG}")):
            raise UserError(f"is no run itself; give one of those in it: {', '.join(inside)}", path)
    config = read_json(path / CONFIG)
    config = config if isinstance(config, dict) else {}
    others = {
        "quantized-model": f"holds a quantized model, which can be sampled and asked, and not changed; give the run "
                           f"that it was made from ({config.get('base')})",
        "tuned-model": f"holds what `finetune` trained by {config.get('method')}, and not the model below it; give it "
                       f"to `sample`, `ask`, `evaluate` or `chat` as --tuned, behind the model that it was made from",
        "sentence-encoder": "holds an encoder of sentences, which writes nothing; `distill` takes it as --teacher, and "
                            "`finetune` the folder `bert` in it",
    }
    if (what := str(config.get("what"))) in others:
        raise UserError(others[what], path)
    if "what" not in config and isinstance(config.get("model_type"), str):
        takes = "`distill` (--teacher), " * (config["model_type"] == "bert") + "`finetune`, `quantize`, `sample`"
        raise UserError(f"holds a model that others published ({config['model_type']}), and a run of this project is "
                        f"needed here; {takes}, `ask` and `evaluate` take it", path)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The part of config.json that says how to build the model again."""
    what = "language-model" if isinstance(model, LanguageModel) else "scalar-model"
    shape = to_dict(model.config)
    for late in ("short_convolution", "shared"):  # run folders from before there was one go on
        if not shape[late]:
            del shape[late]
    read = {} if getattr(model, "read", "end") == "end" else {"read": model.read}
    return {"what": what, "model": shape} | read


def same_tokenizer(first: tuple[Path, Tokenizer], second: tuple[Path, Tokenizer]) -> None:
    """Raise UserError unless two models mean the same by the same ids."""
    if first[1].fingerprint() != second[1].fingerprint():
        raise UserError(f"its tokenizer is not that of {second[0]}; both models must come from the same "
                        "`minialign pretrain` run", first[0])
