"""Edits do what they say, and no edit of a score lets a query see its future."""

import pytest
import torch

import headlens as hl
from headlens._errors import SiteError
from headlens.tracing import site_names
from tests.families import CONFIGS, build

FAMILIES = list(CONFIGS)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: hl.Model, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(tokens).logits


def read(model: hl.Model, tokens: torch.Tensor, site: str) -> torch.Tensor:
    (batch,) = hl.capture(model, tokens, [site])
    return batch[site]


@pytest.mark.parametrize("name", FAMILIES)
def test_zeroed_z_is_a_zeroed_slice_of_the_output_projection(name):
    hf, tokens = build(name), ids(2, 10)
    model = hl.load(hf)
    with hl.edit(model, [hl.ablate("blocks.1.attn.hook_z", head=2)]):
        edited = logits(model, tokens)
    with torch.no_grad():
        model.head(1, 2).W_O.zero_()
    with hl.edit(model, []):  # eager attention, nothing changed
        by_weights = logits(model, tokens)
    torch.testing.assert_close(edited, by_weights, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("site", ["attn.hook_q", "attn.hook_v", "attn.hook_z", "attn.hook_pattern",
                                  "attn.hook_attn_scores", "hook_resid_pre", "hook_attn_out", "hook_mlp_out"])  # fmt: skip
def test_patching_in_what_is_there_changes_nothing(name, site):
    model, tokens = hl.load(build(name)), ids(2, 9)
    where = f"blocks.1.{site}"
    with hl.edit(model, [hl.patch(where, read(model, tokens, where))]):
        patched = logits(model, tokens)
    with hl.edit(model, []):
        plain = logits(model, tokens)
    torch.testing.assert_close(patched, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_can_be_changed(name):
    """Patching noise into a site changes the logits: no edit is silently dropped."""
    model, tokens = hl.load(build(name)), ids(1, 9)
    with hl.edit(model, []):
        plain = logits(model, tokens)
    for site in site_names(model):
        edit = hl.Edit(f"blocks.1.{site}", lambda value: value + 0.5 * torch.randn_like(value))
        with hl.edit(model, [edit]):
            assert not torch.allclose(logits(model, tokens), plain, atol=1e-3), site


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_edges_carry_nothing_and_the_rest_is_renormalised(name):
    model, tokens = hl.load(build(name)), ids(1, 10)
    before = read(model, tokens, "blocks.1.attn.hook_pattern")[0, 3]
    with hl.edit(model, [hl.cut(1, 3, query=7, key=slice(5, 7))]):
        after = read(model, tokens, "blocks.1.attn.hook_pattern")[0]
    assert not after[3, 7, 5:7].any()
    if model.family.sinks is None:
        kept = before[7].clone()
        kept[5:7] = 0
        torch.testing.assert_close(after[3, 7], kept / kept.sum(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after[3, 6], before[6])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("value", [0.0, 1e4, 1e30])
def test_no_score_edit_opens_the_future(name, value):
    """Whatever is written into the scores, masked keys stay masked and earlier logits do not see later tokens."""
    model = hl.load(build(name))
    first, second = ids(1, 12), ids(1, 12, seed=9)
    second[0, :6] = first[0, :6]
    edit = hl.Edit("blocks.*.attn.hook_attn_scores", lambda scores: torch.full_like(scores, value))
    with hl.edit(model, [edit]):
        pattern = read(model, first, "blocks.1.attn.hook_pattern")
        a, b = logits(model, first), logits(model, second)
    assert not pattern.triu(1).any()
    window = model.head(1, 0).window
    if window is not None:
        assert not pattern.tril(-window).any()
    # Not bit-equal: experts (GPT-OSS) group tokens, later ones included, and so sum in another order.
    assert (a[:, :6] - b[:, :6]).abs().max() <= 1e-5 * a.abs().max()


def test_score_edits_respect_padding():
    model = hl.load(build("llama"))
    row = ids(6)
    padded = torch.cat((torch.zeros(4, dtype=torch.long), row))[None]
    mask = torch.tensor([[False] * 4 + [True] * 6])
    edit = hl.Edit("blocks.*.attn.hook_attn_scores", lambda scores: scores + 1000)
    with hl.edit(model, [edit]), torch.no_grad():
        together = model.forward(padded, mask).logits[0, 4:]
        alone = model.forward(row[None]).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_cutting_everything_is_refused():
    model = hl.load(build("gpt2"))
    with pytest.raises(SiteError, match="at least one"), hl.edit(model, [hl.cut(0, 0, query=3)]):
        logits(model, ids(1, 5))


def test_constant_added_to_scores_changes_nothing():
    """The softmax gauge: an edit goes before the softmax, not after it."""
    model, tokens = hl.load(build("gpt_neox")), ids(1, 8)
    with hl.edit(model, [hl.Edit("blocks.0.attn.hook_attn_scores", lambda s: s + 3.0)]):
        shifted = logits(model, tokens)
    with hl.edit(model, []):
        torch.testing.assert_close(shifted, logits(model, tokens), rtol=1e-5, atol=1e-5)


def test_capture_inside_an_edit_sees_the_edit():
    model, tokens = hl.load(build("llama")), ids(1, 8)
    with hl.edit(model, [hl.ablate("blocks.1.attn.hook_z")]):
        assert not read(model, tokens, "blocks.1.attn.hook_z").any()
    assert read(model, tokens, "blocks.1.attn.hook_z").any()


def test_mean_and_resample():
    model, tokens = hl.load(build("gpt2")), ids(3, 8)
    site = "blocks.1.attn.hook_z"
    z = read(model, tokens, site)
    with hl.edit(model, [hl.ablate(site, head=1, to="mean")]):
        mean = read(model, tokens, site)
    torch.testing.assert_close(mean[:, :, 1], z[:, :, 1].mean((0, 1)).expand(3, 8, -1))
    assert torch.equal(mean[:, :, 0], z[:, :, 0])
    for seed in range(5):
        with hl.edit(model, [hl.ablate(site, to="resample", generator=torch.Generator().manual_seed(seed))]):
            taken = read(model, tokens, site)
        sources = [[torch.equal(row, other) for other in z].index(True) for row in taken]
        assert sorted(sources) == [0, 1, 2]
        assert all(source != place for place, source in enumerate(sources))


def test_resampling_needs_another_sequence():
    model = hl.load(build("gpt2"))
    edit = hl.ablate("blocks.1.attn.hook_z", to="resample", generator=torch.Generator().manual_seed(0))
    with pytest.raises(SiteError, match="only one"), hl.edit(model, [edit]):
        logits(model, ids(1, 5))


def test_mean_is_over_real_tokens():
    model, site = hl.load(build("llama")), "blocks.0.attn.hook_z"
    rows = [ids(12)[None][0], ids(3, seed=1)]
    alone = torch.cat([read(model, row, site)[0] for row in rows])
    with hl.edit(model, [hl.ablate(site, to="mean")]):
        (batch,) = hl.capture(model, rows, [site])
    torch.testing.assert_close(batch[site][1, 0], alone.mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*(f for f in FAMILIES if f not in ("gptj", "gpt_neox")), "bert"])
def test_a_changed_resid_mid_is_the_stream_from_there_on(name):
    model, tokens = hl.load(build(name)), ids(2, 6)
    sites = [f"blocks.1.hook_{s}" for s in ("resid_mid", "mlp_out", "resid_post")]
    with hl.edit(model, [hl.Edit(sites[0], lambda v: 0.5 * v + 1)]):
        (batch,) = hl.capture(model, tokens, sites)
    mid, mlp_out, post = (batch[site] for site in sites)
    if name == "bert":  # the sum is normed
        post, total = post, model.blocks[1].output.LayerNorm(mid + mlp_out)
    else:
        total = mid + mlp_out
    assert (post - total).abs().max() <= 1e-5 * post.abs().max()


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.float32), ("gpt2", torch.float16), ("gptj", torch.float32)]
)
def test_writing_the_least_number_is_cutting(name, dtype):
    """The usual idiom for masking must not spread a row over its future."""
    model, tokens = hl.load(build(name, dtype=dtype)), ids(1, 6)
    least = torch.tensor(torch.finfo(torch.float32 if name == "gptj" else dtype).min)
    site = "blocks.0.attn.hook_attn_scores"
    with (
        pytest.raises(SiteError, match="at least one"),
        hl.edit(model, [hl.patch(site, least, head=0, position=[0, 3])]),
    ):
        logits(model, tokens)
    edit = hl.Edit(site, lambda s: torch.where(torch.arange(6) == 1, least.to(s.dtype), s))
    with hl.edit(model, [edit]):
        pattern = read(model, tokens, "blocks.0.attn.hook_pattern")
    assert not pattern.triu(1).any()
    assert not pattern[..., 2:, 1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_scores(value):
    model = hl.load(build("llama"))
    edit = hl.patch("blocks.0.attn.hook_attn_scores", torch.tensor(value), head=0, position=3)
    with pytest.raises(SiteError, match="NaN"), hl.edit(model, [edit]):
        logits(model, ids(1, 6))


def test_cutting_a_local_window_does_not_open_what_lies_beyond():
    model = hl.load(build("gpt_neo"))  # layer 1 is local, window 5
    with pytest.raises(SiteError, match="at least one"), hl.edit(model, [hl.cut(1, 0, query=9, key=slice(5, 10))]):
        logits(model, ids(1, 12))


def test_a_capture_taken_after_its_edit_is_an_error_not_unedited():
    model = hl.load(build("gpt2"))
    with (
        pytest.raises(SiteError, match="take them inside"),
        hl.edit(model, [hl.ablate("blocks.0.attn.hook_z")]),
    ):
        hl.capture(model, ids(1, 5), ["blocks.0.attn.hook_z"])


def test_edits_beyond_the_last_captured_layer_are_no_fault():
    model, tokens = hl.load(build("llama")), ids(1, 5)
    with hl.edit(model, [hl.ablate("blocks.*.attn.hook_z", head=0)]):
        assert not read(model, tokens, "blocks.0.attn.hook_z")[:, :, 0].any()


def test_one_thread_at_a_time():
    import threading

    model, tokens = hl.load(build("gpt2")), ids(1, 5)
    errors: list[Exception] = []

    def other():
        try:
            read(model, tokens, "blocks.0.attn.hook_z")
        except SiteError as error:
            errors.append(error)

    with hl.edit(model, [hl.ablate("blocks.0.attn.hook_z")]):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert not read(model, tokens, "blocks.0.attn.hook_z").any()
    assert "Another thread" in str(errors[0])


def test_heads_that_do_not_exist():
    model = hl.load(build("llama"))
    with (
        pytest.raises(SiteError, match="no head 3: it has 2"),
        hl.edit(model, [hl.ablate("blocks.0.attn.hook_v", head=3)]),
    ):
        logits(model, ids(1, 4))


def test_patch_chooses_head_and_position():
    model, tokens = hl.load(build("qwen3")), ids(2, 8)
    site = "blocks.0.attn.hook_z"
    z = read(model, tokens, site)
    with hl.edit(model, [hl.patch(site, torch.ones(model.d_head), head=2, position=[1, 4])]):
        new = read(model, tokens, site)
    changed = (new != z).any(-1)
    assert changed.nonzero().tolist() == [[b, t, 2] for b in range(2) for t in (1, 4)]
    pattern = torch.zeros(8)
    pattern[0] = 1
    with hl.edit(model, [hl.patch("blocks.0.attn.hook_pattern", pattern, head=3, position=5)]):
        (batch,) = hl.capture(model, tokens, [site, "blocks.0.attn.hook_v"])
    torch.testing.assert_close(batch[site][:, 5, 3], batch["blocks.0.attn.hook_v"][:, 0, 1])


def test_edits_apply_in_order():
    model, tokens = hl.load(build("gpt2")), ids(1, 4)
    site = "blocks.0.hook_resid_pre"
    with hl.edit(model, [hl.Edit(site, lambda v: v * 0 + 1), hl.Edit(site, lambda v: v * 3)]):
        assert (read(model, tokens, site) == 3).all()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: hl.ablate("blocks.0.attn.hook_z", to="resample"), "generator"),
        (lambda: hl.ablate("blocks.0.attn.hook_pattern", to="mean"), "token axis"),
    ],
)
def test_ablations_that_make_no_sense(make, why):
    with pytest.raises(SiteError, match=why):
        make()


def test_head_of_a_site_without_heads():
    model = hl.load(build("gpt2"))
    with pytest.raises(SiteError, match="no heads"), hl.edit(model, [hl.ablate("blocks.0.hook_attn_out", head=1)]):
        logits(model, ids(1, 4))


def test_gradients_flow_through_the_pattern():
    model, tokens = hl.load(build("llama")), ids(1, 6)
    kept: list[torch.Tensor] = []

    def keep(pattern: torch.Tensor) -> torch.Tensor:
        kept.append(pattern.detach().requires_grad_())
        return kept[-1]

    with hl.edit(model, [hl.Edit("blocks.1.attn.hook_pattern", keep)]):
        model.forward(tokens).logits.sum().backward()
    assert kept[0].grad is not None
    assert kept[0].grad.abs().sum() > 0


def test_a_changed_resid_mid_goes_on_before_any_tap_of_resid_post():
    """Also where the tap of resid_post was there first, in an enclosing edit."""
    model, tokens = hl.load(build("gpt2")), ids(1, 5)
    outer = hl.Edit("blocks.1.hook_resid_post", lambda v: torch.full_like(v, 7))
    with hl.edit(model, [outer]), hl.edit(model, [hl.ablate("blocks.1.hook_resid_mid")]):
        assert (read(model, tokens, "blocks.1.hook_resid_post") == 7).all()


def test_patch_at_positions_of_a_site_without_heads():
    model, tokens = hl.load(build("gpt2")), ids(2, 8)
    site = "blocks.1.hook_resid_pre"
    stream = read(model, tokens, site)
    with hl.edit(model, [hl.patch(site, torch.ones(48), position=7)]):
        new = read(model, tokens, site)
    assert (new[:, 7] == 1).all()
    assert torch.equal(new[:, :7], stream[:, :7])


def test_one_edit_needs_no_list():
    model, tokens = hl.load(build("gpt2")), ids(1, 4)
    with hl.edit(model, hl.ablate("blocks.1.attn.hook_z")):
        assert not read(model, tokens, "blocks.1.attn.hook_z").any()
