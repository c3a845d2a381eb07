"""What heads write: known maps, hand-set heads, slow copies of every measure, and models that know nothing."""

import functools

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

import headlens as hl
from headlens._errors import DataError, UnsupportedArchitecture
from headlens.data import pack
from headlens.heads import circuits, token_maps
from headlens.heads.circuits import copying_eigenvalues, copying_logits, copying_top1, successor
from headlens.heads.read_out import effective_inputs, read_out, unembedding
from headlens.heads.setting import allowed_ids
from headlens.heads.suppression import copy_suppression
from headlens.heads.tally import Measured
from headlens.heads.token_maps import (
    eigenvalue_copying,
    logit_copying,
    ranks_first,
    share_below,
    successor_share,
    suppressed_copying,
    top1_copying,
)
from headlens.tracing import capture
from tests.families import CONFIGS, build
from tests.zoo.constructions import construction, loaded

V = 64
EYE = torch.eye(V)
SHIFT = EYE.roll(1, 1)  # token t -> t + 1
MAPS = {
    "identity": EYE,
    "-identity": -EYE,
    "shift": SHIFT,
    "random": torch.randn(V, V, generator=torch.Generator().manual_seed(0)) / 8,
    "non-normal": torch.full((V, V), 5.0).triu(1) + EYE,
    "zero": 0 * EYE,
}
# eigenvalues, top-1, logits, successor; the shift has 62 ties, one above and none below the own token
TRUTH = {
    "identity": (1, 1, 1, 0),
    "-identity": (-1, 0, -1, 0),
    "shift": (0, 0, -1 / 63, 1),
    "random": (0, 0, 0, 0),
    "non-normal": (1, 1 / 64, 0, 1 / 64),
    "zero": (0, 0, 0, 0),
}


@pytest.mark.parametrize("name", MAPS)
def test_known_maps(name):
    """Check 5 of the ground truth: eigenvalues and top-1 disagree about the map that is far from normal."""
    W = torch.stack([MAPS["random"], MAPS[name]])  # two heads: what is told of one must not reach the other
    parts = (EYE, W, torch.stack([EYE, EYE]), EYE)
    found = (
        eigenvalue_copying(*parts),
        top1_copying(*parts),
        logit_copying(W),
        successor_share(W, cyclic=True),
    )
    slack = 0.25 if name == "random" else 0.02
    for got, expected in zip(found, TRUTH[name], strict=True):
        assert got.shape == (2,)
        assert got[1].item() == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize("n_tokens", [5, 40])
def test_small_matrices_have_the_eigenvalues_of_the_whole_map(n_tokens):
    generator = torch.Generator().manual_seed(1)
    E, W_V, W_O, U = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((n_tokens, 12), (3, 12, 8), (3, 8, 12), (12, n_tokens))
    )
    eigenvalues = np.linalg.eigvals((E @ W_V @ W_O @ U).numpy())
    expected = eigenvalues.sum(-1).real / np.abs(eigenvalues).sum(-1)
    np.testing.assert_allclose(eigenvalue_copying(E, W_V, W_O, U).numpy(), expected, rtol=1e-6)


rows = st.integers(2, 7).flatmap(
    lambda n: st.tuples(st.lists(st.integers(-2, 2), min_size=n, max_size=n), st.integers(0, n - 1))
)


@given(rows)
def test_ranks_by_counting_pairs(row):
    logits, target = row
    others = [x for i, x in enumerate(logits) if i != target]
    below = sum(1.0 if x < logits[target] else 0.5 if x == logits[target] else 0.0 for x in others)
    values, at = torch.tensor([logits], dtype=torch.float64), torch.tensor([target])
    assert share_below(values, at).item() == pytest.approx(below / len(others))
    assert ranks_first(values, at).item() == (logits[target] > max(others))


@given(rows, st.floats(0.1, 10), st.floats(-5, 5))
def test_ranks_do_not_see_rising_curves(row, factor, shift):
    logits, target = torch.tensor([row[0]], dtype=torch.float64), torch.tensor([row[1]])
    bent = torch.tanh(logits * factor / 10) + shift
    torch.testing.assert_close(share_below(bent, target), share_below(logits, target))


def test_the_last_member_has_a_successor_only_in_a_cycle():
    up_to_the_last = SHIFT.clone()
    up_to_the_last[-1] = EYE[5]
    assert successor_share(up_to_the_last, cyclic=False) == 1
    assert successor_share(up_to_the_last, cyclic=True) == pytest.approx(63 / 64)
    never_but_the_last = EYE.clone()
    never_but_the_last[-1] = EYE[0]
    assert successor_share(never_but_the_last, cyclic=False) == 0
    assert successor_share(never_but_the_last, cyclic=True) == pytest.approx(1 / 64)


def test_suppression_is_averaged_over_expected_places_alone():
    logits = torch.tensor([[[-3.0, 1, 2, 0], [9, 1, 2, 0], [0, 3, 1, 2]]])  # the attended token is last, first, third
    attended = torch.tensor([[0, 0, 2]])
    assert suppressed_copying(logits, attended, torch.tensor([[True, False, False]])) == 1
    assert suppressed_copying(logits, attended, torch.tensor([[True, True, False]])) == 0
    assert suppressed_copying(logits, attended, torch.tensor([[False, False, True]])).item() == pytest.approx(1 / 3)
    assert suppressed_copying(logits, attended, torch.zeros(1, 3, dtype=torch.bool)).isnan().all()


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(*s, generator=generator) for s in ((50, 6), (2, 6, 4), (2, 4, 6), (6, 50))]
    parts[3] = parts[0].T + 0.5 * parts[3]
    whole, model, texts = top1_copying(*parts), hl.load(build("qwen3")), some_texts(hl.load(build("qwen3")))
    measured = copy_suppression(model, texts, seed=0).own, copying_top1(model, num_samples=90, seed=0).own
    monkeypatch.setattr(token_maps, "LOGITS_AT_ONCE", 210)
    torch.testing.assert_close(top1_copying(*parts), whole)
    np.testing.assert_allclose(copy_suppression(model, texts, seed=0).own, measured[0], atol=0.03)
    np.testing.assert_array_equal(copying_top1(model, num_samples=90, seed=0).own, measured[1])


# --- slow copies, through the model's own modules -----------------------------------------------------------------

VARIED = ("gpt2", "gptj", "gpt_neox", "opt", "qwen3", "gemma2", "olmo2", "gpt_oss")
"""Families that differ in their norms, biases, grouping of heads, and what stands before the unembedding."""


@functools.cache
def random_model(name: str) -> hl.Model:
    hf = build(name)
    hf.requires_grad_(False)
    return hl.load(hf)


def final_norm(model: hl.Model) -> torch.nn.Module:
    names = dict.fromkeys(("gpt2", "gptj", "gpt_neo"), "ln_f") | dict.fromkeys(("gpt_neox", "opt"), "final_layer_norm")
    return getattr(model.stack, names.get(model.config.model_type, "norm"))


def direct(model: hl.Model, layer: int, head: int, x: torch.Tensor) -> torch.Tensor:
    """Logits of what a head writes on reading x, with every norm dividing as it does."""
    circuit = model.head(layer, head)
    return finish(model, layer, circuit.output(circuit.value(x)))


def finish(model: hl.Model, layer: int, out: torch.Tensor) -> torch.Tensor:
    post, final = model.norm(layer, "post_norm"), final_norm(model)
    out = final(out if post is None else post(out))
    bias = getattr(final, "bias", None)
    return (out if bias is None else out - bias) @ model.hf.get_output_embeddings().weight.T


def residual(model: hl.Model, texts: list[list[int]]) -> list[torch.Tensor]:
    """Per layer (text, token, d_model)."""
    (batch,) = capture(model, texts, ["blocks.*.hook_resid_pre"])
    return [batch[f"blocks.{layer}.hook_resid_pre"] for layer in range(model.n_layers)]


def alone(model: hl.Model, tokens: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
    """Per layer (token, d_model): what heads read at single tokens, block 1's input standing for all later ones."""
    start = [] if model.bos is None else [model.bos]
    stream = residual(model, [[*start, int(token)] for token in tokens])
    return [stream[min(layer, 1)][:, -1] for layer in range(model.n_layers)]


def some_texts(model: hl.Model):
    rng = np.random.default_rng(3)
    bos = [] if model.bos is None else [model.bos]
    return pack([[*bos, *rng.integers(3, 97, size=n).tolist()] for n in (30, 7, 44, 19)])


def heads(model: hl.Model):
    return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]


@pytest.mark.parametrize("name", CONFIGS)
def test_read_out_is_what_the_models_own_norms_give_up_to_a_positive_factor(name):
    model = random_model(name)
    out = torch.randn(6, model.d_model, generator=torch.Generator().manual_seed(0))
    for layer in range(model.n_layers):
        found, expected = read_out(model, layer, out), finish(model, layer, out)
        assert found.shape == (6, model.vocab_size)
        factor = (found * expected).sum(-1, keepdim=True) / (expected * expected).sum(-1, keepdim=True)
        assert (factor > 0).all()
        torch.testing.assert_close(found, factor * expected, rtol=1e-4, atol=1e-3)
    ids = torch.tensor([5, 3, 96])
    torch.testing.assert_close(read_out(model, 1, out, ids), read_out(model, 1, out)[:, ids])


@pytest.mark.parametrize("name", VARIED)
def test_top1_by_the_whole_map(name):
    model = random_model(name)
    ids = allowed_ids(model)
    found = copying_top1(model, num_samples=1000, seed=0)
    assert found.own.shape == (len(ids), model.n_layers, model.n_heads)  # as many as there are, each once
    read, own = alone(model, ids), torch.arange(len(ids))
    share = np.zeros(found.own.shape[1:])
    for layer, head in heads(model):
        share[layer, head] = (direct(model, layer, head, read[layer])[:, ids].argmax(-1) == own).double().mean()
    np.testing.assert_allclose(found.own.mean(0), share, atol=1e-9)
    assert share.max() > 0.02  # tied or lucky: something is there to agree on


@pytest.mark.parametrize("name", VARIED)
def test_successor_by_one_member_at_a_time(name):
    model, members = random_model(name), np.array([40, 41, 7, 90])
    read = alone(model, members)
    for cyclic, n in ((True, 4), (False, 3)):
        found = successor(model, [members], [cyclic], seed=0).own
        assert found.shape == (n, model.n_layers, model.n_heads)
        for i in range(n):
            for layer, head in heads(model):
                logits = direct(model, layer, head, read[layer][i])[torch.from_numpy(members)]
                assert found[i, layer, head] == (int(logits.argmax()) == (i + 1) % 4)


@pytest.mark.parametrize("name", VARIED)
def test_copying_logits_by_one_text_at_a_time(name):
    model, rng = random_model(name), np.random.default_rng(5)
    found = copying_logits(model, num_samples=3, seed=5)
    start = [] if model.bos is None else [model.bos]
    for i in range(3):
        text = rng.permutation(allowed_ids(model))[:25].tolist()
        for layer, (x,) in enumerate(residual(model, [start + text])):
            for head in range(model.n_heads):
                logits = direct(model, layer, head, x[len(start) :])[:, text]
                own = [(row < row[t]).double().mean() * 25 / 24 for t, row in enumerate(logits)]
                null = [(row < row[(t + 1) % 25]).double().mean() * 25 / 24 for t, row in enumerate(logits)]
                assert found.own[i, layer, head] == pytest.approx(2 * np.mean(own) - 1, abs=0.004)
                assert found.null[i, layer, head] == pytest.approx(2 * np.mean(null) - 1, abs=0.004)


@pytest.mark.parametrize("name", VARIED)
def test_copying_eigenvalues_by_the_whole_map(name, monkeypatch):
    """The map of the heads' true outputs, with norms dividing: frozen at each token, they scale rows."""
    model, rng = random_model(name), np.random.default_rng([7, 0])
    ids = allowed_ids(model)
    monkeypatch.setattr(circuits, "EIGEN_TOKENS", 60)
    found = copying_eigenvalues(model, num_samples=1, seed=7).own[0]
    drawn = torch.from_numpy(rng.permutation(ids)[:60])
    x = alone(model, drawn)
    for layer, head in heads(model):
        circuit = model.head(layer, head)
        value = circuit.value(x[layer])
        logits = read_out(model, layer, circuit.output(value - value.mean(0)), drawn).double()
        logits = logits - logits.mean(-1, keepdim=True)  # no prediction sees it, and no eigenvalue does
        eigenvalues = np.linalg.eigvals(logits.numpy())
        expected = eigenvalues.sum().real / np.abs(eigenvalues).sum()
        assert found[layer, head] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", VARIED)
def test_copy_suppression_by_one_place_at_a_time(name):
    model = random_model(name)
    texts, ids = some_texts(model), torch.from_numpy(allowed_ids(model))
    found = copy_suppression(model, texts, seed=0).own
    place_of = {int(t): i for i, t in enumerate(ids)}
    for s, text in enumerate(texts):
        stream = residual(model, [text.tolist()])
        (batch,) = capture(model, [text.tolist()], ["blocks.*.attn.hook_pattern"])
        logits = model.forward(torch.from_numpy(text)[None]).logits[0][:, ids]
        for layer, head in heads(model):
            written, attended, expected = [], [], []
            for query in range(1, len(text)):  # all these families have a BOS
                key = 1 + int(batch[f"blocks.{layer}.attn.hook_pattern"][0, head, query, 1:].argmax())
                place = place_of.get(int(text[key]), -1)
                written.append(direct(model, layer, head, stream[layer][0, key])[ids])
                attended.append(max(place, 0))
                expected.append(place >= 0 and place in logits[query].topk(10).indices.tolist())
            down = suppressed_copying(torch.stack(written), torch.tensor(attended), torch.tensor(expected))
            assert found[s, layer, head] == pytest.approx(np.nan_to_num(down.item()), abs=0.03)


def test_texts_read_together_are_texts_read_alone():
    model = random_model("llama")
    texts = some_texts(model)
    together = copy_suppression(model, texts, seed=0).own
    for i, text in enumerate(texts):
        np.testing.assert_allclose(copy_suppression(model, pack([text]), seed=0).own[0], together[i], atol=1e-6)


# --- every family -------------------------------------------------------------------------------------------------


def all_measures(model: hl.Model, seed: int = 0) -> dict[str, Measured]:
    classes = [np.array([10, 11, 12]), np.array([30, 20, 40, 50])]
    return {
        "eigenvalues": copying_eigenvalues(model, num_samples=2, seed=seed),
        "top1": copying_top1(model, num_samples=9, seed=seed),
        "logits": copying_logits(model, num_samples=5, seed=seed),
        "successor": successor(model, classes, [True, False], seed=seed),
        "suppression": copy_suppression(model, some_texts(model), seed=seed),
    }


N_SAMPLES = {"eigenvalues": 2, "top1": 9, "logits": 5, "successor": 3 + 3, "suppression": 4}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_measure_runs_on_every_family(name):
    model = random_model(name)
    for measure, measured in all_measures(model).items():
        own, null = measured.own, measured.null
        least = 0 if measure in ("top1", "successor") else -1
        for values in (own, null):
            assert values.shape == (N_SAMPLES[measure], model.n_layers, model.n_heads), measure
            assert np.isfinite(values).all(), measure
            assert values.min() >= least, measure
            assert values.max() <= 1, measure
        assert measure == "top1" or not np.array_equal(own, null), measure  # 9 tokens of 97 are rarely on top


def test_half_precision():
    model = hl.load(build("gemma2", dtype=torch.bfloat16))
    expected = all_measures(random_model("gemma2"))
    for measure, measured in all_measures(model).items():
        assert np.isfinite(measured.own).all()
        assert np.abs(measured.own.mean(0) - expected[measure].own.mean(0)).mean() < 0.15, measure


def test_same_seed_same_numbers_other_seed_other_nulls():
    model = random_model("mistral")
    first, again, other = (all_measures(model, seed) for seed in (0, 0, 1))
    for measure in first:
        np.testing.assert_array_equal(first[measure].null, again[measure].null)
        assert not np.array_equal(first[measure].null, other[measure].null), measure


def test_effective_inputs_are_what_blocks_0_and_1_read():
    model = random_model("gpt_neox")
    stream = effective_inputs(model, torch.tensor([9, 4]))
    for place in (0, 1):
        for i, token in enumerate((9, 4)):
            torch.testing.assert_close(
                stream[place, i], alone(model, np.array([token]))[place][0], rtol=1e-4, atol=1e-5
            )


# --- heads set by hand --------------------------------------------------------------------------------------------

both = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


def named(c, measured: Measured) -> dict[str, tuple[float, float]]:
    return {name: (measured.own[:, i, j].mean(), measured.null[:, i, j].mean()) for (i, j), name in c.heads.items()}


@both
def test_hand_set_copying_heads(architecture):
    c = construction("copying", architecture)
    model = loaded(c)
    by_eigenvalue = named(c, copying_eigenvalues(model, num_samples=20, seed=0))
    by_top1 = named(c, copying_top1(model, num_samples=1000, seed=0))
    by_logit = named(c, copying_logits(model, num_samples=40, seed=0))
    for measured, right in ((by_eigenvalue, 1), (by_top1, 1), (by_logit, 1)):
        own, null = measured["copying"]
        assert own == pytest.approx(right, abs=1e-3)
        assert abs(null) < 0.1
    assert by_eigenvalue["anti_copying"][0] == pytest.approx(-1, abs=1e-3)
    assert by_top1["anti_copying"][0] == 0
    assert by_logit["anti_copying"][0] == pytest.approx(-1, abs=1e-3)
    assert by_eigenvalue["fake_copying"][0] < 0.2  # its eigenvalues are 1, but not once what all words share is gone
    assert by_top1["fake_copying"][0] == pytest.approx(1 / 63)
    assert abs(by_logit["fake_copying"][0]) < 0.1
    for measured in (by_eigenvalue, by_top1, by_logit):
        assert measured.get("uniform", (0, 0)) == (0, 0)  # writes nothing, exactly


@both
def test_hand_set_anti_induction_is_copy_suppression(architecture):
    c = construction("anti_induction", architecture)
    model = loaded(c)
    rng = np.random.default_rng(0)
    halves = [rng.permutation(np.arange(1, 64))[:25] for _ in range(40)]
    measured = copy_suppression(model, pack([[0, *h, *h] for h in halves]), seed=0)
    has_a_place = measured.own.any((1, 2))
    assert has_a_place.mean() > 0.8
    suppressed = named(c, Measured(measured.own[has_a_place], measured.null[has_a_place]))
    copied = named(c, copying_logits(model, num_samples=60, seed=0))
    assert suppressed["anti_induction"][0] > 0.99
    assert suppressed["induction"][0] < -0.99
    assert abs(suppressed["anti_induction"][1]) < 0.1
    assert copied["induction"][0] == pytest.approx(1, abs=1e-3)
    assert copied["anti_induction"][0] == pytest.approx(-1, abs=1e-3)
    assert abs(copied["induction_random_ov"][0]) < 0.25
    assert abs(copied["previous_token"][0]) < 0.2


@both
def test_hand_set_successor(architecture):
    c = construction("successor", architecture)
    model, months = loaded(c), np.arange(1, 13)
    found = named(c, successor(model, [months], [True], seed=0))
    assert found["successor"][0] == 1
    assert named(c, successor(model, [months[:7]], [False], seed=0))["successor"][0] == 1
    assert np.mean([named(c, successor(model, [months], [True], seed=s))["successor"][1] for s in range(30)]) < 0.2
    assert found.get("uniform", (0, 0)) == (0, 0)
    assert named(c, copying_top1(model, num_samples=12, seed=0))["successor"][0] == 0
    assert abs(named(c, copying_eigenvalues(model, num_samples=40, seed=0))["successor"][0]) < 0.25


def test_among_heads_of_all_kinds_each_measure_finds_its_own():
    c = construction("all_kinds")
    model, months = loaded(c), np.arange(1, 13)
    copies = {"induction", "copying", "sink"}  # the sink copies the words that it never attends to
    top1 = named(c, copying_top1(model, num_samples=63, seed=0))
    assert {name for name, (own, _) in top1.items() if own > 0.5} == copies
    logits = named(c, copying_logits(model, num_samples=60, seed=0))
    assert {name for name, (own, _) in logits.items() if own > 0.5} == copies
    assert {name for name, (own, _) in logits.items() if own < -0.5} == {"anti_induction", "anti_copying"}
    follows = named(c, successor(model, [months], [True], seed=0))
    assert {name for name, (own, _) in follows.items() if own > 0.5} == {"successor"}


# --- trained and untrained models ---------------------------------------------------------------------------------


def test_the_induction_head_of_a_trained_model_copies():
    model = hl.load("zoo:gpt2-small")
    scores = hl.heads.score(model, ["induction"], num_samples=16).table.to_pylist()
    best = max(scores, key=lambda row: row["score"])
    copying = copying_logits(model, num_samples=60, seed=0)
    assert copying.own[:, best["layer"], best["head"]].mean() > 0.8
    assert abs(copying.null[:, best["layer"], best["head"]].mean()) < 0.15


UNTRAINED = {
    "gpt2": tf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=301, bos_token_id=1, eos_token_id=2),
    "llama": tf.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=301,
        bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTRAINED)
def test_untrained_models_neither_copy_nor_succeed(name):
    torch.manual_seed(0)
    model = hl.load(tf.AutoModelForCausalLM.from_config(UNTRAINED[name]).eval())
    rng = np.random.default_rng(0)
    classes = list(rng.permutation(np.arange(3, 301))[:250].reshape(25, 10))
    texts = pack([[1, *rng.integers(3, 301, size=60)] for _ in range(40)])
    measured = {
        "eigenvalues": copying_eigenvalues(model, num_samples=30, seed=0),
        "top1": copying_top1(model, num_samples=300, seed=0),
        "logits": copying_logits(model, num_samples=100, seed=0),
        "successor": successor(model, classes, [True] * 25, seed=0),
        "suppression": copy_suppression(model, texts, seed=0),
    }
    for measure, found in measured.items():
        assert abs((found.own - found.null).mean()) < (0.15 if measure == "suppression" else 0.06), measure
    assert abs(measured["successor"].null.mean() - 0.1) < 0.03
    assert measured["top1"].null.mean() < 0.02


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refusals():
    model = random_model("gpt2")
    for measure in (copying_eigenvalues, copying_top1, copying_logits):
        with pytest.raises(DataError, match="num_samples must be 1 or more, not 0"):
            measure(model, num_samples=0, seed=0)
    with pytest.raises(DataError, match="There is no ordered class"):
        successor(model, [], [], seed=0)
    with pytest.raises(DataError, match="2 classes and 1 values of cyclic"):
        successor(model, [np.arange(3), np.arange(3)], [True], seed=0)
    with pytest.raises(DataError, match="Class 0 has 2 members"):
        successor(model, [np.arange(3, 5)], [True], seed=0)
    with pytest.raises(DataError, match="each once"):
        successor(model, [np.array([3, 4, 3])], [True], seed=0)
    with pytest.raises(DataError, match="outside the vocabulary"):
        successor(model, [np.array([3, 4, 97])], [True], seed=0)
    with pytest.raises(DataError, match="outside the vocabulary"):
        copy_suppression(model, pack([[1, 3, 97]]), seed=0)
    with pytest.raises(DataError, match="nothing to read"):
        copy_suppression(model, pack([]), seed=0)
    with pytest.raises(DataError, match="No head attends to a token that the model expects"):
        copy_suppression(model, pack([[1]]), seed=0)


@pytest.mark.parametrize("call", [lambda m: copying_top1(m, num_samples=2, seed=0),
                                  lambda m: successor(m, [np.arange(3)], [True], seed=0)])  # fmt: skip
def test_encoders_are_refused(call):
    with pytest.raises(UnsupportedArchitecture, match="taken apart"):
        call(hl.load(build("bert")))


def test_an_unembedding_of_another_width_is_refused():
    model = hl.load(build("gpt2"))
    model.hf.lm_head = torch.nn.Linear(24, 97, bias=False)
    with pytest.raises(UnsupportedArchitecture, match="reads 24 dimensions and the residual stream has 48"):
        unembedding(model)
