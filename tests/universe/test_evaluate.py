"""Figures of reconstruction by hand, and baselines that know what they should and no more."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.universe import baselines
from headlens.universe.batches import grouped
from headlens.universe.clone import Training, divergence, fit_clones
from headlens.universe.evaluate import POSITION, Reconstruction, reconstruction, reconstruction_rows
from tests.universe import made


@pytest.fixture(scope="module")
def group(shared_patterns):
    return grouped(shared_patterns)[0]


def test_the_truth_has_no_divergence_and_even_attention_has_no_skill_over_itself(group):
    def truth(batch):
        return batch.target.clamp_min(1e-30).log().masked_fill(~batch.seen, 0)

    rows = reconstruction_rows(group, made.features(), {POSITION: baselines.uniform, "truth": truth})
    for row in rows:
        if row["method"] == "truth":
            assert row["kl"] == pytest.approx(0, abs=1e-6) and row["skill"] == pytest.approx(1, abs=1e-6)
            assert row["mse"] == pytest.approx(0, abs=1e-9) and row["r"] == pytest.approx(1, abs=1e-6)
        else:
            assert row["skill"] == 0 and row["skill_low"] == row["skill_high"] == 0
            assert row["low"] <= row["kl"] <= row["high"]


def test_figures_are_those_of_all_rows_together(group):
    features, head = made.features(), 4
    a, p, kl = [], [], []
    for batch in group.batches(features):
        log_p = baselines.uniform(batch)
        seen = batch.seen
        a.append(batch.target[head][seen]), p.append(log_p[head].exp()[seen])
        kl.append(divergence(batch.target, log_p)[head][batch.real.bool()])
    a, p, kl = (torch.cat(x).double().numpy() for x in (a, p, kl))
    row = reconstruction_rows(group, features, {POSITION: baselines.uniform})[head]
    assert row["kl"] == pytest.approx(kl.mean(), rel=1e-5)
    assert row["mse"] == pytest.approx(((a - p) ** 2).mean(), rel=1e-5)
    assert row["r"] == pytest.approx(np.corrcoef(a, p)[0, 1], rel=1e-4)
    assert row["rows"] == len(kl)


def test_a_head_that_attends_to_nothing_has_no_figures_and_the_others_keep_theirs(tmp_path, group):
    (patterns,) = made.patterns(tmp_path, names=made.MODELS[:1])
    made.silence(patterns, patterns.heads[3])
    (silent,) = grouped([patterns])
    features = made.features()
    methods = {POSITION: baselines.uniform, "sink": baselines.sink(silent, features)}
    for row, whole in zip(
        reconstruction_rows(silent, features, methods),
        reconstruction_rows(group.only(silent.heads), features, methods),
        strict=True,
    ):
        if (row["layer"], row["head"]) == patterns.heads[3][1:]:
            assert row["rows"] == 0 and all(np.isnan(row[name]) for name in ("kl", "low", "skill", "mse", "r"))
        else:
            said = {k: pytest.approx(v, nan_ok=True) if isinstance(v, float) else v for k, v in whole.items()}
            assert row == said
    summed = reconstruction(reconstruction_rows(silent, features, methods), Provenance()).summary(0.0)
    assert all(line["heads"] == len(silent.heads) - 1 for line in summed)


def test_every_baseline_is_a_pattern_and_ends_where_it_should(group):
    features = made.features()
    clones = fit_clones(group, features, rank=2, training=Training(epochs=1))
    families = {model: f"family of {model}" for model in group.models}
    near, names = baselines.nearest(group, features, clones, families)
    every = {
        "uniform": baselines.uniform,
        "sink": baselines.sink(group, features),
        "mean": baselines.mean_pattern(group, features),
        "nearest": near,
        "shuffled": baselines.shuffled(clones),
        "mlp": baselines.sentence_mlp(group, features, hidden=4, training=Training(epochs=1, rate=0.01)),
    }
    batch = group.batch(0, features)
    for name, predict in every.items():
        p = predict(batch).exp() * batch.seen
        assert torch.allclose(p.sum(-1), batch.real.expand(p.shape[:-1]), atol=1e-4), name
    for head, other in zip(group.heads, names, strict=True):
        assert not other.startswith(f"{head.model}:")
    total = sum(float(b.target[3, ..., 0].sum()) for b in group.batches(features))
    rows = sum(float(b.real.sum()) for b in group.batches(features))
    said = every["sink"](batch)[3][batch.real.bool()][:, 0].exp()
    assert torch.allclose(said, torch.full_like(said, total / rows), atol=1e-4)


def test_a_shuffled_clone_sees_the_next_text(group):
    features = made.features()
    clones = fit_clones(group, features, rank=2, training=Training(epochs=1))
    batch = group.batch(0, features)
    rolled = replace(batch, phi=batch.phi.roll(1, 0))
    assert torch.equal(baselines.shuffled(clones)(batch), clones.log_patterns(rolled))


def test_skill_needs_something_to_be_measured_against(group):
    with pytest.raises(DataError, match="measured against 'position only'"):
        reconstruction_rows(group, made.features(), {"uniform": baselines.uniform})


def test_answers_are_saved_and_summed_up(group, tmp_path):
    rows = reconstruction_rows(group, made.features(), {POSITION: baselines.uniform})
    found = reconstruction(rows, Provenance())
    again = Reconstruction.load(found.save(tmp_path / "r"))
    assert again.table.equals(found.table)
    (line,) = again.summary(least=0.1)
    assert line["heads"] == sum(row["kl"] > 0.1 for row in rows) and line["skill"] == 0
    with pytest.raises(DataError, match="'clone' was not measured"):
        again.column("clone", "kl")
