r"""A base grows out of another: it begins with what that one can do, and reads on.

    an encoder            takes a decoder's weights as they are, and from then on looks to both sides
    an encoder-decoder    takes them for both parts; what looks at the encoder is new          Rothe et al. 2020, §2
    twice the width       is the same function at first             Chen, Goodfellow & Shlens 2016, "Net2Net", §2
    more blocks           the same: those on top add nothing to the stream until they have learned to

Of twice the width, every channel stands twice: a matrix that read x reads half of it from each, and writes what it
wrote twice.

    [[W/2 + M, W/2 − M], [W/2 + N, W/2 − N]] [x; x] = [W x; W x]        M, N small and random

Whatever M and N are, the result is the same; without them both halves would have the same gradients for ever.

Read next: make.py.
"""

import re

import torch
from torch import Tensor

from minialign.heads import LanguageModel
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError

NOISE = 0.25  # M and N in units of the new model's initial weights


@torch.no_grad()
def grow(model: LanguageModel, out_of: LanguageModel) -> None:
    """Set an untrained model's weights, in place, to those of `out_of`, of its width or of half of it and of no more
    blocks. A decoder is the same function then, an encoder-decoder up to what its decoder hears of its encoder.

    Raises:
        UserError: other shapes than these, or an encoder-decoder of another width or depth.
    """
    ours, theirs = model.config, out_of.config
    times = 2 if ours.width == 2 * theirs.width else 1
    for name, needed in (("width", times * theirs.width), ("heads", times * theirs.heads),
                         ("layers", max(ours.layers, theirs.layers))):
        if getattr(ours, name) != needed:
            raise UserError(f"the new model's {name} is {getattr(ours, name)}; to grow out of the other it must be "
                            f"{needed}")
    if (times == 2 or ours.layers > theirs.layers) and ours.kind == "encoder-decoder":
        raise UserError("an encoder-decoder does not grow in width or depth; make a decoder or an encoder")
    old = {name: parameter.to(device_of(model)) for name, parameter in out_of.named_parameters()}
    for name, tensor in model.named_parameters():
        name = name if name in old else re.sub(r"^body\.(encoder|decoder)\.", "body.", name)
        if name in old:  # or it belongs to a cross-attention
            tensor.copy_(old[name] if times == 1 else doubled(name, old[name], tensor))
        elif "output" in name and "cross" not in name:  # a block on top
            tensor.zero_()


def doubled(name: str, old: Tensor, fresh: Tensor) -> Tensor:
    """A parameter of a model of twice the width: (2 out, 2 in) of a matrix (out, in), (2 D) of a vector, (…, 2 D) of
    the table and of convolutions. What there is no old one for, in the feed-forward layer, is fresh and unheard as yet.

    Args:
        name: of the parameter; old: the narrow model's; fresh: the wide model's before, of the shape that is made.
    """
    if name.startswith("body.norm"):
        return torch.cat([old, old]) / 2  # the table of token vectors, which is the head as well, stands twice
    if "feed_forward.inner" in name:
        made = fresh.clone()
        made[: len(old)] = halves(old, fresh[: len(old)]) if old.dim() == 2 else old
        return made
    if "feed_forward.output.weight" in name:
        return torch.cat([torch.cat([old, old]), fresh.new_zeros(len(fresh), fresh.shape[1] - old.shape[1])], dim=1)
    if name.endswith("weight") and old.dim() == 2 and "embedding" not in name and "convolutions" not in name:
        return torch.cat([halves(old, part) for part in fresh.chunk(2)])
    return torch.cat([old, old], dim=-1)


def halves(old: Tensor, fresh: Tensor) -> Tensor:
    """[W/2 + M, W/2 − M] of W (out, in), with M from the left half of `fresh` (out, 2 in)."""
    noise = NOISE * fresh[:, : old.shape[1]]
    return torch.cat([old / 2 + noise, old / 2 - noise], dim=1)
