"""Small random checkpoints of the `transformers` library, saved in the layout in which real ones are published."""

import json

import torch


def save(peer, folder, seed=0, loud=0.1, **settings):
    """Give a library's model weights whose opinions differ, norms and biases too, and save it; `settings` replace those
    of its config.json."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * loud)
    peer.save_pretrained(folder)
    if settings:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return peer.eval()


def padded(rows, side, value=0):
    """Ragged rows as (tokens, mask) with a library's idea of a mask: integers."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    tokens = [row + f if side == "right" else f + row for row, f in zip(rows, fill)]
    mask = [[1] * len(row) + [0] * len(f) if side == "right" else [0] * len(f) + [1] * len(row) for row,
            f in zip(rows, fill)]
    return torch.tensor(tokens), torch.tensor(mask)
