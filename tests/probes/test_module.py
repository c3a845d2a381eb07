import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from headlens._errors import DataError
from headlens.probes.training.module import ProbeModule, Shape, is_decayed, shifts, start
from headlens.probes.training.pooling import POOLINGS, Packing
from tests.conftest import SHARED

LENGTHS = torch.tensor([3, 0, 17, 1])
ROWS = torch.randn(21, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HIDDEN = [((), ()), ((4,), ()), ((4, 3), (6,)), ((), (6, 2))]


def some_probe(pooling, *, before=(), after=(), outputs=2, seed=1):
    """A probe with no parameter at 0."""
    several = POOLINGS[pooling].several_heads
    probe = ProbeModule(Shape(5, outputs, pooling, 3 if several else 1, before, after)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in probe.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.5)
    return probe


def reference(name):
    path = SHARED / "reference" / "attention_probe_forward.safetensors"
    if not path.exists():
        pytest.skip("the published probe's outputs (../shared/reference) are not here")
    with safe_open(path, "pt") as file:
        whole = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()[name])
    own = {key.removeprefix(f"{name}/"): value for key, value in whole.items() if key.startswith(name)}
    return config, own, whole["x"], whole["mask"].bool()


@pytest.mark.parametrize("name", ["softmax_h1", "softmax_h8_c5", "mlp_h4_c3", "tanh_h2"])
def test_the_published_probe_computes_the_same(name):
    config, theirs, x, mask = reference(name)
    hidden = config.get("hidden_dim")
    shape = Shape(
        x.shape[-1], config["output_dim"], "tanh" if config.get("use_tanh") else "attention", config["n_heads"],
        after=(hidden,) if hidden else (),
    )  # fmt: skip
    parameters = {
        "query": theirs["q.weight"], "value": theirs["v.weight"], "value_shift": theirs["v.bias"],
        "slopes": theirs["position_weight"], "bias_0": torch.zeros(shape.pooled),
    }  # fmt: skip
    if hidden:
        parameters |= {"head_weight_1": theirs["o.weight"], "bias_1": theirs["o.bias"]}
    probe = ProbeModule(shape, parameters)
    # Its tanh gives masked tokens the weight -1: right are the documents without any.
    same = mask.all(1) if config.get("use_tanh") else torch.ones(len(mask), dtype=torch.bool)
    assert same.sum() >= 2
    lengths = mask[same].sum(1)
    with torch.no_grad():
        got, weights = probe(x[same][mask[same]], lengths), probe.weights(x[same][mask[same]], lengths)
    torch.testing.assert_close(got, theirs["out"][same], atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[..., 0], theirs["attn"][same][mask[same]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("before, after", HIDDEN)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_tokens_add_and_the_bias_are_the_logit(pooling, before, after):
    probe = some_probe(pooling, before=before, after=after)
    with torch.no_grad():
        logits, own = probe(ROWS, LENGTHS), probe.contributions(ROWS, LENGTHS)
        weights = probe.weights(ROWS, LENGTHS)
    assert logits.shape == (21 if pooling == "token" else 4, 2)
    assert own.shape == (21, 2)
    assert weights.shape[:2] == (21, probe.shape.n_heads)
    if pooling == "token":
        wanted = logits
    else:
        own = Packing(LENGTHS).sum(own)
        wanted = logits
        torch.testing.assert_close(logits[1], probe.bias)
    if not after:
        torch.testing.assert_close(own + probe.bias, wanted)


@pytest.mark.parametrize("pooling", ["attention", "token", "mean", "absmax"])
def test_behind_hidden_layers_tokens_add_what_a_small_change_of_them_would(pooling):
    """Contributions are z along d logit / d z: doubling z by a little moves the logit by that share of their sum."""
    probe = some_probe(pooling, after=(6, 4))
    lengths, step = torch.tensor([21]), 1e-6
    with torch.no_grad():
        own = probe.contributions(ROWS, lengths)
        before = probe(ROWS, lengths)
        for name in ("value", "value_shift"):
            getattr(probe, name).mul_(1 + step)
        moved = (probe(ROWS, lengths) - before) / step
    torch.testing.assert_close(own if pooling == "token" else own.sum(0, keepdim=True), moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "token"])
def test_in_company_as_alone(pooling):
    probe = some_probe(pooling, after=(6,))
    with torch.no_grad():
        together = probe(ROWS, LENGTHS)
        alone = [probe(part, torch.tensor([len(part)])) for part in ROWS.split(LENGTHS.tolist())]
    torch.testing.assert_close(together, torch.cat(alone))


def test_half_the_heads_start_from_everything_and_half_from_both_ends():
    def first(n_heads):
        return start(Shape(5, n_heads=n_heads), 0)["slopes"].tolist()

    assert first(2) == [0, 1] and first(3) == [0, 0, 1] and first(4) == [0, 0, -1, 1]
    assert first(7) == [0, 0, 0, 0, -1, 0, 1]
    assert start(Shape(5, n_heads=1), 0)["slopes"].item() > 0


def test_the_seed_says_where_a_probe_starts():
    first, again, other = (start(Shape(5, n_heads=2), seed)["value"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_penalty_leaves_biases_slopes_and_shifts_alone():
    shape = Shape(5, 2, n_heads=2, after=(3,))
    mapped = Shape(5, 2, n_heads=2, before=(3,))
    names = {*start(shape, 0), *shifts(shape), *start(mapped, 0)}
    assert {name for name in names if is_decayed(name)} == {"map_weight_0", "query", "value", "head_weight_1"}


def test_half_precision_rows_are_read():
    probe = some_probe("attention").float()
    half = ROWS.half()
    with torch.no_grad():
        torch.testing.assert_close(probe(half, LENGTHS), probe(half.float(), LENGTHS))


def test_weights_of_attention_used_as_a_maximum():
    probe = some_probe("attention", outputs=1)
    other = probe.with_pooling("multimax")
    y = ROWS @ probe.value.T + probe.value_shift
    with torch.no_grad():
        wanted = torch.stack([part.amax(0).sum() for part in y.split([3, 17, 1])]) + probe.bias
        torch.testing.assert_close(other(ROWS, torch.tensor([3, 17, 1]))[:, 0], wanted)
    assert other.shape == replace(probe.shape, pooling="multimax")
    with pytest.raises(DataError, match="needs queries"):
        other.with_pooling("attention")
    with pytest.raises(DataError, match="n_heads must be 1"):
        probe.with_pooling("mean")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pooling": "median"}, "pooling must be one of"),
        ({"pooling": "max", "n_heads": 2}, "n_heads must be 1"),
        ({"n_heads": 0}, "n_heads must be"),
        ({"pooling": "mean", "setting": 3.0}, "has no setting"),
        ({"before": (0,)}, "must have a unit"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        Shape(5, **fields)


def test_the_state_dict_says_all(tmp_path):
    probe = some_probe("attention", before=(4,), after=(3,))
    other = ProbeModule(probe.shape).double()
    other.load_state_dict(probe.state_dict())
    with torch.no_grad():
        assert torch.equal(other(ROWS, LENGTHS), probe(ROWS, LENGTHS))
    assert np.all([value.requires_grad for value in other.parameters()])
