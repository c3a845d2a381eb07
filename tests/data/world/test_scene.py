"""Draws: the same everywhere, as likely as they say, and charged for what they are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens.data.world import Span, WorldConfig
from headlens.data.world.scene import Line, Mark, Scene, again, fill, line_of

seeds = st.integers(0, 2**64)


def scene(seed: int = 0, i: int = 0) -> Scene:
    return Scene(seed, i, WorldConfig())


class Words(Scene):
    """A scene whose 64-bit words are given."""

    def __init__(self, *words: int) -> None:
        super().__init__(0, 0, WorldConfig())
        self._raw = iter(words).__next__


@settings(deadline=None)
@given(seed=seeds, i=st.integers(0, 2**32), n=st.integers(1, 10**6))
def test_a_draw_is_the_high_part_of_word_times_n(seed, i, n):
    _, _, third = np.random.PCG64([seed, i]).random_raw(3).tolist()  # topic and author are drawn first
    assert scene(seed, i).below(n) == third * n // 2**64 < n


def test_every_number_below_n_is_drawn_and_no_other():
    drawn = scene()
    assert {drawn.below(7) for _ in range(300)} == set(range(7))
    assert Words(0).below(7) == 0 and Words(2**64 - 1).below(7) == 6


@settings(deadline=None)
@given(seed=seeds, weights=st.lists(st.sampled_from([0.0, 0.05, 0.1, 1.0, 3.0]), min_size=1, max_size=5).filter(any))
def test_a_weighted_draw_is_charged_by_its_share_and_never_takes_what_has_none(seed, weights):
    drawn = scene(seed)
    chosen = drawn.which(weights)
    assert weights[chosen] > 0
    assert drawn.nats == pytest.approx(-math.log(weights[chosen] / sum(weights)))


@pytest.mark.parametrize("word", [0, 2**64 - 1, 2**64 - 2**10])
def test_rounding_at_either_end_takes_nothing_without_weight(word):
    for weights in ((0.0, 0.1, 0.0), (0.0, 1.0), (1.0, 0.0)):
        assert weights[Words(word).which(weights)] > 0


def test_weights_are_frequencies():
    drawn = scene()
    counts = np.bincount([drawn.which((1, 2, 5)) for _ in range(8000)])
    assert counts == pytest.approx([1000, 2000, 5000], abs=4 * 45)
    coins = sum(drawn.coin(0.3) for _ in range(8000))
    assert coins == pytest.approx(2400, abs=4 * 41)


@settings(deadline=None)
@given(seed=seeds, n=st.integers(0, 6))
def test_some_of_are_different_ones_and_cost_n_over_n_minus_k(seed, n):
    drawn, pool = scene(seed), ("a", "b", "c", "d", "e", "f")
    chosen = drawn.some_of(pool, n)
    assert len(set(chosen)) == len(chosen) == n and set(chosen) <= set(pool)
    assert drawn.nats == pytest.approx(math.log(math.perm(6, n)))


def test_all_orders_are_equally_likely():
    drawn = scene()
    orders = [tuple(drawn.some_of("abc", 3)) for _ in range(6000)]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 6 and all(abs(count - 1000) < 4 * 29 for count in counts.values())


def test_what_was_dealt_is_not_dealt_again():
    drawn, pool = scene(), tuple("abcdefgh")
    hand = [drawn.dealt(pool) for _ in pool]
    assert sorted(hand) == list(pool) and hand != list(pool)
    assert drawn.nats == pytest.approx(math.log(math.factorial(8)))


def test_nats_add_up_and_hidden_draws_are_free():
    drawn = scene()
    for n in (2, 3, 5):
        drawn.below(n)
        drawn.hidden(1000)
    drawn.charge(0.5)
    assert drawn.nats == pytest.approx(math.log(2 * 3 * 5 * 2))


def test_a_line_marks_its_marks():
    assert line_of(("The ", Mark("cup", "x"), " and ", Mark("it", "y", (0,)), ".")) == Line(
        "The cup and it.", (Span("x", 4, 7), Span("y", 12, 14, (0,)))
    )


def test_an_echo_says_what_its_line_said():
    line = Line("a b", (Span("x", 0, 1), Span("y", 2, 3)))
    assert again(line) == Line("a b", (Span("x", 0, 1, (0,)), Span("y", 2, 3, (1,))))


@settings(deadline=None)
@given(seed=seeds)
def test_a_template_never_says_a_word_twice_for_one_field(seed):
    words = fill(scene(seed), "{day} {day} {day} {day} {day} {day} {day}").text.split()
    assert len(set(words)) == 7


def test_what_is_given_is_not_drawn():
    drawn = scene()
    assert fill(drawn, "{day} {x}.", day="Friday", x=Mark("y", "kind")) == Line("Friday y.", (Span("kind", 7, 8),))
    assert drawn.nats == 0
