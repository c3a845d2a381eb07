"""Captured values are the model's own, padding changes nothing, and nothing stays behind."""

import gc
import weakref

import numpy as np
import pytest
import torch

import headlens as hl
from headlens._errors import DataError, SiteError
from headlens.data import pack
from headlens.tracing import site_names
from headlens.tracing.capture import groups
from tests.families import CONFIGS, ENCODERS, build

ALL = CONFIGS | ENCODERS


def ids(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(seed))


def every_site(model: hl.Model) -> list[str]:
    return [f"blocks.*.{name}" for name in site_names(model)]


def own(hf, tokens: torch.Tensor):
    """What transformers itself says, with its eager attention."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        output = hf(input_ids=tokens[None], output_attentions=True, output_hidden_states=True)
    hf.set_attn_implementation(before)
    return output


@pytest.mark.parametrize("name", ALL)
def test_sites_equal_transformers_own_outputs(name):
    hf, tokens = build(name), ids(20)
    model, output = hl.load(hf), own(hf, tokens)
    (batch,) = hl.capture(model, tokens, every_site(model))
    for layer in range(3):
        seen = {site: batch[f"blocks.{layer}.{site}"] for site in site_names(model)}
        assert torch.equal(seen["attn.hook_pattern"], output.attentions[layer])
        assert torch.equal(seen["hook_resid_pre"], output.hidden_states[layer])
        if layer < 2:  # transformers norms the last block's output before it shows it
            assert torch.equal(seen["hook_resid_post"], output.hidden_states[layer + 1])


@pytest.mark.parametrize("name", ALL)
def test_axes(name):
    model = hl.load(build(name))
    (batch,) = hl.capture(model, pack([ids(9), ids(9, 1)]), every_site(model))
    B, T, H, K, D, C = 2, 9, model.n_heads, model.n_kv_heads, model.d_head, model.d_model
    shapes = {
        "attn.hook_q": (B, T, H, D), "attn.hook_k": (B, T, K, D), "attn.hook_v": (B, T, K, D),
        "attn.hook_rot_q": (B, T, H, D), "attn.hook_rot_k": (B, T, K, D), "attn.hook_z": (B, T, H, D),
        "attn.hook_attn_scores": (B, H, T, T), "attn.hook_pattern": (B, H, T, T),
    }  # fmt: skip
    for site in site_names(model):
        assert batch[f"blocks.1.{site}"].shape == shapes.get(site, (B, T, C)), site
    assert not batch["blocks.1.attn.hook_pattern"].requires_grad


@pytest.mark.parametrize("name", CONFIGS)
def test_pre_and_post_rotary_queries_and_keys(name):
    """hook_q and hook_k are the projections; hook_rot_* are what `Head` computes from the stream."""
    model = hl.load(build(name))
    (batch,) = hl.capture(model, ids(12), every_site(model))
    rotary = "attn.hook_rot_q" in site_names(model)
    for layer in range(model.n_layers):
        x = batch[f"blocks.{layer}.hook_resid_pre"]
        for index in range(model.n_heads):
            head = model.head(layer, index)
            kv = model.count.kv_head(index)
            y = x if head.query_norm is None else head.query_norm(x)
            projected_q = y @ head.W_Q + (0 if head.b_Q is None else head.b_Q)
            projected_k = y @ head.W_K + (0 if head.b_K is None else head.b_K)
            close(batch[f"blocks.{layer}.attn.hook_q"][:, :, index], projected_q)
            close(batch[f"blocks.{layer}.attn.hook_k"][:, :, kv], projected_k)
            close(batch[f"blocks.{layer}.attn.hook_v"][:, :, kv], head.value(x))
            if rotary:
                close(batch[f"blocks.{layer}.attn.hook_rot_q"][:, :, index], head.query(x, torch.arange(12)))
                close(batch[f"blocks.{layer}.attn.hook_rot_k"][:, :, kv], head.key(x, torch.arange(12)))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_residual_stream_adds_up(name):
    model = hl.load(build(name))
    (batch,) = hl.capture(model, ids(12), every_site(model))
    for layer in range(3):
        pre, attn, mlp, post = (
            batch[f"blocks.{layer}.hook_{s}"] for s in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        close(pre + attn + mlp, post)
        if not model.parallel:
            close(pre + attn, batch[f"blocks.{layer}.hook_resid_mid"])


@pytest.mark.parametrize("name", ALL)
def test_logits_are_bit_equal_to_eager_while_capturing(name):
    from headlens.tracing.sites import parse_site
    from headlens.tracing.taps import tapped

    hf, tokens = build(name), ids(20)
    model = hl.load(hf)
    sites = [site for text in every_site(model) for site in parse_site(model, text)]
    with torch.no_grad(), tapped(model, dict.fromkeys(sites, lambda value: None)):
        ours = model.forward(tokens[None])
    theirs = own(hf, tokens)
    key = "logits" if name in CONFIGS else "last_hidden_state"
    assert torch.equal(ours[key], theirs[key])


def test_blocks_after_the_last_site_are_not_run():
    hf = build("llama")
    model = hl.load(hf)
    runs: list[int] = []
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: runs.append(layer))
    hf.lm_head.register_forward_hook(lambda *_: runs.append(99))
    list(hl.capture(model, ids(5), ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]))
    assert runs == [0, 1]


# --- padding and batching ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name, side, dtype):
    model = hl.load(build(name, dtype=dtype))
    rows = [ids(20, 1), ids(13, 2), ids(7, 3)]
    padded, mask = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 20, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(20 - len(row), 20)
        padded[i, place], mask[i, place] = row, True
    names = every_site(model)
    (together,) = hl.capture(model, padded, names, mask=mask)
    for i, row in enumerate(rows):
        (alone,) = hl.capture(model, row, names)
        for site, single in alone.values.items():
            real = together[site][i]
            if site.endswith(("pattern", "attn_scores")):
                real = real[:, mask[i]][:, :, mask[i]]
            else:
                real = real[mask[i]]
            if site.endswith("attn_scores") and model.family.causal:
                real, single = real.tril(), single.tril()
            gap = (real - single[0]).abs().max() / single.abs().max()
            assert gap <= 1e-5, (site, float(gap))


def test_ragged_batches_equal_single_sequences():
    model = hl.load(build("llama"))
    rows = [ids(n, n) for n in (5, 17, 9, 9, 2)]
    site = "blocks.2.hook_resid_post"
    seen = []
    for batch in hl.capture(model, pack(rows), [site], batch_tokens=40):
        assert batch.ids.numel() <= 40
        for row, index in enumerate(batch.index):
            (alone,) = hl.capture(model, rows[index], [site])
            close(batch[site][row][batch.mask[row]], alone[site][0])
            seen.append(int(index))
    assert seen == [0, 1, 2, 3, 4]


def test_padding_in_float16_gives_no_nan():
    """The least number of float16 plus a score overflows; a padding query's row must not become NaN."""
    hf = build("gpt2", dtype=torch.float16)
    with torch.no_grad():
        for block in hf.transformer.h:
            block.attn.c_attn.bias[:48] = 4
            block.attn.c_attn.bias[48:96] = -4
    model, row = hl.load(hf), ids(10)
    padded = torch.cat((torch.zeros(8, dtype=torch.long), row))[None]
    (batch,) = hl.capture(model, padded, ["blocks.2.hook_resid_post"], mask=torch.arange(18)[None] >= 8)
    assert batch["blocks.2.hook_resid_post"].isfinite().all()


def test_length_dependent_rotary_does_not_depend_on_the_batch():
    import transformers as tf

    config = CONFIGS["phi3"]()
    factors = [1.0 + i for i in range(3)]
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                              "short_factor": factors, "long_factor": [9 * f for f in factors],
                              "original_max_position_embeddings": 16}  # fmt: skip
    config.original_max_position_embeddings = 16
    torch.manual_seed(0)
    model = hl.load(tf.Phi3ForCausalLM(config).eval())
    assert model.rotary_limit == 16
    rows, site = [ids(40), ids(10, 1), ids(12, 2)], "blocks.0.attn.hook_pattern"
    batches = list(hl.capture(model, rows, [site]))
    assert [batch.index.tolist() for batch in batches] == [[0], [1, 2]]
    (alone,) = hl.capture(model, rows[1], [site])
    torch.testing.assert_close(batches[1][site][0, :, :10, :10], alone[site][0], rtol=1e-4, atol=1e-5)
    padded = torch.zeros(2, 40, dtype=torch.long)
    mask = torch.arange(40) < torch.tensor([[40], [10]])
    with pytest.raises(DataError, match="ragged"):
        hl.capture(model, padded, [site], mask=mask)


def test_groups_cover_everything_once_and_in_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 30, size=rng.integers(1, 40))
        limit = int(rng.integers(1, 100))
        found = list(groups(lengths, limit))
        assert np.concatenate(found).tolist() == list(range(len(lengths)))
        assert all(len(g) == 1 or len(g) * lengths[g].max() <= limit for g in found)
        apart = list(groups(lengths, limit, alone_beyond=20))
        assert np.concatenate(apart).tolist() == list(range(len(lengths)))
        assert all(len(g) == 1 or lengths[g].max() <= 20 for g in apart)


def test_token_forms_agree():
    model, row = hl.load(build("gpt2")), ids(6)
    site = "blocks.1.hook_resid_post"
    for form in (row, row.numpy(), [row.tolist()], row.tolist(), row[None], pack([row])):
        (batch,) = hl.capture(model, form, [site])
        (first,) = hl.capture(model, row, [site])
        assert torch.equal(batch[site], first[site])


# --- reducers ---------------------------------------------------------------------------------------------


def test_reducers_fold_while_one_layer_is_alive():
    """No pattern of another layer, or of another batch, exists when a reducer runs."""
    model = hl.load(build("gpt2"))
    alive: list[weakref.ref] = []

    def fold(pattern, batch):
        gc.collect()
        others = [ref() for ref in alive if ref() is not None]
        assert not others, "an earlier layer's pattern is still held"
        alive.append(weakref.ref(pattern))
        return pattern.sum((-1, -2))

    batches = list(hl.capture(model, pack([ids(8, i) for i in range(6)]), {"blocks.*.attn.hook_pattern": fold},
                              batch_tokens=16))  # fmt: skip
    assert len(batches) == 3
    assert len(alive) == 9
    assert batches[0]["blocks.2.attn.hook_pattern"].shape == (2, 4)


def test_reducers_equal_folding_what_was_captured():
    model, row = hl.load(build("qwen3")), ids(11)
    (kept,) = hl.capture(model, row, ["blocks.1.attn.hook_pattern"])
    (folded,) = hl.capture(model, row, {"blocks.1.attn.hook_pattern": lambda p, batch: p.diagonal(dim1=-2, dim2=-1)})
    assert torch.equal(
        folded["blocks.1.attn.hook_pattern"], kept["blocks.1.attn.hook_pattern"].diagonal(dim1=-2, dim2=-1)
    )


def test_progress_counts_sequences():
    counts: list[int] = []
    list(hl.capture(hl.load(build("gpt2")), pack([ids(4)] * 5), ["blocks.0.attn.hook_z"], batch_tokens=8,
                    progress=counts.append))  # fmt: skip
    assert counts == [2, 2, 1]


# --- nothing stays behind ---------------------------------------------------------------------------------


def state(hf) -> tuple:
    hooks = [(n, len(m._forward_hooks), len(m._forward_pre_hooks), "_attn" in vars(m)) for n, m in hf.named_modules()]
    return hooks, hf.config._attn_implementation


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neo", "gemma2"])
def test_model_is_as_before_even_after_an_error(name):
    hf, tokens = build(name), ids(10)
    before = state(hf)
    model = hl.load(hf)
    with torch.no_grad():
        plain = hf(tokens[None]).logits

    def fails(value, batch):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        list(hl.capture(model, tokens, {"blocks.1.attn.hook_pattern": fails}))
    list(hl.capture(model, tokens, every_site(model)))
    assert state(hf) == before
    with torch.no_grad():
        assert torch.equal(hf(tokens[None]).logits, plain)


@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
def test_attention_that_bypasses_us_is_an_error_not_an_empty_answer(name, monkeypatch):
    hf = build(name)
    model = hl.load(hf)
    attention = model.attention_module(1)

    def bypass(hidden_states, **kwargs):
        return torch.zeros_like(hidden_states), None

    monkeypatch.setattr(attention, "forward", bypass)
    with pytest.raises(SiteError, match=r"blocks\.1\.attn\.hook_pattern did not appear"):
        list(hl.capture(model, ids(6), ["blocks.*.attn.hook_pattern"]))


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "site", "why"),
    [
        ("gpt2", "blocks.0.attn.hook_rot_q", "no rotary"),
        ("gptj", "blocks.0.hook_resid_mid", "same residual stream"),
        ("olmo2", "blocks.*.ln1.hook_normalized", "hook_resid_pre"),
        ("gpt2", "blocks.3.attn.hook_q", "no layer 3"),
        ("gpt2", "blocks.0.attn.hook_nope", "not a site"),
        ("gpt2", "attn.hook_q", "not a site"),
    ],
)
def test_sites_that_do_not_exist(name, site, why):
    with pytest.raises(SiteError, match=why):
        hl.capture(hl.load(build(name)), ids(4), [site])


def test_batch_names_what_it_has():
    (batch,) = hl.capture(hl.load(build("gpt2")), ids(4), ["blocks.0.attn.hook_z"])
    with pytest.raises(SiteError, match=r"has: blocks\.0\.attn\.hook_z"):
        batch["blocks.1.attn.hook_z"]


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (torch.full((129,), 5), "longer than the 128"),
        (torch.tensor([5, 97]), "Token id 97 is outside"),
        (torch.tensor([-1, 4]), "Token id -1"),
        ([], "nothing to read"),
        ([[3, 4], []], "nothing to read"),
        ("a text", "tokenise it first"),
        (["a text"], "tokenise it first"),
    ],
)
def test_tokens_that_cannot_be_read(tokens, why):
    with pytest.raises(DataError, match=why):
        hl.capture(hl.load(build("gpt2")), tokens, ["blocks.0.attn.hook_z"])


def test_one_string_is_not_a_list_of_sites():
    with pytest.raises(SiteError, match=r"\['blocks"):
        hl.capture(hl.load(build("gpt2")), ids(4), "blocks.0.attn.hook_z")
