"""Tokens that heads write and match: slow copies of every list, hand-set heads, and what must change nothing."""

import functools

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import headlens as hl
from headlens import zoo
from headlens._errors import DataError, ResultError, UnsupportedArchitecture
from headlens.data.tokens import tokenize
from headlens.heads import HeadScores, circuit_tokens
from headlens.heads.circuit_tokens import CIRCUITS_SCHEMA, LISTS, HeadCircuits, head_circuits, token_texts
from headlens.heads.read_out import effective_inputs, read_out
from headlens.heads.setting import allowed_ids
from headlens.tracing import capture
from tests.families import ENCODERS, build
from tests.zoo.constructions import construction, loaded

FAMILIES = ("gpt2", "opt", "gptj", "gpt_neox", "llama", "mistral", "qwen3", "gemma2")
OFFSETS = (0, 1, 4, 9)
N, TOP, SEED = 14, 6, 3


@functools.cache
def model_of(family: str) -> hl.Model:
    return hl.load(build(family))


@functools.cache
def circuits_of(family: str) -> HeadCircuits:
    return head_circuits(model_of(family), n_tokens=N, top=TOP, offsets=OFFSETS, seed=SEED)


def rows_of(result: HeadCircuits, **wanted) -> list[dict]:
    return [row for row in result.table.to_pylist() if all(row[name] == x for name, x in wanted.items())]


def drawn_ids(model: hl.Model) -> np.ndarray:
    ids = allowed_ids(model)
    return ids[np.sort(np.random.default_rng(SEED).permutation(len(ids))[:N])]


def number(token: str) -> int:
    return int(token.removeprefix("#"))


# --- a slow copy of every list -----------------------------------------------------------------------------------


def slow_logits(model: hl.Model, layer: int, head: int) -> np.ndarray:
    """(source, target): all direct logits, less the mean over targets; one token at a time."""
    h, ids = model.head(layer, head), torch.from_numpy(allowed_ids(model))
    with torch.no_grad():
        found = []
        for token in drawn_ids(model):
            x = effective_inputs(model, torch.tensor([token]))[min(layer, 1), 0]
            found.append(read_out(model, layer, h.output(h.value(x)), ids))
    logits = torch.stack(found).double().numpy()
    return logits - logits.mean(-1, keepdims=True)


def learned_position(model: hl.Model, place: int) -> torch.Tensor | float:
    stack = model.stack
    if hasattr(stack, "wpe"):
        return stack.wpe.weight[place].detach()
    return stack.embed_positions.weight[place + 2].detach() if hasattr(stack, "embed_positions") else 0.0


def slow_scores(model: hl.Model, layer: int, head: int, keys: list[torch.Tensor], at: list[int]) -> np.ndarray:
    """(offset, query, key), before the mean is taken off; positions are counted from another origin."""
    h, ids = model.head(layer, head), torch.from_numpy(drawn_ids(model))
    start = 30
    with torch.no_grad():
        queries = effective_inputs(model, ids)[min(layer, 1)] - learned_position(model, 1)
        scores = [
            [[h.cap(h.score(q, k, at=(start, start - offset))) for k in keys] for q in queries]
            for offset in at
        ]  # fmt: skip
    return np.array(scores, dtype=np.float64)


def centred(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(axis=(0, 2), keepdims=True)


def visible(model: hl.Model, layer: int) -> list[int]:
    window = model.head(layer, 0).window
    return [offset for offset in OFFSETS if window is None or offset < window]


def check(rows: list[dict], table: np.ndarray, sources: np.ndarray, targets: np.ndarray, *, largest: bool) -> None:
    """Rows hold the extreme entries of the table, in order, and each one names the entry that it holds."""
    ordered = np.sort(table.ravel())
    expected = ordered[::-1][:TOP] if largest else ordered[:TOP]
    scale = float(np.abs(table).max())
    assert [row["rank"] for row in rows] == list(range(TOP))
    assert [row["value"] for row in rows] == pytest.approx(list(expected), abs=1e-4 * scale)
    row_of, column_of = ({int(x): i for i, x in enumerate(ids)} for ids in (sources, targets))
    for row in rows:
        here = table[row_of[number(row["source"])], column_of[number(row["target"])]]
        assert row["value"] == pytest.approx(here, abs=1e-4 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_tokens_are_those_of_the_slow_copy(family):
    model, result = model_of(family), circuits_of(family)
    ordinary, drawn = allowed_ids(model), drawn_ids(model)
    own = np.searchsorted(ordinary, drawn)
    for layer, head in ((0, 1), (2, 3)):
        logits = slow_logits(model, layer, head)
        of = functools.partial(rows_of, result, layer=layer, head=head, side="ov", offset=None)
        check(of(list="raised"), logits, drawn, ordinary, largest=True)
        check(of(list="lowered"), logits, drawn, ordinary, largest=False)
        diagonal = logits[np.arange(len(drawn)), own]
        for name, order in (("copied", np.argsort(-diagonal)), ("suppressed", np.argsort(diagonal))):
            rows = of(list=name)
            assert [row["value"] for row in rows] == pytest.approx(list(diagonal[order[:TOP]]), abs=1e-4)
            assert [row["source"] for row in rows] == [row["target"] for row in rows]
            assert [row["source"] for row in rows] == [f"#{drawn[i]}" for i in order[:TOP]]
        for row in of():
            source = logits[np.searchsorted(drawn, number(row["source"]))]
            target = np.searchsorted(ordinary, number(row["target"]))
            slack = 1e-5 * np.abs(source).max()
            assert (
                (source > source[target] + slack).sum() <= row["place"] <= (source > source[target] - slack).sum() - 1
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_matched_tokens_are_those_of_the_slow_copy(family):
    model, result = model_of(family), circuits_of(family)
    drawn = drawn_ids(model)
    for layer, head in ((0, 1), (2, 3)):
        at = [0] if model.head(layer, head).rotary is None else visible(model, layer)
        keys = list(effective_inputs(model, torch.from_numpy(drawn))[min(layer, 1)] - learned_position(model, 1))
        scores = centred(slow_scores(model, layer, head, keys, at))
        names = [None] if model.head(layer, head).rotary is None else at
        found = rows_of(result, layer=layer, head=head, list="attended")
        assert list(dict.fromkeys(row["offset"] for row in found)) == names
        for offset, some in zip(names, scores, strict=True):
            check([row for row in found if row["offset"] == offset], some, drawn, drawn, largest=True)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_keys_after_a_token_are_read_from_the_true_stream(family):
    model, result = model_of(family), circuits_of(family)
    drawn, layer, head = drawn_ids(model), 2, 1
    followers = np.random.default_rng(SEED).choice(allowed_ids(model), 4, replace=False)
    site = f"blocks.{layer}.hook_resid_pre"
    rotary = model.head(layer, head).rotary is not None
    at = [max(visible(model, layer)) if rotary else 0]
    scores = []
    for follower in followers:
        ids = torch.tensor([[model.bos, token, follower] for token in drawn])
        (batch,) = capture(model, ids, {site: None}, batch_tokens=10_000)
        scores.append(slow_scores(model, layer, head, list(batch[site][:, 2] - learned_position(model, 2)), at))
    rows = rows_of(result, layer=layer, head=head, list="matched")
    assert {row["offset"] for row in rows} == {at[0] if rotary else None}
    check(rows, centred(np.mean(scores, axis=0))[0], drawn, drawn, largest=True)
    assert not rows_of(result, layer=0, list="matched")


def test_a_few_rows_at_a_time_give_the_same_table(monkeypatch):
    whole = circuits_of("llama").table
    monkeypatch.setattr(circuit_tokens, "_AT_ONCE", 500)
    again = head_circuits(model_of("llama"), n_tokens=N, top=TOP, offsets=OFFSETS, seed=SEED).table
    assert again.drop_columns(["value"]) == whole.drop_columns(["value"])
    assert np.allclose(again["value"], whole["value"], atol=1e-5)


def test_what_a_position_adds_is_no_match_of_tokens():
    """Scores of layer 0 do not change when all learned positions do."""
    changed = build("gpt2")
    with torch.no_grad():
        changed.transformer.wpe.weight.normal_(generator=torch.Generator().manual_seed(1))
    result = head_circuits(hl.load(changed), n_tokens=N, top=TOP, offsets=OFFSETS, seed=SEED)
    for name, same in (("attended", True), ("raised", False)):
        before, after = (
            [row["value"] for row in rows_of(r, layer=0, head=2, list=name)] for r in (circuits_of("gpt2"), result)
        )
        assert np.allclose(before, after, atol=1e-4) == same


# --- hand-set heads -----------------------------------------------------------------------------------------------


@functools.cache
def constructed_circuits(name: str, architecture: str) -> HeadCircuits:
    return head_circuits(loaded(construction(name, architecture)), top=12)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_successor_head_raises_what_comes_next(architecture):
    rows = rows_of(constructed_circuits("successor", architecture), list="raised", head=0)
    months = [
        " " + month for month in construction("successor", architecture).tokenizer.get_vocab() if month != "<bos>"
    ]
    calendar = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    following = {f" {m}": f" {calendar[(i + 1) % 12]}" for i, m in enumerate(calendar)}
    assert {row["source"]: row["target"] for row in rows} == following
    assert set(following) <= set(months)
    assert {row["place"] for row in rows} == {0}
    assert len({round(row["value"], 1) for row in rows}) == 1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_copying_head_copies_and_its_negative_suppresses(architecture):
    result = constructed_circuits("copying", architecture)
    copying, anti = (functools.partial(rows_of, result, layer=0, head=head) for head in (0, 1))
    assert all(row["source"] == row["target"] and row["place"] == 0 for row in copying(list="raised"))
    assert all(row["value"] > 0 and row["place"] == 0 for row in copying(list="copied"))
    assert all(row["source"] == row["target"] and row["place"] == 62 for row in anti(list="lowered"))
    assert all(row["value"] < 0 and row["place"] == 62 for row in anti(list="suppressed"))
    assert not any(row["source"] == row["target"] for row in anti(list="raised"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_induction_head_looks_for_what_came_after_the_same_token(architecture):
    result = constructed_circuits("induction", architecture)
    rows = rows_of(result, layer=1, head=0, list="matched")
    assert len(rows) == 12
    for row in rows:
        assert row["source"] == row["target"]
        assert row["value"] == pytest.approx(60 * (1 - 1 / 63), rel=1e-3)
    for row in rows_of(result, layer=1, head=0, list="attended"):
        assert row["value"] == pytest.approx(0, abs=1e-3), "what a key itself is does not matter to it"


def test_a_previous_token_head_looks_one_place_back_whatever_stands_there():
    result = constructed_circuits("induction", "llama")
    by_offset = {
        offset: {round(row["value"], 2) for row in rows_of(result, layer=0, head=0, list="attended", offset=offset)}
        for offset in circuit_tokens.OFFSETS
    }
    assert all(len(values) == 1 for values in by_offset.values()), "all pairs score alike"
    assert max(by_offset, key=lambda offset: max(by_offset[offset])) == 1
    learned = rows_of(constructed_circuits("induction", "gpt2"), layer=0, head=0, list="attended")
    assert {row["offset"] for row in learned} == {None}
    assert max(abs(row["value"]) for row in learned) < 1e-3, "learned positions are no tokens"


def test_a_duplicate_token_head_matches_each_token_with_itself():
    rows = rows_of(constructed_circuits("duplicate_token", "gpt2"), layer=0, head=0, list="attended")
    assert all(row["source"] == row["target"] for row in rows)
    assert rows[0]["value"] == pytest.approx(60 * (1 - 1 / 63), rel=1e-3)


# --- the table ----------------------------------------------------------------------------------------------------


def test_rows_are_complete_sorted_and_come_back_from_disk(tmp_path):
    result = circuits_of("mistral")
    assert result.table.schema.equals(CIRCUITS_SCHEMA)
    keys = [(row["layer"], row["head"], list(LISTS).index(row["list"])) for row in result.table.to_pylist()]
    assert keys == sorted(keys)
    assert len({k[:2] for k in keys}) == 3 * 4
    assert all(row["side"] == LISTS[row["list"]] for row in result.table.to_pylist())
    assert {row["offset"] for row in rows_of(result, list="attended")} == {0, 1, 4}, "9 back is out of the window of 6"
    assert HeadCircuits.load(result.save(tmp_path / "c")) == result
    with pytest.raises(ResultError, match=r"Call HeadCircuits\.load"):
        HeadScores.load(tmp_path / "c")
    made = result.provenance.data["circuits"]
    assert made == {"tokens": N, "of": len(allowed_ids(model_of("mistral"))), "top": TOP, "offsets": list(OFFSETS)}
    assert result.provenance.seed == SEED


def test_the_same_seed_reads_the_same_tokens_and_another_one_others():
    def read(seed: int) -> list[str]:
        table = head_circuits(model_of("llama"), n_tokens=10, top=10, offsets=[1], seed=seed).table
        return pc.unique(table["source"]).to_pylist()

    assert read(0) == read(0)
    assert set(read(0)) != set(read(1))
    assert len(set(read(0))) == 10


def test_a_small_vocabulary_is_read_whole():
    result = head_circuits(model_of("llama"), top=200, offsets=[1])
    rows = rows_of(result, layer=1, head=1, list="copied")
    assert sorted(number(row["source"]) for row in rows) == allowed_ids(model_of("llama")).tolist()


@pytest.mark.parametrize("name", ["word", "bpe-300", "bpe-1200", "characters"])
def test_texts_of_tokens_put_together_are_the_text(name):
    import transformers as tf

    tokenizer = tf.AutoTokenizer.from_pretrained(zoo.tokenizer_path(name))
    text = "Tom came home, and Mary brought a lemon to Tom."
    ids = tokenize([text], tokenizer).ids
    first, *rest = token_texts(tokenizer, np.concatenate([ids[-1:], ids]))[1:]
    assert first.strip() + "".join(rest) == text


def test_tokens_without_a_tokenizer_are_numbers():
    assert token_texts(None, np.array([7, 96])) == ["#7", "#96"]


def test_wrong_questions_are_refused():
    model = model_of("llama")
    for options in ({"n_tokens": 1}, {"top": 0}, {"offsets": []}, {"offsets": [-1]}, {"offsets": [128, 500]}):
        with pytest.raises(DataError):
            head_circuits(model, **options)
    with pytest.raises(UnsupportedArchitecture):
        head_circuits(build(next(iter(ENCODERS))))
