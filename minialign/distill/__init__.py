r"""Distillation: a small model learns from what a large one predicts and computes. In reading order:

    soft_targets.py       the teacher's probabilities for every word; fast_soft_targets.py the same by rows
    recipe.py             what the recipes share; student.py smaller models that may begin as layers of their teacher
    distilgpt2.py         soft targets, labels and hidden directions for a decoder; distilbert.py for an encoder
    recording.py          what a model computes on the way: hidden states and attention
    tinybert.py           layer by layer: embeddings, attention, hidden vectors, then predictions
    minilm.py             how the last layer looks around, and how its values relate
    sequence_level.py     what the teacher writes, its likeliest text found by beam search
    on_policy.py          the student writes, the teacher comments
    speculative.py        the student guesses ahead, the teacher writes
"""
