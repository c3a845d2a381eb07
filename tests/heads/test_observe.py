"""Folding patterns as they appear gives what a slow, obvious loop over transformers' own attentions gives."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
import transformers as tf

import headlens as hl
from headlens._statistics import bootstrap_mean
from headlens.data import pack
from headlens.data.stimuli import Stimulus
from headlens.heads import observe as observing
from headlens.heads import work as working
from headlens.heads.kinds import KINDS, Looks
from headlens.heads.observe import observe
from headlens.heads.setting import Protocol, Setting
from headlens.heads.work import Checkpoint
from tests.families import CONFIGS, build

KINDS_THAT_LOOK = {
    name: kind.how for name, kind in KINDS.items() if isinstance(kind.how, Looks) and name != "fixed_gap_induction"
}


def stimulus(vocab: int = 97, n: int = 5, seed: int = 0) -> Stimulus:
    """Ragged random sequences over few ids, so that much repeats, with every mark that a kind asks for."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(9, 20, n)
    rows, controls = ([np.append([1], rng.integers(5, 15, m - 1)) for m in lengths] for _ in range(2))
    size = int(lengths.sum())
    names = {mark for looks in KINDS_THAT_LOOK.values() for mark in looks.marks}
    marks = {name: rng.random(size) < 0.3 for name in sorted(names)}
    return Stimulus("odd", pack(rows), 1, pack(controls), {}, marks)


def is_target(kind: str, ids: list[int], marks: dict[str, np.ndarray], q: int, k: int) -> bool:
    """The definition of each kind, in words of one query and one key."""
    match kind:
        case "previous_token":
            return k == q - 1 and q >= 2
        case "self":
            return k == q and q >= 1
        case "sink":
            return k == 0 and q >= 1
        case "duplicate_token":
            return k < q and ids[k] == ids[q] and ids[q] != 1
        case "induction":
            return 1 <= k < q and ids[k - 1] == ids[q] and ids[q] != 1
        case "delimiter":
            return k < q and bool(marks["delimiter"][k])
        case "name_mover":
            return k < q and bool(marks["end"][q] and marks["io"][k])
        case "giver_attention":
            return k < q and bool(marks["end"][q] and marks["s2"][k])
        case "query_focused_retrieval":
            return k < q and bool(marks["question"][q] and marks["gold"][k])
        case "entity_end_attention":
            return k < q and bool(marks["end"][q] and marks["last"][k])
    raise AssertionError(f"no definition of {kind} here: write it")


@torch.no_grad()
def slowly(model: hl.Model, shown: Stimulus, kind: str) -> np.ndarray:
    """(own, null, weighted) by sequence, layer, head: one unpadded sequence at a time, loops over everything."""
    null = KINDS_THAT_LOOK[kind].null
    found = np.full((3, len(shown.tokens), model.n_layers, model.n_heads), np.nan)
    model.hf.set_attn_implementation("eager")
    for i, ids in enumerate(shown.tokens):
        part = slice(shown.tokens.offsets[i], shown.tokens.offsets[i + 1])
        marks = {name: marked[part] for name, marked in shown.marks.items()}
        read = [torch.tensor(tokens[i].tolist())[None] for tokens in (shown.tokens, shown.control)]
        own, control = (torch.stack(model.hf(x, output_attentions=True).attentions)[:, 0] for x in read)
        (batch,) = hl.capture(model, read[0], ["blocks.*.hook_resid_pre"])
        n = len(ids)
        pairs = [(q, k) for q in range(n) for k in range(q + 1) if is_target(kind, ids.tolist(), marks, q, k)]
        rows = sorted({q for q, _ in pairs})
        if not rows:
            continue
        for layer in range(model.n_layers):
            window = model.head(layer, 0).window or n
            for index in range(model.n_heads):
                head = model.head(layer, index)
                x = batch[f"blocks.{layer}.hook_resid_pre"][0]
                sizes = head.output(head.value(x)).norm(dim=-1).numpy()
                a = own[layer, index].numpy()
                found[0, i, layer, index] = sum(a[q, k] for q, k in pairs) / len(rows)
                shares = [a[q, k] * sizes[k] / sum(a[q, j] * sizes[j] for j in range(q + 1)) for q, k in pairs]
                found[2, i, layer, index] = sum(shares) / len(rows)
                if null == "control":
                    expected = sum(control[layer, index, q, k].item() for q, k in pairs)
                elif null == "even":
                    expected = sum((q - k < window) / min(q + 1, window) for q, k in pairs)
                else:
                    other = "elsewhere" if kind == "delimiter" else "s1"
                    expected = sum(a[q, k] for q in rows for k in range(q) if marks[other][k])
                found[1, i, layer, index] = expected / len(rows)
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_every_kind_is_what_a_loop_over_eager_attentions_finds(family):
    model, shown = hl.load(build(family)), stimulus()
    tallies = observe(Setting(model, Protocol(batch_tokens=50)), shown, KINDS_THAT_LOOK, Checkpoint(None, {}))
    for kind, tally in tallies.items():
        own, null, weighted = slowly(model, shown, kind)
        says = ~np.isnan(own).any((1, 2))
        rows = tally.table(model.name, kind)
        mean, low, high = bootstrap_mean(own[says], seed=0)
        for column, slow in (("score", mean), ("null", null[says].mean(0)), ("weighted", weighted[says].mean(0))):
            np.testing.assert_allclose(rows[column].to_numpy(), slow.ravel(), atol=2e-6, err_msg=f"{kind} {column}")
        assert rows["n"].to_pylist() == [says.sum()] * mean.size
        if says.all():  # else draws are of all sequences, and some of those say nothing
            np.testing.assert_allclose(rows["low"].to_numpy(), low.ravel(), atol=2e-6)
            np.testing.assert_allclose(rows["high"].to_numpy(), high.ravel(), atol=2e-6)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_batch_size_and_padding_change_nothing(family):
    model, shown = hl.load(build(family)), stimulus(n=7)
    tables = []
    for batch_tokens in (1, 45, 10**6):
        setting = Setting(model, Protocol(batch_tokens=batch_tokens))
        tallies = observe(setting, shown, KINDS_THAT_LOOK, Checkpoint(None, {}))
        tables.append([tally.table("m", kind) for kind, tally in tallies.items()])
    for other in tables[1:]:
        for one, two in zip(tables[0], other, strict=True):
            for column in ("score", "low", "high", "null", "weighted"):
                np.testing.assert_allclose(one[column].to_numpy(), two[column].to_numpy(), atol=2e-6)


def scores(model: hl.Model) -> dict[str, np.ndarray]:
    tallies = observe(Setting(model, Protocol()), stimulus(), KINDS_THAT_LOOK, Checkpoint(None, {}))
    return {
        kind: np.stack([np.reshape(tally.table("m", kind)[c].to_numpy(), tally.shape) for c in ("score", "weighted")])
        for kind, tally in tallies.items()
    }


def test_the_order_of_heads_changes_nothing_but_their_order():
    hf = build("llama")
    before = scores(hl.load(hf))
    order = [2, 3, 1, 0]  # groups of two query heads stay together, so their key and value heads swap as well
    d = hf.config.hidden_size // 4
    with torch.no_grad():
        for block in hf.model.layers:
            heads = torch.cat([torch.arange(h * d, (h + 1) * d) for h in order])
            kv = torch.cat([torch.arange(h * d, (h + 1) * d) for h in (1, 0)])
            attention = block.self_attn
            attention.q_proj.weight.copy_(attention.q_proj.weight[heads].clone())
            attention.q_proj.bias.copy_(attention.q_proj.bias[heads].clone())
            for projection in (attention.k_proj, attention.v_proj):
                projection.weight.copy_(projection.weight[kv].clone())
                projection.bias.copy_(projection.bias[kv].clone())
            attention.o_proj.weight.copy_(attention.o_proj.weight[:, heads].clone())
    after = scores(hl.load(hf))
    for kind, found in before.items():
        np.testing.assert_allclose(after[kind], found[:, :, order], atol=2e-6, err_msg=kind)


def test_grouped_heads_score_as_full_heads_with_the_same_weights():
    grouped = build("llama")
    config = tf.LlamaConfig(**{**grouped.config.to_dict(), "num_key_value_heads": 4})
    full = tf.LlamaForCausalLM(config).eval()
    d, state = grouped.config.hidden_size // 4, grouped.state_dict()
    twice = torch.cat([torch.arange(h // 2 * d, (h // 2 + 1) * d) for h in range(4)])
    full.load_state_dict({k: v[twice] if "k_proj" in k or "v_proj" in k else v for k, v in state.items()})
    one, two = scores(hl.load(grouped)), scores(hl.load(full))
    for kind in one:
        np.testing.assert_allclose(one[kind], two[kind], atol=2e-6, err_msg=kind)


def test_half_precision_scores_are_near():
    one, two = scores(hl.load(build("llama"))), scores(hl.load(build("llama").bfloat16()))
    for kind in one:
        np.testing.assert_allclose(one[kind], two[kind], atol=0.03, err_msg=kind)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_kill_loses_no_sequence_and_repeats_none(after, tmp_path, monkeypatch):
    monkeypatch.setattr(working, "SAVE_EVERY", 0)
    model, shown = hl.load(build("gpt2")), stimulus(n=14)
    protocol = Protocol(batch_tokens=40)
    whole = observe(Setting(model, protocol), shown, KINDS_THAT_LOOK, Checkpoint(None, {}))
    told = []

    def killing(_: str, done: int, __: int) -> None:
        told.append(done)
        if len(told) == after:
            raise Killed

    what = {"model": model.provenance(), "protocol": asdict(protocol)}
    with pytest.raises(Killed):
        observe(Setting(model, protocol, None, killing), shown, KINDS_THAT_LOOK, Checkpoint(tmp_path, what))
    read = []
    capture = observing.capture
    monkeypatch.setattr(
        observing, "capture", lambda m, tokens, *a, **k: read.append(len(tokens)) or capture(m, tokens, *a, **k)
    )
    resumed = observe(Setting(model, protocol), shown, KINDS_THAT_LOOK, Checkpoint(tmp_path, what))
    assert read == [14 - told[-1]] * 2  # the stimulus and its control, from where it was
    for kind in whole:
        assert whole[kind].table("m", kind).equals(resumed[kind].table("m", kind)), kind


def test_work_of_another_protocol_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "SAVE_EVERY", 0)
    model = build("gpt2")
    first = hl.heads.score(hl.load(model), ["self", "offset"], num_samples=6, work=tmp_path)
    other = hl.heads.score(hl.load(model), ["self", "offset"], num_samples=6, seed=3, work=tmp_path)
    assert not first.table.equals(other.table)
    again = hl.heads.score(hl.load(model), ["self", "offset"], num_samples=6, work=tmp_path)
    assert again.table.equals(first.table)
