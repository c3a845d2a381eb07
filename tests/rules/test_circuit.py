"""The parts of an output feature are all of it, on every architecture; what cannot be taken apart is refused."""

from dataclasses import replace

import pytest
import torch

import headlens as hl
from headlens._errors import DataError, NotAffineError, SiteError
from headlens.rules import observe
from headlens.rules.circuit import circuit, reader
from tests.families import build
from tests.fra.made import dictionary

TEXT = [1, 5, 9, 20, 33, 5, 9, 44, 61, 7]
FAMILIES = ["gpt2", "opt", "gpt_neo", "gptj", "gpt_neox", "llama", "mistral", "qwen3", "olmo2", "gemma2", "gpt_oss"]


def both(model, layer, site="hook_resid_pre", head=None, **options):
    width = model.d_head if head is not None else model.n_heads * model.d_head
    own = dictionary(model.d_model, f"blocks.{layer}.{site}", n=12, dtype=torch.float64)
    z = dictionary(width, f"blocks.{layer}.attn.hook_z", n=6, seed=1, dtype=torch.float64, head=head, **options)
    return own, z


@pytest.mark.parametrize("head", [None, 2])
@pytest.mark.parametrize("site", ["hook_resid_pre", "ln1.hook_normalized"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_sum_is_the_pre_activation_of_the_models_own_z(name, site, head):
    model = hl.load(build(name, dtype=torch.float64))
    if site.startswith("ln1") and model.family.pre_norm is None:
        pytest.skip("no norm before its heads")
    own, z = both(model, 1, site, head)
    found = circuit(model, own, z, TEXT, 1, 2)
    assert found.error() < 1e-5  # transformers norms in float32 in places
    attended = torch.stack([found.by_key(q).sum(0) for q in range(len(TEXT))])
    torch.testing.assert_close(found.bias + attended + found.others, found.pre())
    if head is not None:
        assert not found.others.any()
    whole = torch.zeros(len(TEXT), 6, dtype=torch.float64).index_add_(0, found.value.position, found.writes())
    torch.testing.assert_close(found.bias + found.pattern @ whole + found.others, found.pre())


@pytest.mark.parametrize("source", [12, 13, 14, 15])
def test_without_one_kind_of_source_the_sum_is_wrong(source):
    model = hl.load(build("gpt2", dtype=torch.float64))
    found = circuit(model, *both(model, 1, head=2), TEXT, 1, 2)
    kept = found.value.only(found.value.source != source)
    assert len(kept.source) < len(found.value.source)
    assert replace(found, value=kept).error() > 1e-3


@pytest.mark.parametrize("options", [
    {"activation": "relu", "takes_b_dec_off": False}, {"activation": "topk", "k": 3, "scaled_by_decoder": True},
    {"activation": "jumprelu", "threshold": torch.full((6,), 0.1, dtype=torch.float64)},
    {"gain": torch.linspace(0.5, 2, 12, dtype=torch.float64), "shift": torch.linspace(-1, 1, 12, dtype=torch.float64)},
    {"takes_mean_off": True},
])  # fmt: skip
def test_what_the_encoder_reads_is_affine(options):
    own = dictionary(12, "blocks.0.attn.hook_z", n=6, dtype=torch.float64, **options)
    x = torch.randn(50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pre, kept = reader(own)(x), own.encode(x)
    assert (kept != 0).any()
    torch.testing.assert_close(pre[kept != 0], kept[kept != 0])
    if own.activation == "relu":
        torch.testing.assert_close(pre.relu(), kept)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "olmo2"])
def test_a_unit_of_a_feature_is_as_long_as_the_circuit_says(name):
    """With all norms, those of queries and keys too: a feature that one token holds has that token's denominators."""
    model = hl.load(build(name, dtype=torch.float64))
    _, z = both(model, 1, head=2)
    sparse = {"n": 60, "dtype": torch.float64, "activation": "topk", "k": 4}
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", **sparse)
    found, observed = circuit(model, own, z, TEXT, 1, 2), observe(model, own, {2: z}, [TEXT], 1)
    active, maps = observed.active, observed.heads[2].maps
    once = (torch.bincount(active.features, minlength=active.d_sae) == 1).nonzero()[:, 0].tolist()
    assert once
    for side, unit in ((found.query, maps.query), (found.key, maps.key), (found.value, maps.value)):
        for i in once:
            length = abs(float(active.values[active.features == i])) * float((unit[i] ** 2).sum()) ** 0.5
            assert float(side.vector[side.source == i].norm()) == pytest.approx(length, rel=1e-4)


def test_half_precision_is_refused():
    model = hl.load(build("gpt2", dtype=torch.bfloat16))
    own, z = both(model, 1, head=2)
    for call in (lambda: circuit(model, own, z, TEXT, 1, 2), lambda: observe(model, own, {2: z}, [TEXT], 1)):
        with pytest.raises(DataError, match="float32"):
            call()


def test_what_is_not_affine_or_of_another_head_is_refused():
    model = hl.load(build("gpt2", dtype=torch.float64))
    own, z = both(model, 1, head=2)
    more = {"r_mag": torch.zeros(6, dtype=torch.float64), "b_mag": torch.zeros(6, dtype=torch.float64)}
    with pytest.raises(NotAffineError, match="gated"):
        circuit(model, own, replace(z, activation="gated", **more), TEXT, 1, 2)
    with pytest.raises(NotAffineError, match="norms each row"):
        circuit(model, own, replace(z, norm="layer_norm"), TEXT, 1, 2)
    with pytest.raises(SiteError, match="head 2"):
        circuit(model, own, z, TEXT, 1, 1)
    with pytest.raises(SiteError):
        circuit(model, own, replace(z, site="blocks.0.attn.hook_z"), TEXT, 1, 2)
