"""Kinds of head, set by hand: the numbers of each construction's proof, from forward passes and from `hl.heads.score`."""

import math

import pytest
import torch

import headlens as hl
from headlens.data import repeats
from headlens.zoo import constructed
from headlens.zoo.constructed.vocabulary import MONTHS, WORDS
from tests.zoo.constructions import construction, directions, loaded, read, scores_of_last

both = pytest.mark.parametrize("architecture", ["gpt2", "llama"])
PERIOD = 20


def scores(c, kind: str, *, max_gap: int = 39, column: str = "score", n: int = 40) -> dict[tuple[int, int], float]:
    """Per head, of BOS R G R with |R| = 20."""
    stimulus = repeats(range(1, len(c.tokenizer)), n=n, length=PERIOD, max_gap=max_gap, bos=0, seed=0)
    rows = hl.heads.score(loaded(c), [kind], stimulus=stimulus).table.to_pylist()
    return {(row["layer"], row["head"]): row[column] for row in rows}


def near(x: float, within: float = 1e-5):
    return pytest.approx(x, abs=within)


# --- induction and its impostor ------------------------------------------------------------------------------


@both
def test_induction(architecture):
    c = construction("induction", architecture)
    seen = read(c, "cat red fox cat")
    assert seen.attends(0, 0) == {"<bos>": near(0), "cat": near(0), "red": near(0), "fox": near(1)}
    assert scores_of_last(c, "cat red fox cat", 1, 0) == [near(x, 1e-4) for x in (30, 0, 60, 0, 0)]
    assert seen.attends(1, 0)["red"] == near(1)
    assert seen.raised(c) == {"red": near(10, 1e-4)}
    assert float(seen.logits[-1].softmax(-1)[c.tokenizer.convert_tokens_to_ids("red")]) == near(0.9971, 5e-5)
    assert read(c, "cat red fox").attends(1, 0)["<bos>"] == near(1)
    assert read(c, "cat red fox").raised(c) == {}
    assert scores(c, "induction")[1, 0] == near(1)
    assert scores(c, "induction", column="null")[1, 0] == near(0)
    assert scores(c, "previous_token")[0, 0] == near(1)
    assert scores(c, "previous_token")[1, 0] < 0.02  # a first word that follows itself at gap 0


@both
def test_induction_divides_among_what_followed(architecture):
    seen = read(construction("induction", architecture), "cat red fox cat owl cat red cat")
    assert seen.attends(1, 0) == {"red": near(2 / 3), "owl": near(1 / 3)} | dict.fromkeys(
        ("<bos>", "cat", "fox"), near(0)
    )


@both
def test_a_positional_head_passes_for_induction_at_a_fixed_gap_only(architecture):
    c = construction("impostor", architecture)
    assert c.heads[0, 1] == "impostor"
    fixed, control = scores(c, "induction", max_gap=0), scores(c, "induction", max_gap=0, column="null")
    assert (fixed[0, 1], fixed[1, 0]) == (near(1), near(1))
    assert (control[0, 1], control[1, 0]) == (near(1), near(0))
    random = scores(c, "induction", n=150)
    assert random[0, 1] == pytest.approx(1 / 40, abs=0.025)
    assert random[1, 0] == near(1)


def test_an_impostor_of_another_period():
    c = constructed.build("impostor", length=8)
    stimulus = repeats(range(1, 64), n=5, length=8, max_gap=0, bos=0, seed=0)
    rows = hl.heads.score(loaded(c), ["induction"], stimulus=stimulus).table.to_pylist()
    assert {(r["layer"], r["head"]): r["score"] for r in rows}[0, 1] == near(1)
    assert scores(c, "induction", max_gap=0)[0, 1] == near(0)


# --- duplicate token, sinks, successor ---------------------------------------------------------------------------


def test_duplicate_token():
    c = construction("duplicate_token")
    assert scores_of_last(c, "cat red cat", 0, 0) == [near(x, 1e-4) for x in (30, 60, 0, -60)]
    assert read(c, "cat red cat").patterns[0, 0][-1].tolist() == [near(0), near(1), near(0), near(0)]
    assert read(c, "cat red cat fox cat").patterns[0, 0][-1].tolist() == [near(x) for x in (0, 0.5, 0, 0.5, 0, 0)]
    assert read(c, "cat red fox").attends(0, 0)["<bos>"] == near(1)
    assert read(c, "cat red cat").raised(c) == {}
    assert scores(c, "duplicate_token")[0, 0] == near(1)
    assert scores(c, "duplicate_token", column="null")[0, 0] == near(0)
    assert scores(c, "induction")[0, 0] == near(0)


@both
def test_sinks(architecture):
    c = construction("sink", architecture)
    seen = read(c, "cat red fox")
    assert scores_of_last(c, "cat red fox", 0, 0) == [near(x, 1e-4) for x in (30, 0, 0, 0)]
    assert scores_of_last(c, "cat red fox", 0, 1) == [near(x, 1e-4) for x in (60, 0, 0, 60 - math.log(99))]
    assert seen.patterns[0, 0][:, 0].tolist() == [near(1)] * 4
    assert seen.attends(0, 1) == {"<bos>": near(0.99), "fox": near(0.01), "cat": near(0), "red": near(0)}
    assert seen.raised(c) == {"fox": near(0.1, 1e-4), "<bos>": near(0.099, 1e-4)}
    assert (scores(c, "sink")[0, 0], scores(c, "induction")[0, 0], scores(c, "previous_token")[0, 0]) == (
        near(1),
        near(0),
        near(0),
    )


@both
def test_weighing_by_value_shows_what_a_sink_hides(architecture):
    """A[q, q] = .01 and |value of BOS| = .01: half of what arrives is the word's, by value and by output alike."""
    c = construction("sink", architecture)
    head = loaded(c).head(0, 1)
    embedded = c.model.get_input_embeddings().weight[[0, 5]]
    for lengths in (head.value(embedded).norm(dim=-1), head.output(head.value(embedded)).norm(dim=-1)):
        bos, word = lengths.tolist()
        assert (bos, word) == (near(0.01), near(1))
        assert 0.01 * word / (0.01 * word + 0.99 * bos) == near(0.5025, 5e-5)
    silent = loaded(c).head(0, 0)
    assert silent.output(silent.value(embedded))[0].abs().max() < 1e-12


@both
def test_successor(architecture):
    c = construction("successor", architecture)
    for i, month in enumerate(MONTHS):
        seen = read(c, f"May {month}")
        assert seen.patterns[0, 0][-1].tolist() == [near(0), near(0), near(1)]
        assert seen.raised(c) == {MONTHS[(i + 1) % 12]: near(10, 1e-4)}


# --- what heads write ----------------------------------------------------------------------------------------------


def written(c, layer: int, head: int) -> torch.Tensor:
    """The whole OV circuit of one head over words, from embedding to logits: (word seen, word raised)."""
    one = loaded(c).head(layer, head)
    embedded = c.model.get_input_embeddings().weight[1:]
    return one.output(one.value(embedded)) @ c.model.lm_head.weight[1:].T


def eigenvalue_score(circuit: torch.Tensor) -> float:
    eigenvalues = torch.linalg.eigvals(circuit.double())
    return float(eigenvalues.sum().real / eigenvalues.abs().sum())


def own_on_top(circuit: torch.Tensor) -> float:
    return float((circuit.argmax(1) == torch.arange(len(circuit))).double().mean())


@both
def test_what_copying_heads_write(architecture):
    c = construction("copying", architecture)
    n = len(WORDS)
    for (head, kind), eigenvalues, top in zip(
        enumerate(("copying", "anti_copying", "fake_copying")), (1, -1, 1), (1, 0, 1 / n), strict=True
    ):
        assert c.heads[0, head] == kind
        circuit = written(c, 0, head)
        assert own_on_top(circuit) == near(top)
        if kind != "fake_copying":
            assert eigenvalue_score(circuit) == near(eigenvalues, 1e-6)
            torch.testing.assert_close(circuit, 10 * eigenvalues * torch.eye(n), atol=1e-4, rtol=0)
    # so far from normal is this one that rounding moves its eigenvalues: it is triangular, they are its diagonal
    torch.testing.assert_close(circuit, 10 * (torch.eye(n) + 5 * torch.ones(n, n).triu(1)), atol=1e-4, rtol=0)


@both
def test_what_copying_heads_give(architecture):
    c = construction("copying", architecture)
    seen = read(c, "cat cat red")
    for head in range(3):
        assert seen.patterns[0, head][-1].tolist() == [near(0.25)] * 4
    order = {w: i for i, w in enumerate(WORDS)}
    for word, logit in zip(("<bos>", *WORDS), seen.logits[-1].tolist(), strict=True):
        before = sum(order[seen_word] < order.get(word, -1) for seen_word in ("cat", "cat", "red"))
        assert logit == near(10 / 4 * (["cat", "cat", "red"].count(word) + 5 * before), 1e-3)


@both
def test_successor_circuit(architecture):
    circuit = written(construction("successor", architecture), 0, 0)
    assert eigenvalue_score(circuit) == near(0)
    assert own_on_top(circuit) == 0
    assert circuit.argmax(1).tolist() == [(i + 1) % 12 for i in range(12)]


@both
def test_three_heads_attend_like_induction_and_one_is(architecture):
    c = construction("anti_induction", architecture)
    assert [c.heads[1, head] for head in range(3)] == ["induction", "induction_random_ov", "anti_induction"]
    assert [scores(c, "induction")[1, head] for head in range(3)] == [near(1)] * 3
    circuits = [written(c, 1, head) for head in range(3)]
    assert [eigenvalue_score(circuit) for circuit in circuits] == [near(1), near(0, 0.1), near(-1)]
    assert [own_on_top(circuit) for circuit in circuits] == [1, near(0, 0.05), 0]
    assert float(circuits[1].std()) == pytest.approx(10 / 8, rel=0.05)


@both
def test_ablating_one_of_two_heads_that_cancel(architecture):
    c = construction("anti_induction", architecture)
    model, ids = loaded(c), torch.tensor([c.tokenizer("cat red fox cat")["input_ids"]])
    red = c.tokenizer.convert_tokens_to_ids("red")
    noise = float(written(c, 1, 1)[red - 1, red - 1])

    def logit(*heads: int) -> float:
        with torch.no_grad(), hl.edit(model, [hl.ablate("blocks.1.attn.hook_z", head=h) for h in heads]):
            return float(c.model(ids).logits[0, -1, red])

    with torch.no_grad():
        assert float(c.model(ids).logits[0, -1, red]) == near(noise, 1e-4)
    assert logit(2) == near(noise + 10, 1e-4)
    assert logit(0) == near(noise - 10, 1e-4)
    assert logit(1) == near(0, 1e-4)


def test_noise_is_always_the_same():
    once = {pair[:2]: pair[2] for pair in construction("anti_induction").wiring[1, 1].move}
    again = {pair[:2]: pair[2] for pair in constructed.build("anti_induction").wiring[1, 1].move}
    assert once == again
    assert once["token:January", "output:January"] == pytest.approx(
        torch.randn(63, 63, generator=torch.Generator().manual_seed(0))[0, 0].item() / 8
    )


# --- one of every kind -------------------------------------------------------------------------------------------------


def test_all_kinds_has_every_kind_once():
    c = construction("all_kinds")
    others = {
        kind
        for name in ("induction", "impostor", "duplicate_token", "successor", "copying", "anti_induction")
        for kind in construction(name).heads.values()
    }
    assert sorted(c.heads.values()) == sorted(others | {"self", "sink", "offset_3"})
    patterns = read(c, list(range(60))).patterns
    assert patterns[0, 4].diagonal(-3).min() == near(1)
    assert patterns[0, 5].diagonal(-19).min() == near(1)


# --- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "offset"), [("induction", (0, 0), 1), ("successor", (0, 0), 0), ("impostor", (0, 1), 19)]
)
def test_a_rotary_head_looks_back_as_its_proof_says(name, place, offset):
    head = loaded(construction(name, "llama")).head(*place)
    x = directions(construction(name, "llama"), "constant")
    q, k = torch.tensor(99), torch.arange(100)
    score = head.scale * head.key(x.expand(100, -1), k) @ head.query(x[0], q)
    turned = (99 - offset - k)[:, None] * torch.tensor([10 ** (-j / 4) for j in range(4)])
    torch.testing.assert_close(score, 30 * turned.cos().sum(1), atol=1e-2, rtol=0)
    others = torch.cat((score[: 99 - offset], score[100 - offset :]))
    assert float(score[99 - offset]) == near(120, 1e-3)
    assert float(score[99 - offset] - others.max()) == near(0.679 * 30, 0.02)
    assert math.exp(-0.679 * 30) == pytest.approx(1.4e-9, rel=0.05)


@both
def test_a_match_is_worth_the_same_at_any_distance(architecture):
    c = construction("induction", architecture)
    head = loaded(c).head(1, 0)
    x = c.features["token:cat"], c.features["previous:cat"]
    near_by, far = (float(head.score(*x, at=(99, k))) for k in (99, 0))
    assert near_by == near(60, 1e-4)
    assert far == near(60, 1e-4)
