"""ROUGE is that of the `rouge-score` package, on the world's texts and on noise."""

import random

import pytest

from minialign.rlhf.rouge import rouge
from minialign.world.annotators import corrupted_summary, reference_summary, write_story

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
pytestmark = pytest.mark.filterwarnings("ignore")


def texts():
    rng = random.Random(0)
    for _ in range(150):
        story = write_story(rng)
        yield corrupted_summary(story, rng), reference_summary(story, rng)
    letters = "aAbB1 .,-_\n'é日\u0130"
    for _ in range(300):
        yield tuple("".join(rng.choice(letters) for _ in range(rng.randrange(40))) for _ in range(2))


@pytest.mark.piece("ROUGE-1, ROUGE-2, ROUGE-L: precision, recall, F", "rouge-score")
def test_every_number_is_that_of_the_package(measured):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for answer, reference in texts():
        theirs, ours = scorer.score(reference, answer), rouge(answer, reference)
        for name, found in theirs.items():
            own = (ours[name].precision, ours[name].recall, ours[name].f)
            measured.see(own, (found.precision, found.recall, found.fmeasure))
            assert own == pytest.approx((found.precision, found.recall, found.fmeasure), abs=1e-12), (name, answer,
                reference)
