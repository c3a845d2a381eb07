"""A comparison counts what a slow count would, puts sets side by side, and can be shown anywhere."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from headlens._errors import DataError, OutputError, ResultError
from headlens._statistics import DRAWS, Resampling
from headlens.probes.experiments.compare import Comparison, compare
from headlens.probes.experiments.comparison_text import FILES, Block, _lines, blocks, markdown, save_comparison
from headlens.probes.experiments.pieces import Piece
from headlens.probes.experiments.text_sweep import beside, sweep_direction, sweep_texts
from headlens.probes.sweep import sweep
from headlens.store.rows import as_rows
from tests.probes.test_text_sweep import data

SITES = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
LESS = {"penalties": (0.1,), "steps": 20}


@pytest.fixture(scope="module")
def pieces() -> dict:
    """Two sets of one model at two sites, and what the texts say; and controls of the first set."""
    rows, texts = data(90)
    rng, found = np.random.default_rng(1), {}
    for k, site in enumerate(SITES):
        noisy = [x + np.float32(k) * rng.normal(size=x.shape).astype(np.float32) for x in rows]
        at = {"split": texts.splits, **LESS}
        wide = sweep(
            {site: noisy}, texts.labels, poolings=("mean", "last", "attention"), heads=(1, 2), seeds=(0, 1), **at
        )
        wide = beside(wide, [sweep_direction(as_rows(noisy), texts, site, split=texts.splits)])
        found[Piece("wide", "words", "llama", site)] = wide
        solved = sweep({site: noisy}, texts.labels, poolings=("mean",), optimizers=("lbfgs",), **at)
        solved = beside(solved, [sweep_direction(as_rows(noisy), texts, site, split=texts.splits)])
        found[Piece("solved", "words", "llama", site)] = solved
        nothing = rng.permutation(texts.labels)
        for control in ("permuted_labels", "control_task"):
            one = sweep({site: noisy}, nothing, poolings=("mean", "last"), **at)
            found[Piece("wide", "words", "llama", site, control)] = one
    for set_ in ("wide", "solved"):
        found[Piece(set_, "words", None, "")] = sweep_texts(texts, split=texts.splits)
    return found


@pytest.fixture(scope="module")
def found(pieces) -> Comparison:
    return compare(pieces)


def test_sets_stand_side_by_side_by_names_that_tell_them_apart(found):
    assert found.names == ["majority", "bag_of_words", "random_direction", "mean (adamw)", "last", "attention-1",
                           "attention-2", "mean (lbfgs)"]  # fmt: skip
    assert [cell[:4] for cell in found.cells] == [("wide + solved", "words", "llama", site) for site in SITES]
    assert [cell[4] for cell in found.cells] == [0, 2]
    assert found.values.num_rows == 16 and found.gains.num_rows == 2 * 8 * 7 // 2


def test_sets_with_one_config_twice_are_cells_of_their_own(pieces):
    twice = {**pieces, Piece("again", "words", "llama", SITES[0]): pieces[Piece("wide", "words", "llama", SITES[0])]}
    cells = compare(twice).cells
    assert sorted(cell[0] for cell in cells) == ["again", "wide + solved", "wide + solved"]
    titles = [block.title for block in blocks(compare(twice))]
    assert "words (again): every pooling at every site" in titles


def test_values_and_verdicts_are_those_of_a_slow_count(pieces, found):
    """AUROC by scikit-learn on every draw, document by document."""
    site = SITES[1]
    sweep_ = pieces[Piece("wide", "words", "llama", site)]
    judged = np.flatnonzero(sweep_.rounds >= 0)
    counts = np.vstack([np.ones(len(sweep_.codes), int), Resampling(len(sweep_.codes), seed=0, draws=DRAWS).take(90)])[
        :121
    ]
    drawn = {}
    for pooling in ("mean", "last"):
        i = next(i for i, config in enumerate(sweep_.configs) if config.pooling == pooling)
        drawn[pooling] = np.array([
            np.mean([roc_auc_score(sweep_.codes[judged], logits[judged, 0], sample_weight=draw[judged])
                     for logits in sweep_.logits[i]])
            for draw in counts
        ])  # fmt: skip
    rows = {row["name"]: row for row in found.values.to_pylist() if row["site"] == site}
    names = {"mean": "mean (adamw)", "last": "last"}
    for pooling, name in names.items():
        assert rows[name]["value"] == pytest.approx(drawn[pooling][0])
        low, high = np.quantile(drawn[pooling][1:], [0.025, 0.975])
        assert (rows[name]["low"], rows[name]["high"]) == pytest.approx((low, high), abs=0.04)
    (gain,) = (
        r for r in found.gains.to_pylist() if (r["site"], r["name"], r["other_name"]) == (site, "mean (adamw)", "last")
    )
    gap = drawn["mean"] - drawn["last"]
    assert gain["gain"] == pytest.approx(gap[0])
    assert (gain["low"], gain["high"]) == pytest.approx(tuple(np.quantile(gap[1:], [0.025, 0.975])), abs=0.05)
    assert gain["verdict"] == ("win" if gain["low"] > 0 else "loss" if gain["high"] < 0 else "tie")


def test_pairs_count_both_ways_round(found):
    pairs = {(pair.name, pair.other): pair for pair in found.pairs()}
    assert len(pairs) == 8 * 7
    for (name, other), pair in pairs.items():
        rows = [r for r in found.gains.to_pylist() if {r["name"], r["other_name"]} == {name, other}]
        turned = {
            True: {"win": "win", "loss": "loss", "tie": "tie"},
            False: {"win": "loss", "loss": "win", "tie": "tie"},
        }
        said = [turned[row["name"] == name][row["verdict"]] for row in rows]
        assert [pair.wins, pair.ties, pair.losses] == [said.count(one) for one in ("win", "tie", "loss")]
        gains = [row["gain"] * (1 if row["name"] == name else -1) for row in rows]
        assert (pair.cells, pair.gain, pair.higher) == (2, pytest.approx(np.mean(gains)), sum(g > 0 for g in gains))
        back = pairs[other, name]
        assert (back.wins, back.ties, back.losses, back.gain) == (
            pair.losses,
            pair.ties,
            pair.wins,
            pytest.approx(-pair.gain),
        )
        verdicts = found.verdicts(name, other)
        assert [len(verdicts[one]) for one in ("win", "tie", "loss")] == [pair.wins, pair.ties, pair.losses]


def test_less_is_better_where_it_is(pieces):
    auroc, loss = (compare(pieces, metric=one) for one in ("auroc", "log_loss"))
    for better, other in (("bag_of_words", "majority"),):
        for comparison in (auroc, loss):
            pair = next(p for p in comparison.pairs() if (p.name, p.other) == (better, other))
            assert (pair.wins, pair.losses) == (2, 0) and pair.gain > 0
    (block,) = (one for one in blocks(loss) if one.title.startswith("words"))
    column = [float(row[1].split()[0]) for row in block.table[1:]]
    (strong,) = [i for i, j in block.strong if j == 1]
    assert column[strong] == min(column)


def test_heads_are_counted_against_the_fewest(found):
    one, two = found.heads().to_pylist()
    assert (one["n_heads"], two["n_heads"], two["over"]) == (1, 2, 1)
    values = {row["name"]: [] for row in found.values.to_pylist()}
    for row in found.values.to_pylist():
        values[row["name"]].append(row["value"])
    assert one["value"] == pytest.approx(np.mean(values["attention-1"]))
    assert two["gain"] == pytest.approx(two["value"] - one["value"]) and one["gain"] is None
    pair = next(p for p in found.pairs() if (p.name, p.other) == ("attention-2", "attention-1"))
    assert (two["wins"], two["ties"], two["losses"]) == (pair.wins, pair.ties, pair.losses)
    assert 0 < two["entropy"] < 1


def test_entropy_is_that_of_the_chosen_probes(pieces, found):
    for row in found.values.to_pylist():
        table = pieces[Piece("wide", "words", "llama", row["site"])].table.to_pylist()
        own = [r["entropy"] for r in table if r["chosen"] and r["pooling"] == row["pooling"] == "attention"
               and r["n_heads"] == row["n_heads"]]  # fmt: skip
        assert row["entropy"] == (pytest.approx(np.mean(own)) if own else None)


def test_controls_are_told_by_cell_and_config(pieces, found):
    rows = found.controls.to_pylist()
    assert {(row["control"], row["name"]) for row in rows} == {
        (control, name) for control in ("permuted_labels", "control_task") for name in ("mean (adamw)", "last")
    }
    assert len(rows) == 8 and {row["site"] for row in rows} == set(SITES)
    for row in rows:
        piece = Piece("wide", "words", "llama", row["site"])
        if row["control"] == "permuted_labels":
            own = pieces[piece._replace(control=row["control"])].summary(("auroc",)).to_pylist()
            assert row["value"] == next(r["value"] for r in own if r["pooling"] == row["pooling"])
        else:
            assert row["value"] == pytest.approx(row["task"] - row["on_control"]) and row["low"] <= row["value"]


def test_what_cannot_be_compared_is_refused(pieces):
    texts = {piece: one for piece, one in pieces.items() if piece.model is None}
    with pytest.raises(ResultError, match="No piece of these runs is of a model yet"):
        compare(texts)
    with pytest.raises(DataError, match="no metric 'acuracy'"):
        compare(pieces, metric="acuracy")


# --- to read ----------------------------------------------------------------------------------------------


def test_tables_say_what_the_rows_do(found):
    words, values, tally, heads, controls = blocks(found)
    assert values.table[0] == ["", "llama 0 resid_post", "llama 2 resid_post", "mean"]
    for line in values.table[1:]:
        own = [row for row in found.values.to_pylist() if row["name"] == line[0]]
        assert line[1:-1] == [f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in own]
        assert line[-1] == f"{np.mean([r['value'] for r in own]):.3f}"
    for j in (1, 2):
        column = [float(row[j].split()[0]) for row in values.table[1:]]
        assert {column[i] for i, k in values.strong if k == j} == {max(column)}
    assert [line[0] for line in tally.table[1:]] == found.names
    assert all(tally.table[1 + i][1 + i] == "" for i in range(8))
    assert {line[1] for line in words.table[1:]} == {"bag_of_words", "mean (adamw)", "mean (lbfgs)", "last"}
    assert len(heads.table) == 3 and [line[0] for line in controls.table[1:]] == ["mean (adamw)", "last"]
    assert "18 documents" in values.text


def test_words_say_where_it_wins(found):
    block = blocks(found)[0]
    for line in block.table[1:]:
        verdicts = found.verdicts(line[0], line[1])
        for text, kind in zip(line[4:], ("win", "loss"), strict=True):
            layers = ", ".join(str(cell[4]) for cell in verdicts[kind])
            assert text == (f"{len(verdicts[kind])}: words llama {layers}" if layers else "0")


def test_a_hostile_cell_neither_ends_a_table_nor_is_html():
    hostile = ["a | b", "</script><script>", "two\nlines", "\u202eright", "& so"]
    lines = list(_lines(Block("t", "x", [["name"], *[[one] for one in hostile]], frozenset({(1, 0)}))))
    assert lines[2:] == ["| a \\| b |", "| **&lt;/script&gt;&lt;script&gt;** |", "| two lines |", "| \u202eright |",
                         "| &amp; so |"]  # fmt: skip


def test_files_hold_the_tables(found, tmp_path):
    save_comparison(found, tmp_path / "out", page="<p>")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    for name, table in zip(FILES, (found.values, found.gains, found.controls), strict=False):
        assert pq.read_table(tmp_path / "out" / name).equals(table)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text == markdown(found) and text.count("\n## ") == 5
    for block in blocks(found):
        assert len({line.count("|") for line in _lines(block)}) == 1
    save_comparison(found, tmp_path / "out")
    assert not (tmp_path / "out" / "comparison.html").exists()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is no comparison"):
        save_comparison(found, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
