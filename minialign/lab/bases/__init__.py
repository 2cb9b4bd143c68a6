"""The bases of data/bases: models that have read enough to be asked something, made once and shipped.

    recipes.py     which there are: kind, shape, how long they read
    texts.py       what they read: the reading corpus and the dirty one, on disk, every answer marked
    gaps.py        the same for an encoder-decoder and for an encoder
    optimizer.py   Muon and AdamW as one
    controls.py    whether they can read: questions about passages of a new seed
    make.py        training, 16-bit weights, card; and how a base is loaded again
"""
