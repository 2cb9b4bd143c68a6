r"""Distillation: a small model learns from what a large one says and thinks. In reading order:

    soft_targets.py       the teacher's probabilities for every word: where it began
    losses.py             all that can be copied, each a pure function
    recipe.py             what the recipes share; recipes.py their names and defaults
    student.py            smaller models that may begin as layers of their teacher
    distilbert.py         probabilities, hidden directions, and the masked words themselves
    tinybert.py           layer by layer: embeddings, attention, hidden vectors, then predictions
    minilm.py             how the last layer looks around, and how its values relate
    distilgpt2.py         DistilBERT's way for a decoder
    sequence_level.py     what the teacher writes; beam_search.py finds its likeliest text
    on_policy.py          the student writes, the teacher comments
    teacher_cache.py      what the teacher thought, kept on disk
"""
