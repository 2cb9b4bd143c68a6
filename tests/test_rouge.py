"""ROUGE against counts made by hand, a slow definition of the longest common subsequence, and the sentences that fool
it."""

import random
from itertools import combinations

import pytest

from minialign.rlhf.rouge import longest_common_subsequence, rouge, rouge_l, rouge_n, words


def test_counts_made_by_hand():
    answer, reference = "the cat sat on the mat", "the cat lay on a mat today"
    found = rouge(answer, reference)
    assert (found["rouge1"].precision, found["rouge1"].recall) == (4 / 6, 4
        / 7) and found["rouge1"].f == pytest.approx(2 * 4 / 13)
    assert (found["rouge2"].precision, found["rouge2"].recall) == (1 / 5, 1 / 6)
    assert (found["rougeL"].precision, found["rougeL"].recall) == (4 / 6, 4 / 7)


def test_the_longest_common_subsequence_is_that_of_all_subsequences():
    rng = random.Random(0)
    for _ in range(60):
        a, b = ([rng.choice("abc") for _ in range(rng.randrange(7))] for _ in range(2))
        every = [{tuple(text[i] for i in kept) for size in range(len(text) + 1)
                  for kept in combinations(range(len(text)), size)} for text in (a, b)]
        assert longest_common_subsequence(a, b) == max(map(len, every[0] & every[1]))


def test_repeating_a_word_wins_nothing():
    assert rouge_n("the the the the", "the kite", 1).precision == 0.25


def test_order_counts_in_pairs_and_subsequences_only():
    assert rouge_n("kite red the", "the red kite", 1).f == 1.0 and rouge_n("kite red the", "the red kite", 2).f == 0.0
    assert rouge_l("kite red the", "the red kite").f == pytest.approx(1 / 3)


def test_a_lie_scores_higher_than_an_honest_paraphrase():
    reference = "Mira lost the red kite at the pond."
    assert rouge("Mira found the red kite at the pond.",
                 reference)["rougeL"].f > 0.8 > 0.2 > rouge("A girl's toy was gone.", reference)["rougeL"].f


@pytest.mark.parametrize("answer, reference", [("", ""), ("", "a"), ("a", ""), ("…!", "a"), ("а", "a")])
def test_empty_texts_score_0(answer, reference):
    assert {score for found in rouge(answer, reference).values() for score in (found.precision, found.recall,
        found.f)} == {0.0}


def test_words_are_lower_case_letters_and_digits():
    assert words("Don't fly 2 KITES_today, café!") == ["don", "t", "fly", "2", "kites", "today", "caf"]
