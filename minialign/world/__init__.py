r"""The toy world: stories in which every fact is known, so that whatever a model says about them can be judged exactly.

Everything is written from a seed, the same on every machine; nothing here needs more than Python. In reading order:

    wordings.py       what can happen, and the sentences that say so (words.json, events.json)
    stories.py        stories and short passages that are told and remembered (plots.json)
    parse.py          sentences read back as the events that they say
    gold.py           the gold score of a summary: helpful, honest, harmless
    templates.py      how an example becomes a prompt and its completion (templates.json, prompts.json)
    tasks.py          what is asked of a story, reference summaries, demonstrations to learn from
    corpus.py         the dirty corpus for pretraining
    annotators.py     people who compare two summaries, each in a way of their own
    reading.py        tasks that are answered by reading a passage
    judging.py        tasks that are answered by judging it
    writing.py        tasks that are answered by writing, and tasks about words
    editing.py        tasks about the text itself, and answers in forms that no other task wants
    reading_corpus.py a passage and six to ten questions in many forms: what the shipped bases have read
    manners.py        in which manner a task is to be answered: instructions as a product (manners.json)
    datasets.py       all tasks in clusters, as instruction tuning needs them
"""
