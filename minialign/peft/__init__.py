r"""Fine-tuning, from all weights to almost none: each method wraps or freezes a plain module and saves just what it
trained. In reading order:

    full.py               every weight may move: the measure of all the others
    feature_based.py      the body is frozen, a head learns from what it says
    bitfit.py             the biases alone
    adapters.py           small bottlenecks between the layers, which start as the identity
    lora.py               the update of a matrix is a product of two thin ones
    dora.py               a length for each row, and a direction by such an update
    many_tasks.py         several of them on one base
    prompt_tuning.py      a few vectors before the text
    trainable.py          what all of them share: what is frozen, what trains, how much that is
    methods.py            the methods by name
    saving.py             a small file with just what trains
    transfer.py           a pretrained model, a method, your data, and what came of it
"""
