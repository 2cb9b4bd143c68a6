r"""What a wording is worth: a model is taught from nothing, in the words of one template, and examined in the same
words.

    Rosa gave the kite to Ben.      Who gave it? -> Rosa      Who has it now? -> Ben

Two questions about one sentence, so a prompt that leaves the question out cannot do better than one half. The model is
small enough to learn this in a second: one layer, a width of 32, 80 steps. Same template, same accuracy. It computes
with one thread: with so little to do, two wait for each other.

Read next: instruct/zero_shot.py, which examines larger models in many wordings.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from minialign.heads import LanguageModel
from minialign.instruct.sft import demonstration_rows
from minialign.instruct.zero_shot import ask
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig, adamw, gradient_step, learning_rate_at
from minialign.transformer import TransformerConfig
from minialign.world.templates import Template
from minialign.world.wordings import WORDS

ASKED = {"Who gave it?": 0, "Who has it now?": 1}  # question -> which of the two people is the answer
TRAINING = TrainingConfig(steps=80, batch=32, learning_rate=1e-2, weight_decay=0.05)
LONGEST = 40  # words of a prompt


def gifts(count: int, seed: int) -> list[dict]:
    """Examples {"text", "question", "options", "answer"} of the two questions."""
    rng, made = random.Random(f"gifts {seed}"), []
    for _ in range(count):
        people = rng.sample(WORDS["girls"] + WORDS["boys"], 2)
        question, place = rng.choice(list(ASKED.items()))
        text = f"{people[0]} gave the {rng.choice(WORDS['handmade'])} to {people[1]}."
        made.append({"text": text, "question": question, "options": sorted(people), "answer": people[place]})
    return made


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=32)
@one_thread()
def accuracy(wording: str) -> float:
    """Share of 200 new questions that a model answers which was taught 600 in this wording.

    Args:
        wording: the input of a template, with the fields of `gifts`.
    Raises:
        UserError: a field that the examples do not have.
    """
    template = Template("gifts", "yours", wording, answer_in_input=True)
    learn, test = ([template.pose(example) for example in gifts(count, seed)] for seed, count in enumerate((600, 200)))
    tokenizer = train_tokenizer([f"{question.prompt} {question.target}" for question in learn], 400)
    taught = [{"prompt": question.prompt, "completion": f" {question.target}"} for question in learn]
    shape = TransformerConfig(tokenizer.size, 8 * LONGEST, 32, 1, 4, activation="relu", initial_std=0.1,
                              short_convolution=4)
    rows, _ = demonstration_rows(tokenizer, taught, shape.context)
    data, model = LabelledRows(rows, TRAINING.batch, 0), LanguageModel(shape, 0)
    optimizer = adamw(model.train(), TRAINING.learning_rate, TRAINING.weight_decay)
    for step in range(TRAINING.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, TRAINING)
        batches = data.microbatches(step, 1)
        gradient_step(model, optimizer, batches, next_token_loss, TRAINING, sum(batch.count for batch in batches))
    return sum(ask(model.eval(), tokenizer, test)) / len(test)
