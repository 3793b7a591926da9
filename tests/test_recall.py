"""Associative recall: what a list is, how it is drawn, and what training does with it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attention import CausalSelfAttention, recall_batch, train_recall

D_MODEL = 64  # train_recall's own


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def near(share, n):
    """Five standard deviations of a share that is counted in n draws."""
    return pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / n))


# --- lists ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "n_pairs", "n_keys", "n_values"),
    [(100, 4, 8, 8), (50, 3, 5, 2), (50, 7, 7, 11), (1, 1, 1, 1), (50, 1, 13, 3), (50, 2, 3, 1)],
)
def test_the_answer_is_the_value_beside_the_key_that_is_asked(n, n_pairs, n_keys, n_values):
    tokens, answers = recall_batch(n, n_pairs=n_pairs, n_keys=n_keys, n_values=n_values)
    assert tokens.shape == (n, 2 * n_pairs + 1)
    assert answers.shape == (n,)
    assert tokens.dtype == answers.dtype == torch.int64
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        *pairs, asked = row
        keys, values = pairs[::2], pairs[1::2]
        assert len(set(keys)) == n_pairs  # no key comes twice
        assert all(0 <= key < n_keys for key in keys)
        assert all(n_keys <= value < n_keys + n_values for value in values)
        assert values[keys.index(asked)] - n_keys == answer


def test_without_sizes_a_list_has_four_pairs_of_eight_keys_and_eight_values():
    tokens, answers = recall_batch(1000)
    assert tokens.shape == (1000, 9)
    assert set(tokens[:, 0:8:2].flatten().tolist()) == set(range(8))
    assert set(tokens[:, 1:8:2].flatten().tolist()) == set(range(8, 16))
    assert set(answers.tolist()) == set(range(8))


def test_keys_values_and_positions_are_uniform():
    n, n_pairs, n_keys, n_values = 5000, 3, 5, 7
    tokens, answers = recall_batch(n, n_pairs=n_pairs, n_keys=n_keys, n_values=n_values)
    keys, values = tokens[:, 0:-1:2], tokens[:, 1:-1:2] - n_keys
    position = (keys == tokens[:, -1:]).long().argmax(1)
    for position_of in range(n_pairs):
        assert (position == position_of).double().mean().item() == near(1 / n_pairs, n)
        for key in range(n_keys):
            share = (keys[:, position_of] == key).double().mean().item()
            assert share == near(1 / n_keys, n)
        for value in range(n_values):
            share = (values[:, position_of] == value).double().mean().item()
            assert share == near(1 / n_values, n)
    for answer in range(n_values):
        assert (answers == answer).double().mean().item() == near(1 / n_values, n)
    # The key that is asked says nothing of its answer, nor of its position.
    for key in range(n_keys):
        asked = tokens[:, -1] == key
        m = int(asked.sum())
        assert (answers[asked] == 0).double().mean().item() == near(1 / n_values, m)
        assert (position[asked] == 0).double().mean().item() == near(1 / n_pairs, m)


def test_guessing_among_the_values_of_the_list_is_right_in_about_0_4():
    # As the docstring says: the answer's own pair, or another pair of the same value.
    tokens, answers = recall_batch(20_000)
    guess = tokens.gather(1, 2 * torch.randint(4, (20_000, 1)) + 1)[:, 0] - 8
    assert (guess == answers).double().mean().item() == near(1 / 4 + 3 / 4 / 8, 20_000)
    counts = F.one_hot(tokens[:, 1:-1:2] - 8, 8).sum(1)
    best = (counts + torch.rand(counts.shape) / 2).argmax(1)
    assert (best == answers).double().mean().item() == pytest.approx(0.4, abs=0.03)


def test_lists_are_those_of_the_generators_seed_and_leave_torchs_own_alone():
    before = torch.get_rng_state()
    first, again = recall_batch(20, generator=seeded(1)), recall_batch(20, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], recall_batch(20, generator=seeded(2))[0])
    generator = seeded(1)
    recall_batch(20, generator=generator)
    assert not torch.equal(first[0], recall_batch(20, generator=generator)[0])


def test_without_a_generator_the_lists_are_those_of_torchs_seed():
    torch.manual_seed(1)
    tokens, answers = recall_batch(20)
    assert not torch.equal(tokens, recall_batch(20)[0])
    torch.manual_seed(1)
    again = recall_batch(20)
    assert torch.equal(tokens, again[0]) and torch.equal(answers, again[1])


# --- training ---------------------------------------------------------------------


class Nothing(nn.Module):
    """Gives zeros, and learns nothing."""

    def forward(self, x):
        return torch.zeros_like(x)


class Recorder(nn.Module):
    """Gives a vector that learns, and remembers what it was given and how."""

    def __init__(self):
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(D_MODEL))
        self.calls = []

    def forward(self, x):
        self.calls.append((x.detach(), self.training, torch.is_grad_enabled()))
        return self.vector.expand(x.shape)


def recorded(layer, **how):
    """What each layer was given, step by step, and at the end."""
    layers = []
    train_recall(lambda: layers.append(layer()) or layers[-1], **({"steps": 2} | how))
    return [[x for x, *_ in made.calls] for made in layers]


def attending():
    return CausalSelfAttention(D_MODEL, D_MODEL)


def test_two_layers_of_causal_attention_learn_it():
    assert train_recall(attending) > 0.99


@pytest.mark.parametrize("n_layers", [1, 3])
def test_layers_that_return_zeros_are_right_by_chance(n_layers):
    assert train_recall(Nothing, steps=2, n_layers=n_layers) == near(1 / 8, 2000)


def test_one_vector_for_every_token_stays_at_chance_however_long_it_learns():
    assert train_recall(Recorder, steps=30) == near(1 / 8, 2000)


def test_the_same_seed_gives_the_same_and_leaves_torchs_generator_as_it_was():
    before = torch.get_rng_state()
    share = train_recall(attending, steps=4, seed=1)
    assert type(share) is float
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)  # whatever was drawn before
    assert train_recall(attending, steps=4, seed=1) == share
    (one, _), (two, _), (again, _) = (recorded(Recorder, seed=seed) for seed in (1, 2, 1))
    assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))
    assert not any(torch.allclose(x, y) for x, y in zip(one, two, strict=True))


def test_torchs_generator_is_as_it_was_also_after_an_error():
    class Fails(nn.Linear):
        def forward(self, x):
            torch.rand(1)
            raise RuntimeError("stopped")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"^stopped$"):
        train_recall(lambda: Fails(1, 1), steps=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_each_layer_is_made_anew_and_sees_normalised_tokens(n_layers):
    layers = []
    train_recall(lambda: layers.append(Recorder()) or layers[-1], steps=3, n_layers=n_layers)
    assert len(layers) == n_layers
    for made in layers:
        *training, (last, in_training, tracked) = made.calls
        assert [x.shape for x, *_ in training] == [(128, 9, D_MODEL)] * 3
        assert all(flags == [True, True] for _, *flags in training)
        # Then other lists, in eval and without gradients.
        assert last.shape == (2000, 9, D_MODEL)
        assert not in_training and not tracked
        for x, *_ in made.calls:
            torch.testing.assert_close(x.mean(-1), torch.zeros(x.shape[:2]), rtol=0, atol=1e-6)
            # layer_norm divides by the root of the variance and 1e-5.
            torch.testing.assert_close(
                x.var(-1, correction=0), torch.ones(x.shape[:2]), rtol=0, atol=1e-3
            )
        assert not torch.equal(training[0][0], training[1][0])  # new lists each step
        assert (made.vector != 0).all()  # it learned


@pytest.mark.parametrize("positional", [True, False])
def test_only_without_positions_a_token_is_one_vector_wherever_it_stands(positional):
    x = recorded(Recorder, positional=positional)[0][0]
    same = (x[:, :8:2] - x[:, -1:]).abs().amax(-1) < 1e-6  # the last token is one of the keys
    assert torch.equal(same.sum(1), torch.full((128,), 0 if positional else 1))


def test_the_output_of_a_layer_is_added_to_its_input():
    first, second = recorded(Recorder)
    assert torch.equal(first[0], second[0])  # zeros were added
    assert not torch.allclose(first[1], second[1])  # then what the first has learned
    large = 1e6 * torch.randn(D_MODEL)

    class Large(Recorder):
        def forward(self, x):
            return super().forward(x) + large

    _, second = recorded(Large)
    expected = F.layer_norm(large, large.shape).expand_as(second[0])
    torch.testing.assert_close(second[0], expected, rtol=0, atol=1e-4)  # tokens are 1e-6 of it


def test_dropout_is_on_in_training_only():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(D_MODEL, D_MODEL)
            self.modes = []

        def forward(self, x):
            self.modes.append(self.training)
            return F.dropout(self.linear(x), 0.5, self.training)

    layers = []
    share = train_recall(lambda: layers.append(Drops()) or layers[-1], steps=2)
    assert layers[0].modes == [True, True, False]
    assert share == train_recall(Drops, steps=2)


# --- errors -----------------------------------------------------------------------

BAD_SIZES = pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "=0 must be at least 1$"),
        (-2, ValueError, "=-2 must be at least 1$"),
        (2.0, TypeError, " must be an integer, got 2.0$"),
        (True, TypeError, " must be an integer, got True$"),
        (None, TypeError, " must be an integer, got None$"),
    ],
)


@BAD_SIZES
@pytest.mark.parametrize("name", ["n", "n_pairs", "n_keys", "n_values"])
def test_sizes_of_lists_are_integers_of_at_least_1(name, size, error, message):
    with pytest.raises(error, match=f"^{name}{message}"):
        recall_batch(**({"n": 3} | {name: size}))


def test_a_list_cannot_hold_more_pairs_than_there_are_keys():
    with pytest.raises(ValueError, match=r"^n_pairs=9 must be at most n_keys=8$"):
        recall_batch(3, n_pairs=9)
    with pytest.raises(ValueError, match=r"^n_pairs=4 must be at most n_keys=3$"):
        recall_batch(3, n_keys=3)


@BAD_SIZES
@pytest.mark.parametrize("name", ["steps", "n_layers", "d_model"])
def test_sizes_of_training_are_integers_of_at_least_1(name, size, error, message):
    with pytest.raises(error, match=f"^{name}{message}"):
        train_recall(attending, **{name: size})


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (nn.Linear(64, 64), TypeError, "^layer must be a function that makes.* got Linear$"),
        (None, TypeError, "^layer must be a function .* got NoneType$"),
        ("relu", TypeError, "^layer must be a function .* got str$"),
        (lambda: F.relu, TypeError, "^layer must .* module"),
        (lambda: nn.Linear(64, 32), ValueError, r"^layer must .*\(\w+, \w+, 32\)"),
        # Broadcasting would take these as they are.
        (lambda: nn.Linear(64, 1), ValueError, r"^layer must .*\(\w+, \w+, 1\)"),
    ],
)
def test_a_layer_is_made_by_a_function_and_keeps_the_shape(layer, error, message):
    with pytest.raises(error, match=message):
        train_recall(layer, steps=1)
