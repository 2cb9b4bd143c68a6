r"""Pretraining: what a model learns from raw text alone, before anybody tells it what is wanted. In reading order:

    causal_lm.py         a decoder says which token comes next (GPT); also where every loss on tokens lives
    masked_lm.py         an encoder says what stood under some hidden tokens (BERT)
    span_corruption.py   an encoder-decoder writes the stretches that were cut out (T5)
    lm_adaptation.py     that encoder-decoder learns to go on where a text stops, as T0 needs it
    gap_filling.py       asking any of the last three what stands in a gap
"""
