"""Annotators: they disagree as people do, and their slips are the ones stated."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from minialign.world.annotators import (
    HELD_OUT_PANEL,
    STRANGERS,
    TRAINING_PANEL,
    Agreement,
    Annotator,
    agreement_table,
    annotators,
    information,
    logistic,
    show_agreement,
    typical_pairs,
    utility,
)
from minialign.world.gold import Gold

STEADY = Annotator("Steady", 0.5, 0.3, 0.2, noise=0.5, lapse=0.0, tie_width=0.0)


def gold(helpful, honest=1.0, harmless=1.0):
    return Gold(helpful, honest, harmless, 0.0, (), ())


@pytest.fixture(scope="module")
def pairs():
    return typical_pairs(700, seed=0)


def share_first(person, first, second, n=4000):
    rng = random.Random(0)
    return sum(person.choose(first, second, rng).winner == "first" for _ in range(n)) / n


def test_the_training_panel_and_the_held_out_panel_share_nobody():
    names = [person.name for person in TRAINING_PANEL + HELD_OUT_PANEL + STRANGERS]
    assert len(set(names)) == len(names) == 18


def test_strangers_want_what_nobody_in_the_training_panel_does():
    for aspect in ("helpful", "honest", "harmless"):
        known = [getattr(person, aspect) for person in TRAINING_PANEL]
        assert all(not min(known) <= getattr(person, aspect) <= max(known) for person in STRANGERS), aspect


def test_the_weights_of_every_annotator_sum_to_one():
    for person in (*TRAINING_PANEL, *HELD_OUT_PANEL, *STRANGERS, *annotators(40, seed=0)):
        assert person.helpful + person.honest + person.harmless == pytest.approx(1)


def test_the_chance_of_a_choice_is_the_logistic_of_the_difference_over_the_noise():
    first, second = (gold(0.7), 15), (gold(0.6), 15)
    assert share_first(STEADY, first, second) == pytest.approx(logistic(0.5 / 0.5), abs=0.03)
    assert share_first(STEADY, second, first) == pytest.approx(logistic(-0.5 / 0.5), abs=0.03)


def test_swapping_the_positions_swaps_the_answer_unless_the_position_is_favoured():
    first, second = (gold(0.7), 15), (gold(0.6), 15)
    assert share_first(STEADY, first, second) + share_first(STEADY, second, first) == pytest.approx(1, abs=0.04)
    hasty = replace(STEADY, position_bias=0.5)
    assert share_first(hasty, first, second) + share_first(hasty, second, first) > 1.15


def test_a_length_bias_is_paid_per_word():
    wordy = replace(STEADY, length_bias=0.1)
    assert utility(wordy, gold(0.5), 20) - utility(wordy, gold(0.5), 10) == pytest.approx(1.0)


def test_someone_who_always_lapses_is_a_coin():
    assert share_first(replace(STEADY, lapse=1.0), (gold(1.0), 15), (gold(0.0), 15)) == pytest.approx(0.5, abs=0.03)


def test_a_tie_is_said_only_when_the_difference_is_small():
    rng = random.Random(0)
    person = replace(STEADY, tie_width=0.3)
    close = [person.choose((gold(0.5), 9), (gold(0.51), 9), rng).winner for _ in range(1000)]
    far = [person.choose((gold(0.5), 9), (gold(0.9), 9), rng).winner for _ in range(1000)]
    assert 0.4 < close.count("tie") / 1000 < 0.6 and "tie" not in far


def test_confidence_lies_in_one_to_nine_and_grows_with_the_difference():
    rng = random.Random(0)
    means = []
    for helpful in (0.5, 0.7, 1.0):
        answers = [STEADY.choose((gold(helpful), 9), (gold(0.5), 9), rng).confidence for _ in range(300)]
        assert set(answers) <= set(range(1, 10))
        means.append(statistics.mean(answers))
    assert means == sorted(means) and means[2] > means[0] + 3


@pytest.mark.parametrize("panel", [TRAINING_PANEL, HELD_OUT_PANEL])
def test_people_agree_with_each_other_and_with_themselves_as_people_do(pairs, panel):
    row = agreement_table(pairs, panel, seed=1)[-1]
    assert 0.74 <= row.with_each_other <= 0.81, row
    assert 0.79 <= row.with_oneself <= 0.86, row
    assert row.with_majority > row.with_each_other


def test_neither_the_longer_nor_the_first_summary_is_the_better_one(pairs):
    longer = [(a[1] > b[1]) == (a[0].gold > b[0].gold) for a, b in pairs if a[1] != b[1] and a[0].gold != b[0].gold]
    first = [a[0].gold > b[0].gold for a, b in pairs if a[0].gold != b[0].gold]
    assert sum(longer) / len(longer) < 0.68 and 0.45 < sum(first) / len(first) < 0.55


def test_a_random_panel_is_the_same_for_a_seed_and_has_people_with_one_aspect_only():
    panel = annotators(30, seed=3)
    assert panel == annotators(30, seed=3) != annotators(30, seed=4)
    assert len({person.name for person in panel}) == 30
    assert sum(max(p.helpful, p.honest, p.harmless) == 1 for p in panel) == 6


def test_the_table_has_a_row_for_everybody_and_adds_up_the_cost(pairs):
    rows = agreement_table(pairs[:50], TRAINING_PANEL, seed=0)
    assert [row.name for row in rows] == [p.name for p in TRAINING_PANEL] + ["panel"]
    assert rows[-1].dollars == pytest.approx(sum(p.price for p in TRAINING_PANEL) * 0.5)
    assert len(show_agreement(rows, 50).splitlines()) == 10


def test_the_table_shows_a_habit_of_taking_the_first_or_the_longer_one(pairs):
    people = [STEADY, replace(STEADY, name="First", position_bias=1.5), replace(STEADY, name="Longer", length_bias=0.4)]
    steady, first, longer, _ = agreement_table(pairs, people, seed=0)
    assert abs(steady.first - 0.5) < 0.06 and first.first > steady.first + 0.1
    assert longer.longer > steady.longer + 0.15 and abs(longer.first - 0.5) < 0.1
    assert longer.with_majority < steady.with_majority


def test_a_bit_costs_more_from_whoever_agrees_less():
    assert information(0.5) == 0.0 and information(1.0) == 1.0 == information(0.0)
    assert information(0.8) == pytest.approx(0.278, abs=1e-3)
    sure, unsure = (Agreement("A", 0.8, 0.8, p, 0.0, 0.5, 0.5, dollars=12.0) for p in (0.9, 0.6))
    assert sure.dollars_per_bit(100) == pytest.approx(0.12 / information(0.9))
    assert unsure.dollars_per_bit(100) > 10 * sure.dollars_per_bit(100)
    assert Agreement("A", 0.8, 0.8, 0.5, 0.0, 0.5, 0.5, 12.0).dollars_per_bit(100) == math.inf
