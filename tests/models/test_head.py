"""A head's maps are the model's own: parity on every family, and every ingredient is needed for it."""

from dataclasses import replace

import pytest
import torch

import headlens as hl
from headlens._errors import DataError, UnsupportedArchitecture
from headlens.models.head import HeadCount
from headlens.models.model import Model
from headlens.tracing.verify import QUANTITIES
from tests.families import CONFIGS, build

N_TOKENS = 24  # longer than every window of tests/families.py


def errors(hf) -> dict[str, float]:
    return hl.verify(hf, n_tokens=N_TOKENS).worst()


@pytest.mark.parametrize("name", CONFIGS)
def test_parity_float32(name):
    report = hl.verify(build(name), n_tokens=N_TOKENS)
    assert report.passed, report.worst()
    assert set(report.worst()) == set(QUANTITIES)
    assert all(error <= 1e-5 for error in report.worst().values())
    assert len(report.table) == 3 * (4 * 3 + 2) + 1  # layers x (heads x per-head quantities + per-layer) + logits


@pytest.mark.parametrize("name", CONFIGS)
def test_parity_float64(name):
    worst = errors(build(name, dtype=torch.float64))
    scores_drop_to_float32 = name in ("gptj", "gpt_neo")
    assert worst["scores"] <= (1e-5 if scores_drop_to_float32 else 1e-12)
    assert max(worst.values()) <= 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "gptj"])
def test_parity_bfloat16(name):
    report = hl.verify(build(name, dtype=torch.bfloat16), n_tokens=N_TOKENS)
    assert report.passed, report.worst()


def test_parity_stories(stories):
    for dtype in ("float32", "float64"):
        report = hl.verify(str(stories), dtype=dtype)
        assert report.passed, report.worst()


# --- each ingredient left out breaks parity ---------------------------------------------------------------


def changed(**fields):
    return lambda head: replace(head, **fields)


def without_rest(head):
    """Partial rotary taken for full: turn the dimensions that must stay as they are."""
    return replace(head, rotary=replace(head.rotary, module=_Doubled(head.rotary.module)))


class _Doubled:
    """A rotary module whose angles are repeated over the dimensions that the true one leaves alone."""

    def __init__(self, module):
        self.rope_type, self.config, self._module = module.rope_type, module.config, module
        self.inv_freq = torch.cat((module.inv_freq, module.inv_freq))

    def __call__(self, like, position):
        return tuple(torch.cat((a, a), -1) for a in self._module(like, position))


MUTATIONS = {
    "soft-cap": ("gemma2", changed(softcap=None)),
    "sliding window": ("mistral", changed(window=None)),
    "window by layer": ("gpt_neo", changed(window=5)),
    "window off by one": ("qwen2", lambda h: replace(h, window=h.window and h.window + 1)),
    "sinks": ("gpt_oss", changed(sink=None)),
    "rotary": ("llama", changed(rotary=None)),
    "rotary pairs": ("gptj", lambda h: replace(h, rotary=replace(h.rotary, layout="half"))),
    "partial rotary": ("gpt_neox", without_rest),
    "base by layer": (
        "gemma3_text",
        lambda h: replace(h, rotary=replace(h.rotary, layer_type="full_attention")),
    ),
    "query norm": ("qwen3", changed(query_qk_norm=None)),
    "key norm": ("qwen3", changed(key_qk_norm=None)),
    "norm over all heads": ("olmo2", lambda h: replace(h, key_qk_norm=replace(h.key_qk_norm, over="head"))),
    "one plus gain": (
        "gemma2",
        lambda h: replace(h, query_norm=replace(h.query_norm, kind="rms"), key_norm=replace(h.key_norm, kind="rms")),
    ),
    "norm bias": ("gpt2", lambda h: replace(h, key_norm=replace(h.key_norm, bias=None))),
    "query bias": ("llama", changed(b_Q=None)),
    "value bias": ("llama", changed(b_V=None)),
    "key bias": ("gpt2", lambda h: replace(h, b_K=h.b_K + 1, b_V=None)),
    "scale by layer": ("gpt2", changed(scale=12**-0.5)),
    "unscaled": ("gpt_neo", changed(scale=12**-0.5)),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_parity_needs(what, monkeypatch):
    name, mutate = MUTATIONS[what]
    if name == "olmo2":  # weight of the whole layer no longer fits one head: cut it too
        mutate = _olmo_per_head
    true_head = Model.head
    monkeypatch.setattr(Model, "head", lambda self, layer, head: mutate(true_head(self, layer, head)))
    worst = errors(build(name))
    assert max(worst["scores"], worst["pattern"], worst["z"]) > 1e-3, worst


def _olmo_per_head(head):
    norm = head.key_qk_norm
    own = replace(norm.norm, weight=norm.norm.weight[norm.part])
    return replace(head, key_qk_norm=replace(norm, norm=own, over="head"))


def test_parity_needs_grouping(monkeypatch):
    monkeypatch.setattr(HeadCount, "kv_head", lambda self, head: head % self.kv_heads)
    assert errors(build("llama"))["scores"] > 1e-2


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "olmo2"])
def test_parity_needs_post_norm(name, monkeypatch):
    true_norm = Model.norm
    monkeypatch.setattr(
        Model, "norm", lambda self, layer, place: None if place == "post_norm" else true_norm(self, layer, place)
    )
    assert errors(build(name))["attn_out"] > 1e-2


def test_parity_needs_output_bias(monkeypatch):
    monkeypatch.setattr(Model, "output_bias", lambda self, layer: None)
    assert errors(build("gpt2"))["attn_out"] > 1e-2


def test_nan_never_passes():
    hf = build("gpt2")
    model = hl.load(hf)
    with torch.no_grad():
        hf.transformer.h[1].attn.c_attn.bias[0] = float("nan")
    report = hl.verify(model, n_tokens=8)
    assert not report.passed
    assert report.worst()["scores"] != report.worst()["scores"]


# --- the maps themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_maps_are_affine_and_exact(name):
    """f(a + b) + f(0) = f(a) + f(b) for every map, and f(x) is what it was before freezing."""
    head = hl.load(build(name, dtype=torch.float64)).head(2, 3)
    generator = torch.Generator().manual_seed(1)
    x, a = torch.randn(2, 5, 48, generator=generator, dtype=torch.float64)
    frozen = head.freeze_norms(x, x)
    position = torch.arange(5)
    for before, after in (
        (lambda v: head.query(v, position), lambda v: frozen.query(v, position)),
        (lambda v: head.key(v, position), lambda v: frozen.key(v, position)),
        (head.value, frozen.value),
    ):
        torch.testing.assert_close(after(x), before(x), rtol=1e-6, atol=1e-6)  # transformers' norms are float32
        torch.testing.assert_close(after(a) + after(x - a), after(x) + after(0 * x), rtol=1e-6, atol=1e-6)


def test_unfrozen_maps_are_not_affine():
    """The law above is not vacuous: without freezing it fails."""
    head = hl.load(build("llama", dtype=torch.float64)).head(0, 0)
    a, b = torch.randn(2, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gap = head.value(a + b) + head.value(0 * a) - head.value(a) - head.value(b)
    assert gap.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt_neox", "gemma3_text"])
def test_rotary_scores_depend_on_distance_only(name):
    head = hl.load(build(name, dtype=torch.float64)).head(1, 1)
    q, k = torch.randn(2, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    near, far = head.score(q, k, at=(9, 4)), head.score(q, k, at=(29, 24))
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)
    assert abs(near - head.score(q, k, at=(9, 5))) > 1e-4


def test_score_agrees_with_scores():
    head = hl.load(build("gemma2")).head(0, 2)
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(3))
    one = head.cap(head.score(x[6], x[2], at=(6, 2)))
    torch.testing.assert_close(one, head.scores(x)[6, 2])
    assert head.cap(torch.tensor(1e6)) == pytest.approx(2.0)


def test_length_dependent_rotary_is_refused_beyond_its_length():
    import transformers as tf

    config = CONFIGS["llama"]()
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = hl.load(tf.LlamaForCausalLM(config))
    x = torch.zeros(1, 48)
    assert model.head(0, 0).query(x, 127).isfinite().all()
    with pytest.raises(UnsupportedArchitecture, match="beyond 128 tokens"):
        model.head(0, 0).query(x, 128)


def test_weights_are_views():
    """Nothing is copied: what changes in the model changes in the head."""
    hf = build("llama")
    head = hl.load(hf).head(1, 2)
    with torch.no_grad():
        hf.model.layers[1].self_attn.q_proj.weight.zero_()
        hf.model.layers[1].self_attn.o_proj.weight.zero_()
    assert not head.W_Q.any()
    assert not head.W_O.any()


def test_head_index_is_checked():
    model = hl.load(build("gpt2"))
    with pytest.raises(IndexError, match="no layer 3"):
        model.head(3, 0)
    with pytest.raises(IndexError, match="no head -1"):
        model.head(0, -1)


# --- bounds -----------------------------------------------------------------------------------------------


def test_ten_percent_does_not_pass_in_half_precision(monkeypatch):
    true_head = Model.head
    monkeypatch.setattr(Model, "head", lambda self, *at: replace(h := true_head(self, *at), scale=h.scale * 1.1))
    assert not hl.verify(build("llama", dtype=torch.bfloat16), n_tokens=N_TOKENS).passed


def test_large_scores_are_no_fault():
    """A softmax turns the rounding of large scores into relative error; that is no difference of maps."""
    hf = build("qwen2")
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.q_proj.bias.mul_(100)
            layer.self_attn.k_proj.bias.mul_(100)
    report = hl.verify(hf, n_tokens=N_TOKENS)
    assert report.passed, report.worst()
    assert max(report.table["bound"].to_pylist()) < 1e-2


def test_too_few_tokens_prove_nothing():
    with pytest.raises(DataError, match="4 or more"):
        hl.verify(build("gpt2"), n_tokens=1)


def test_norms_without_gain_freeze():
    import transformers as tf

    config = CONFIGS["opt"]()
    config.layer_norm_elementwise_affine = False
    model = hl.load(tf.OPTForCausalLM(config))
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    head = model.head(0, 0)
    torch.testing.assert_close(head.freeze_norms(x, x).query(x, 0), head.query(x, 0), rtol=1e-5, atol=1e-5)


def test_verify_records_the_length_it_tested():
    report = hl.verify(build("gpt2"), n_tokens=100_000)
    assert report.provenance.data["tokens"]["n_tokens"] == 128
