r"""Fewer bits a number: how reals become a few integers, and how a model is brought there. In reading order:

    mappings.py      absmax and zero-point
    int8_matmul.py   products of integers
    linear.py        layers that hold integers: weights only, static, dynamic
    scheme.py        what is done to a model, by name; selection.py to which of its layers
    ptq.py           rounding a trained model; calibration.py finds the ranges beforehand
    qat.py           training with the rounding in the loop
    outliers.py      features that are far too large
    llm_int8.py      integers for almost everything, 16 bits for those
    half.py          16 bits for everything
    tables.py        the vectors of the vocabulary in eight bits
    saving.py        quantized models as files
"""
