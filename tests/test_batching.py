"""Batching: each label is the next token, no padding and no prompt is taught, and the order of examples is a pure
function of the step."""

import pytest
import torch

from minialign.batching import IGNORE, Batch, Order, demonstration_row, next_token_batch, pack, pad, text_to_text_batch
from minialign.runs.errors import UserError
from minialign.tokenizer import BEGIN, END, PAD

ROWS = [[1, 20, 21, 22, 2], [1, 30, 2], [1, 40, 41, 42, 43, 44, 2]]


def test_labels_are_the_next_tokens_of_a_brute_force_loop():
    for loss_from in (None, [3, 2, 1]):
        batch = next_token_batch(ROWS, loss_from)
        assert batch.tokens.shape == batch.labels.shape == batch.mask.shape == (3, 6)
        for i, row in enumerate(ROWS):
            for t in range(6):
                real = t < len(row) - 1
                taught = real and (loss_from is None or t + 1 >= loss_from[i])
                assert batch.tokens[i, t] == (row[t] if real else PAD)
                assert batch.labels[i, t] == (row[t + 1] if taught else IGNORE)
                assert batch.mask[i, t] == real


def test_no_loss_falls_on_the_prompt(tokenizer):
    rows = [demonstration_row(tokenizer, prompt, completion) for prompt, completion in ([[50, 51, 52], [60]],
        [[53], [61, 62, 63]], [[], [64]])]
    batch = next_token_batch([row for row, _ in rows], [start for _, start in rows])
    taught = [[int(label) for label in row if label != IGNORE] for row in batch.labels]
    assert taught == [[60, END], [61, 62, 63, END], [64, END]]


def test_the_last_label_is_the_end_token(tokenizer):
    row, start = demonstration_row(tokenizer, [50, 51], [60, 61])
    for loss_from in (None, [start]):
        labels = next_token_batch([row], loss_from).labels[0]
        assert labels[-1] == END
    assert row == [BEGIN, 50, 51, 60, 61, END] and row[start] == 60


def test_no_label_is_padding():
    assert PAD not in next_token_batch(ROWS).labels


def test_count_is_the_labels_with_loss_and_size_the_tokens_read():
    batch = next_token_batch(ROWS, [3, 2, 1], names=[7, 8, 9])
    assert batch.count == 2 + 1 + 6 and batch.size == 18 and batch.rows == [7, 8, 9]
    assert next_token_batch(ROWS).rows == [0, 1, 2]
    assert Batch(torch.zeros(1, 2), torch.full((1, 2), IGNORE), torch.zeros(1, 2), [0]).count == 0


def test_padding_goes_to_the_side_that_is_asked_for():
    right, right_mask = pad([[5, 6, 7], [8]])
    left, left_mask = pad([[5, 6, 7], [8]], side="left")
    assert right.tolist() == [[5, 6, 7], [8, PAD, PAD]] and right_mask.tolist() == [[True] * 3, [True, False, False]]
    assert left.tolist() == [[5, 6, 7], [PAD, PAD, 8]] and left_mask.tolist() == [[True] * 3, [False, False, True]]
    longer, mask = pad([[5]], length=3, value=9)
    assert longer.tolist() == [[5, 9, 9]] and mask.tolist() == [[True, False, False]]


def test_the_mask_says_what_was_added_not_what_equals_the_pad_token():
    tokens, mask = pad([[PAD, 5, PAD], [6]])
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_padding_equals_a_loop_over_the_places():
    generator = torch.Generator().manual_seed(0)
    for side in ("right", "left"):
        rows = [torch.randint(5, 99, (int(n),), generator=generator).tolist()
                for n in torch.randint(0, 9, (20,), generator=generator)]
        tokens, mask = pad(rows, side, length=10, value=IGNORE)
        for i, row in enumerate(rows):
            added = [IGNORE] * (10 - len(row))
            assert tokens[i].tolist() == ([*row, *added] if side == "right" else [*added, *row])
            assert mask[i].tolist() == ([True] * len(row) + [False] * len(added))[:: 1 if side == "right" else -1]
    empty, mask = pad([[], []])
    assert empty.shape == mask.shape == (2, 0) and empty.dtype == torch.long


# pairs of texts


def test_the_decoder_begins_with_the_begin_token_and_each_label_is_its_next_token():
    batch = text_to_text_batch([[1, 20, 21], [1, 30, 31, 32], [1]], [[40, 41, 42], [50], []], names=[4, 5, 6])
    assert batch.inputs.tolist() == [[1, 20, 21, PAD], [1, 30, 31, 32], [1, PAD, PAD, PAD]]
    assert batch.input_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.tokens.tolist() == [[BEGIN, 40, 41, 42], [BEGIN, 50, PAD, PAD], [BEGIN, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[40, 41, 42, END], [50, END, IGNORE, IGNORE], [END, IGNORE, IGNORE, IGNORE]]
    assert batch.count == 7 and batch.size == 24 and batch.rows == [4, 5, 6]
    assert text_to_text_batch([[1]], [[2]]).rows == [0]


# packing


@pytest.mark.parametrize("context", [1, 2, 5, 10, 30])
def test_packing_loses_no_token(context):
    documents = [list(range(100, 107)), [7], list(range(200, 223))]
    stream = [token for document in documents for token in document]
    rows = pack(documents, context)
    assert rows.shape == ((len(stream) - 1) // context, context + 1)
    read, taught = rows[:, :-1].flatten().tolist(), rows[:, 1:].flatten().tolist()
    assert read == stream[: len(read)] and taught == stream[1 : len(taught) + 1]
    assert len(stream) - 1 - len(taught) < context


def test_text_shorter_than_one_context_is_an_error_that_says_how_short():
    with pytest.raises(UserError, match="the text has 5 tokens, and one row of context 5 takes 6"):
        pack([[1, 2, 3], [4, 5]], 5)
    assert pack([[1, 2, 3], [4, 5, 6]], 5).tolist() == [[1, 2, 3, 4, 5, 6]]
    with pytest.raises(UserError, match="0 tokens"):
        pack([], 5)


# order


@pytest.mark.parametrize("lengths, batch, pool", [(20, 4, 16), (23, 4, 2), (5, 5, 1),
                                                  ([9, 1, 5, 5, 2, 8, 1, 3, 3, 7, 4], 3, 2)])
def test_each_epoch_shows_each_example_at_most_once_and_leaves_out_less_than_a_batch(lengths, batch, pool):
    order = Order(lengths, batch, seed=0, pool=pool)
    examples = lengths if isinstance(lengths, int) else len(lengths)
    for epoch in range(4):
        shown = [i for step in range(order.steps_in_epoch) for i in order(epoch * order.steps_in_epoch + step)]
        assert len(shown) == len(set(shown)) == examples - examples % batch
        assert set(shown) <= set(range(examples))


def test_what_one_epoch_leaves_out_another_shows():
    order = Order(7, 4, seed=0)
    assert {i for step in range(30) for i in order(step)} == set(range(7))


def test_the_order_is_a_pure_function_of_seed_and_step():
    lengths = torch.randint(5, 50, (90,), generator=torch.Generator().manual_seed(0)).tolist()
    forwards = [Order(lengths, 8, seed=3)(step) for step in range(30)]
    jumping = Order(lengths, 8, seed=3)
    torch.manual_seed(99)
    assert [jumping(step) for step in reversed(range(30))][::-1] == forwards
    assert [Order(lengths, 8, seed=4)(step) for step in range(30)] != forwards


def test_every_epoch_is_another_shuffle():
    order = Order(64, 8, seed=0)
    epochs = [tuple(tuple(order(epoch * 8 + step)) for step in range(8)) for epoch in range(5)]
    assert len(set(epochs)) == 5


def test_similar_lengths_stand_together():
    lengths = torch.randint(5, 100, (640,), generator=torch.Generator().manual_seed(0))
    def padding(batches):
        return sum(int((lengths[b].max() - lengths[b]).sum())
                                      for b in batches) / int(lengths.sum())
    order = Order(lengths.tolist(), 8, seed=0)
    sorted_in_pools = padding([order(step) for step in range(80)])
    shuffled = padding(torch.randperm(640, generator=torch.Generator().manual_seed(0)).split(8))
    assert sorted_in_pools < 0.15 < 0.5 < shuffled


def test_long_batches_do_not_come_in_a_row():
    order = Order(list(range(640)), 8, seed=0)
    longest = [max(order(step)) for step in range(80)]
    rising = sum(a < b for a, b in zip(longest, longest[1:]))
    assert 25 < rising < 54


def test_fewer_examples_than_a_batch_are_an_error():
    with pytest.raises(UserError, match="there are 3 examples, fewer than one batch of 4"):
        Order(3, 4, seed=0)
    for batch in (0, 1):
        with pytest.raises(UserError, match="there are 0 examples"):
            Order([], batch, seed=0)


def test_a_row_longer_than_the_length_is_refused_and_never_cut():
    with pytest.raises(AssertionError, match="longer than the length"):
        pad([[1, 2, 3], [4, 5]], length=2)
