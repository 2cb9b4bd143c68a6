r"""Pretraining: what a model learns from raw text alone, before anybody tells it what is wanted. In reading order:

    causal_lm.py         a decoder says which token comes next (GPT)
    pretrain.py          documents become batches, a model learns: the same for every objective
    masked_lm.py         an encoder says what stood under some hidden tokens (BERT)
    span_corruption.py   an encoder-decoder writes the stretches that were cut out (T5), then learns to go on where
                         a text stops, as T0 needs it
    gap_filling.py       asking either of the last two what stands in a gap
"""
