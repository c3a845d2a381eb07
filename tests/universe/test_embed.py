"""One decoder for all heads: reproducible, blind to order, joined by new models, saved and loaded whole."""

import numpy as np
import pytest
import torch

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe import HeadUniverse, fit_universe
from headlens.universe.batches import grouped
from headlens.universe.clone import Training, log_softmax
from headlens.universe.decoder import (
    Embedded,
    Shape,
    decoded,
    fit_decoder,
    fit_embeddings,
    new_decoder,
    new_embeddings,
    scores_of,
    stand_in,
)
from headlens.universe.embed import distances
from tests.universe import made

QUICK = {"shape": Shape(size=6, parts=8, rank=2), "training": Training(epochs=2, rate=0.02, seed=3)}


@pytest.fixture(scope="module")
def recorded(shared_patterns):
    return shared_patterns


@pytest.fixture(scope="module")
def universe(recorded) -> HeadUniverse:
    return fit_universe(recorded[:2], made.features(), **QUICK)


def test_the_same_seed_gives_the_same_embeddings_whatever_the_order(tmp_path, universe):
    other = made.patterns(tmp_path, names=made.MODELS[1::-1], given=made.texts()[::-1])
    again = fit_universe(other, made.features(), **QUICK)
    assert again.heads == universe.heads
    assert np.abs(again.embeddings - universe.embeddings).max() <= 1e-5


def test_scores_are_the_formula(recorded):
    features = made.features()
    (group,) = grouped(recorded[2:])
    batch = group.batch(0, features)
    decoder = new_decoder(features.width, Shape(size=5, parts=3, rank=2), seed=0)
    decoder.outer.normal_(generator=torch.Generator().manual_seed(1))
    embedded = new_embeddings([group], 5, seed=0)
    embedded.own.copy_(torch.tensor([[0.3, -0.7]]))
    h, d, r, j = 4, 2, 3, 1
    e, i = embedded.e[h], int(batch.rows[d, r])
    out = e @ decoder.straight + torch.tanh(e @ decoder.inner) @ decoder.outer + decoder.offset
    parts = [(batch.phi[d, i] @ decoder.U[m]) @ (batch.phi[d, j] @ decoder.V[m]) / 2**0.5 for m in range(3)]
    for key, bos in ((j, 0.0), (0, 1.0)):
        parts = [(batch.phi[d, i] @ decoder.U[m]) @ (batch.phi[d, key] @ decoder.V[m]) / 2**0.5 for m in range(3)]
        place = out[3:][batch.bucket[d, r, key]] + bos * (out[3 + 32] - 0.7)
        expected = np.exp(0.3) * float(out[:3] @ torch.stack(parts)) + float(place)
        found = scores_of(decoder, embedded, decoder.asked(batch))[h, d, r, key]
        assert float(found) == pytest.approx(expected, abs=1e-4)


def test_the_stand_in_has_the_gradient_of_the_cross_entropy(recorded):
    features = made.features()
    (group,) = grouped(recorded[2:])
    batch = group.batch(0, features)
    scores = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(stand_in(scores, batch), scores)
    hidden = scores.masked_fill(~batch.seen, -1e9).log_softmax(-1).masked_fill(~batch.seen, 0)
    (expected,) = torch.autograd.grad(-(batch.target * hidden).sum() / batch.real.sum(), scores)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(log_softmax(scores.detach().clone(), batch), hidden.detach(), atol=1e-5)


def test_a_new_model_joins_and_nothing_else_moves(recorded, universe):
    joined = universe.add(None, recorded[2])
    assert set(joined.embedded.models) == set(made.MODELS) and joined.fitted == universe.fitted
    old = [joined.heads.index(head) for head in universe.heads]
    assert np.array_equal(joined.embeddings[old], universe.embeddings)
    assert np.array_equal(joined.terms[old], universe.terms)  # nor do the units of distances
    assert torch.equal(joined.decoder.U, universe.decoder.U)
    started = Embedded(
        tuple(h for h in joined.heads if h.model == made.MODELS[2]),
        torch.zeros(12, 6), (made.MODELS[2],), torch.zeros(1, 2),
    )  # fmt: skip
    (group,) = grouped(recorded[2:])
    batch = group.batch(0, made.features())
    own = joined.embedded.of(started.heads)
    cross = [-(batch.target * decoded(universe.decoder, e, batch)).sum() for e in (started, own)]
    assert cross[1] < cross[0]
    with pytest.raises(DataError, match="already in this universe"):
        joined.add(None, recorded[2])


def test_texts_give_what_recorded_patterns_give(recorded, universe):
    one = universe.add(made.load(made.MODELS[2]), list(made.texts()))
    two = universe.add(None, recorded[2])
    assert np.array_equal(one.embeddings, two.embeddings)


def test_it_is_saved_and_loaded_whole(tmp_path, recorded, universe):
    joined = universe.add(None, recorded[2])
    again = HeadUniverse.load(joined.save(tmp_path / "universe"))
    assert again.heads == joined.heads and again.fitted == joined.fitted
    assert np.array_equal(again.terms, joined.terms) and np.array_equal(again.kl, joined.kl)
    assert torch.equal(again.embedded.own, joined.embedded.own)
    table = again.to_table()
    assert table.num_rows == len(joined.heads)
    assert set(table["joined"].to_pylist()) == {False, True}
    fewer = again.add(made.load("zoo:gemma3-small"), list(made.texts()), documents=4)
    assert "zoo:gemma3-small" in fewer.embedded.models


def test_neighbours_are_the_nearest_heads(universe):
    head = universe.heads[3]
    near = universe.neighbours(str(head), 4).to_pylist()
    gaps = [row["distance"] for row in near]
    assert gaps == sorted(gaps) and len(near) == 4
    found = [HeadId(row["model"], row["layer"], row["head"]) for row in near]
    assert head not in found
    assert gaps[0] == pytest.approx(universe.distance(head, found[0]))
    everyone = {other: universe.distance(head, other) for other in universe.heads if other != head}
    assert min(everyone, key=everyone.__getitem__) == found[0]
    assert universe.distance(head, head) == pytest.approx(0, abs=1e-6)
    others = universe.neighbours(head, 50, other_models=True).to_pylist()
    assert {row["model"] for row in others} == {made.MODELS[1]}
    with pytest.raises(DataError, match="has no head"):
        universe.neighbours("zoo:gpt2-small:L9H9")
    with pytest.raises(DataError, match="k must be 1 or more"):
        universe.neighbours(head, 0)


def test_a_head_that_attends_to_nothing_joins_without_a_place(tmp_path, recorded, universe):
    (patterns,) = made.patterns(tmp_path, names=made.MODELS[2:])
    silent = patterns.heads[5]
    made.silence(patterns, silent)
    joined = universe.add(None, patterns)
    assert [head for head, kl in zip(joined.heads, joined.kl, strict=True) if np.isnan(kl)] == [silent]
    assert not joined.embeddings[joined.heads.index(silent)].any()  # nothing moved it from where it started
    whole = universe.add(None, recorded[2])
    others = [h for h in range(len(joined.heads)) if joined.heads[h].model != silent.model]
    assert np.array_equal(joined.embeddings[others], whole.embeddings[others])
    with pytest.raises(DataError, match="attends to nothing"):
        joined.neighbours(silent)
    with pytest.raises(DataError, match="attends to nothing"):
        joined.distance(universe.heads[0], silent)
    near = joined.neighbours(universe.heads[0], 100).to_pylist()
    assert len(near) == len(joined.heads) - 2
    again = HeadUniverse.load(joined.save(tmp_path / "universe"))
    assert np.array_equal(again.kl, joined.kl, equal_nan=True)


def test_heads_of_a_model_that_is_known_join_with_its_own_terms_as_they_are(recorded):
    features, (group,) = made.features(), grouped(recorded[:1])
    some, rest = group.only(group.heads[::3]), group.only([h for i, h in enumerate(group.heads) if i % 3])
    decoder, embedded = fit_decoder([rest], features, **QUICK)
    joined = fit_embeddings(decoder, [some], features, known=embedded, steps=5)
    assert joined.heads == tuple(some.heads)
    assert torch.equal(joined.own, embedded.own) and embedded.own.any()
    assert not torch.equal(fit_embeddings(decoder, [some], features, steps=5).own, embedded.own)


def test_a_decoder_without_own_terms_or_without_a_hidden_layer(recorded):
    features, groups = made.features(), grouped(recorded[2:])
    shape = Shape(size=3, parts=4, rank=2, hidden=0, own=False)
    decoder, embedded = fit_decoder(groups, features, shape=shape, training=QUICK["training"])
    assert not embedded.own.any()
    assert not fit_embeddings(decoder, groups, features, own=False, steps=5).own.any()
    g, _ = decoder.terms(embedded.e)
    twice, _ = decoder.terms(2 * embedded.e)
    assert torch.allclose(twice - decoder.offset[:4], 2 * (g - decoder.offset[:4]), atol=1e-5)
    with pytest.raises(DataError, match="must be 1 or more"):
        Shape(size=0)


def test_another_encoder_is_refused(recorded, universe):
    with pytest.raises(DataError, match="other weights"):
        universe.add(None, recorded[2], encoder="zoo:gpt2-control")


def test_more_documents_than_there_are_are_refused(recorded, universe):
    with pytest.raises(DataError, match="fewer than asked for"):
        fit_embeddings(universe.decoder, grouped(recorded[2:]), made.features(), documents=1000)


def test_distance_is_one_minus_the_cosine():
    a, b = np.array([[1.0, 0], [0, 0]]), np.array([[2.0, 0], [0, 1], [-1, 0]])
    assert np.allclose(distances(a, b), [[0, 1, 2], [1, 1, 1]])
