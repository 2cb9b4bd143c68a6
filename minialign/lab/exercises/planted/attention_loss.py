r"""TinyBERT's loss on attention scores, with one bug."""

import torch.nn.functional as F


def attention_loss(student, teacher, allowed):
    """student, teacher: (T, T) scores before the softmax; allowed: (T, T) bool. Returns the mean squared difference
    where it is allowed to look."""
    return F.mse_loss(student, teacher)
