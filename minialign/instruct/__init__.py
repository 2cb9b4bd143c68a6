r"""Instruction tuning: from a model that continues texts to one that does what it is asked. In reading order:

    sft.py            demonstrations: the prompt is read, the completion is learned
    mixture.py        which example comes in which words, how often, and what is held out
    fresh.py          questions that the simulator writes as they are learned, none twice
    t5.py             every task is text in, text out, with one fixed prefix a task
    t0.py             many tasks in many wordings, and tasks that it never saw
    flan.py           the same for a decoder
    zero_shot.py      examining a model on tasks that it was never taught
"""
