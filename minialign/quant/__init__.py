r"""Fewer bits a number: how reals become a few integers, and how a model is brought there. In reading order:

    mappings.py        absmax and zero-point
    linear.py          layers that hold integers: weights only, static, dynamic; fast_products.py the same in less time
    llm_int8.py        integers for almost everything, 16 bits for features that are far too large
    outliers.py        these features: found, counted, silenced
    nf4.py             sixteen levels where the weights are, for a base that a LoRA trains on
    gptq.py            rounding that knows what the layer reads
    smoothquant.py     outliers moved into the weights before anything is rounded
    cache.py           keys and values of what was read, in few bits
    calibration.py     the ranges of what layers read
    scheme.py          what is done to a layer, by name; selection.py to which layers of a model
    ptq.py             rounding a trained model
    qat.py             training with the rounding in the loop
    half.py            16 bits for everything
    tables.py          the vectors of the vocabulary in eight bits
    saving.py          quantized models as files
"""
