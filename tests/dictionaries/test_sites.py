"""A dictionary is used where it lives, or refused with the reason, even where widths agree."""

import dataclasses
import warnings

import pytest
import torch

import headlens as hl
from headlens._errors import DataError, SiteError
from headlens.dictionaries import Autoencoder, check_site, fitted, wrapped
from tests.dictionaries.test_dictionary import made
from tests.families import build
from tests.fra.made import crosscoder

LAYER, HEAD = 1, 2
SAME = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gpt2():
    return hl.load(build("gpt2"))  # 4 heads x 12 = 48 = d_model: widths say nothing


def _at(site: str | None, *, d_in: int = 48, **options) -> Autoencoder:
    return made(d_in=d_in, d_sae=30, dtype=torch.float32, site=site, **options)


# --- what a head reads ---


@pytest.mark.parametrize(
    ("site", "found"),
    [
        ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre"),
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"),
        ("blocks.1.ln1.hook_normalized", "blocks.1.ln1.hook_normalized"),
    ],
)
def test_what_a_head_reads_is_accepted(gpt2, site, found):
    assert check_site(_at(site), gpt2, LAYER, HEAD) == found
    assert fitted(_at(site), gpt2, LAYER, HEAD).site == found


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("blocks.1.attn.hook_z", "what the heads of that layer write, which is made from their scores"),
        ("blocks.1.hook_attn_out", "what attention adds to the stream"),
        ("blocks.1.hook_mlp_out", "what the MLP adds to the stream, not the stream"),
        ("blocks.1.hook_resid_mid", "the stream after attention, which is made from its scores"),
        ("blocks.1.hook_resid_post", "the stream after the block, which is made from its scores"),
        ("blocks.2.hook_resid_post", "the stream after the block"),
        ("blocks.1.attn.hook_q", "queries, which are made from what the head reads"),
        ("blocks.0.hook_resid_pre", "the stream of another layer"),
        ("blocks.2.hook_resid_pre", "the stream of another layer"),
        ("blocks.2.ln1.hook_normalized", "the stream of another layer"),
        ("blocks.0.attn.hook_z", "what the heads of that layer write"),
        ("blocks.1.ln2.hook_normalized", "which no head reads"),
        ("blocks.1.hook_mlp_in", "which no head reads"),
        ("hook_embed", "lives in hook_embed"),
        (None, "does not say where it was trained"),
    ],
)
def test_what_it_does_not_read_is_refused_with_the_reason(gpt2, site, says):
    for use in (check_site, fitted):
        with pytest.raises(SiteError, match=says) as error:
            use(_at(site), gpt2, LAYER, HEAD)
        wanted = "head 2 of layer 1 reads blocks.1.hook_resid_pre or blocks.1.ln1.hook_normalized"
        assert wanted in str(error.value)


def test_the_width_must_be_the_model_s(gpt2):
    with pytest.raises(
        SiteError, match="reads 47 numbers a row, and blocks.1.hook_resid_pre of GPT2LMHeadModel has 48"
    ):
        check_site(_at("blocks.1.hook_resid_pre", d_in=47), gpt2, LAYER, HEAD)
    with pytest.raises(SiteError, match=r"for another model \(gpt2-xl\)"):
        check_site(_at("blocks.1.hook_resid_pre", d_in=47, model="gpt2-xl"), gpt2, LAYER, HEAD)


@pytest.mark.parametrize(("layer", "head"), [(3, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_head_that_is_not_there(gpt2, layer, head):
    with pytest.raises(IndexError, match="GPT2LMHeadModel has no"):
        check_site(_at("blocks.1.hook_resid_pre"), gpt2, layer, head)


def test_a_model_without_that_norm_has_no_such_site():
    olmo = hl.load(build("olmo2"))
    assert check_site(_at("blocks.1.hook_resid_pre"), olmo, LAYER, HEAD) == "blocks.1.hook_resid_pre"
    with pytest.raises(SiteError, match="no norm stands before its attention"):
        check_site(_at("blocks.1.ln1.hook_normalized"), olmo, LAYER, HEAD)
    with pytest.raises(SiteError, match="reads blocks.1.hook_resid_pre;|reads blocks.1.hook_resid_pre\\."):
        check_site(_at("blocks.1.attn.hook_z"), olmo, LAYER, HEAD)


def test_the_stream_between_two_blocks_is_one_value(gpt2):
    """resid_post of a block is resid_pre of the next: the same numbers, so the same dictionary."""
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    batch = next(hl.capture(gpt2, IDS, sites))
    assert torch.equal(batch[sites[0]], batch[sites[1]])


# --- what it writes ---


def test_what_a_head_writes_is_accepted_of_that_head_and_of_all(gpt2):
    z = "blocks.1.attn.hook_z"
    assert check_site(_at(z), gpt2, LAYER, HEAD, at="z") == z
    assert check_site(_at(z, d_in=12, head=2), gpt2, LAYER, HEAD, at="z") == z
    with pytest.raises(SiteError, match="of the z of head 1; head 2 of layer 1 writes blocks.1.attn.hook_z"):
        check_site(_at(z, d_in=12, head=1), gpt2, LAYER, HEAD, at="z")
    with pytest.raises(SiteError, match="reads 48 numbers a row, and .* has 12"):
        check_site(_at(z, head=2), gpt2, LAYER, HEAD, at="z")
    for other in ("blocks.1.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.1.hook_attn_out"):
        with pytest.raises(SiteError, match="even where widths agree, head 2 of layer 1 writes blocks.1.attn.hook_z"):
            check_site(_at(other), gpt2, LAYER, HEAD, at="z")


def test_grouped_heads_write_as_many_z_as_there_are_queries():
    llama = hl.load(build("llama3_rope"))  # 4 heads of 16: wider than the stream
    assert check_site(_at("blocks.1.attn.hook_z", d_in=64), llama, LAYER, HEAD, at="z")
    with pytest.raises(SiteError, match="reads 48 numbers"):
        check_site(_at("blocks.1.attn.hook_z"), llama, LAYER, HEAD, at="z")


# --- of which model ---


def _named(model, name: str, revision: str | None):
    return dataclasses.replace(model, name=name, revision=revision)


@pytest.mark.parametrize(
    ("card", "name", "revision", "verdict"),
    [
        (None, "gpt2", "abc", "silent"),
        ("gpt2-small", "gpt2", "abc", "silent"),
        ("gpt2-small", "openai-community/gpt2", "abc", "silent"),
        ("EleutherAI/pythia-70m", "/models/pythia-70m/", None, "silent"),
        ("gemma-2-2b", "google/gemma-2-2b-it", "abc", "warning"),
        ("gpt2-small", "/models/mine", None, "warning"),
        ("gpt2-small", "pythia-160m", "abc", "error"),
        ("gpt2-small", "zoo:gpt2-small", None, "error"),
        ("zoo:gpt2-twin", "zoo:gpt2-small", None, "error"),
        ("zoo:gpt2", "zoo:gpt2-small", None, "error"),
        ("zoo:gpt2-small", "zoo:gpt2-small", None, "silent"),
        ("zoo:gpt2-small", "/models/gpt2-small", None, "error"),
    ],
)
def test_another_model_is_an_error_and_a_doubtful_one_a_warning(gpt2, card, name, revision, verdict):
    dictionary, model = _at("blocks.1.hook_resid_pre", model=card), _named(gpt2, name, revision)
    if verdict == "error":
        with pytest.raises(SiteError, match=f"made for {card}, and the model is {name}: what it says of another"):
            check_site(dictionary, model, LAYER, HEAD)
    elif verdict == "warning":
        with pytest.warns(UserWarning, match=f"made for {card}, and the model is {name}, of another name"):
            check_site(dictionary, model, LAYER, HEAD)
    else:
        check_site(dictionary, model, LAYER, HEAD)


def test_weights_tell_more_than_names(gpt2):
    def dictionary(weights, card):
        return _at("blocks.1.hook_resid_pre", model=card, card={"headlens": {"weights": weights}})

    weights = gpt2.provenance()["weights"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_site(dictionary(weights, "zoo:other"), gpt2, LAYER, HEAD) == "blocks.1.hook_resid_pre"
    with pytest.warns(UserWarning, match="whose weights are others"):
        check_site(dictionary("0" * 16, gpt2.name), gpt2, LAYER, HEAD)


def test_weights_of_another_precision_cannot_be_compared(gpt2):
    """Hashes are of numbers as they are held: the same model in float64 has another, and its name must do."""
    at = {"site": "blocks.1.hook_resid_pre", "model": gpt2.name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = {"headlens": {"weights": "of float64", "model": {"dtype": "float64"}}}
        check_site(_at(at["site"], model=at["model"], card=card), gpt2, LAYER, HEAD)
    card = {"headlens": {"weights": "of float32", "model": {"dtype": "float32"}}}
    with pytest.warns(UserWarning, match="whose weights are others"):
        check_site(_at(at["site"], model=at["model"], card=card), gpt2, LAYER, HEAD)


# --- in our own coordinates ---


def _by_hand(x, model, layer: int):
    """The norm without its gain and bias, written out."""
    norm = model.norm(layer, "pre_norm")
    if norm.kind == "layer":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=norm.eps)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "gpt_oss"])
def test_a_dictionary_of_before_the_gain_is_carried_past_it(family):
    model = hl.load(build(family))
    sites = ["blocks.1.hook_resid_pre", "blocks.1.ln1.hook_normalized"]
    batch = next(hl.capture(model, IDS, sites))
    before = _by_hand(batch[sites[0]], model, 1)
    dictionary = _at(sites[1], convention="before_gain")
    out = fitted(dictionary, model, LAYER, HEAD)
    assert torch.allclose(out.encode(batch[sites[1]]), dictionary.encode(before), atol=1e-4)
    assert not torch.allclose(dictionary.encode(batch[sites[1]]), dictionary.encode(before), atol=0.05)
    assert not out.W_enc.requires_grad and not out.vectors.requires_grad


def test_only_streams_that_transformer_lens_centres_lose_their_mean():
    assert fitted(_at("blocks.1.hook_resid_pre", convention="centred"), hl.load(build("gpt2")), 1, 2).takes_mean_off
    llama = hl.load(build("llama"))
    assert not fitted(_at("blocks.1.hook_resid_pre", convention="centred"), llama, 1, 2).takes_mean_off


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2"])
def test_z_without_its_value_bias_is_what_a_pattern_of_unbiased_values_gives(family):
    model = hl.load(build(family))
    sites = ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"]
    batch = next(hl.capture(model, IDS, sites))
    heads = []
    for index in range(model.n_heads):
        head = model.head(1, index)
        x = _by_hand(batch[sites[0]], model, 1)
        gain = head.key_norm.weight
        heads.append(batch[sites[1]][:, index] @ ((x * gain) @ head.W_V))
    theirs = torch.stack(heads, 2).detach()
    dictionary = _at(sites[2], convention="without_value_bias")
    out = fitted(dictionary, model, LAYER, HEAD, at="z")
    assert torch.allclose(out.encode(batch[sites[2]]), dictionary.encode(theirs), atol=1e-4)
    one = _at(sites[2], convention="without_value_bias", d_in=12, head=HEAD)
    fit = fitted(one, model, LAYER, HEAD, at="z")
    assert torch.allclose(fit.encode(batch[sites[2]][:, :, HEAD]), one.encode(theirs[:, :, HEAD]), atol=1e-4)


def test_sinks_leave_no_value_bias_to_take_off():
    model = hl.load(build("gpt_oss"))
    dictionary = _at("blocks.1.attn.hook_z", d_in=64, convention="without_value_bias")
    with pytest.raises(SiteError, match="do not sum to 1"):
        fitted(dictionary, model, LAYER, HEAD, at="z")


def test_a_gain_of_zero_hides_what_stood_before_it(gpt2):
    hf = build("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].ln_1.weight[5] = 0
    dictionary = _at("blocks.1.ln1.hook_normalized", convention="before_gain")
    with pytest.raises(DataError, match="gain holds 0"):
        fitted(dictionary, hl.load(hf), LAYER, HEAD)


def test_a_wrapped_dictionary_is_used_as_it_is(gpt2):
    inner = _at("blocks.1.hook_resid_pre")
    sae = wrapped(inner.encode, inner.decode, inner.W_dec, site="blocks.0.hook_resid_post")
    assert fitted(sae, gpt2, LAYER, HEAD).site == "blocks.1.hook_resid_pre"
    with pytest.raises(DataError, match="must read what headlens shows"):
        fitted(dataclasses.replace(sae, convention="centred"), gpt2, LAYER, HEAD)


def test_a_crosscoder_under_the_other_name_of_its_site_reads_the_same(gpt2):
    own = [crosscoder(gpt2.d_model, ["blocks.0.hook_resid_pre", at], at) for at in SAME]
    found = [fitted(one, gpt2, LAYER, HEAD) for one in own]
    assert [one.inputs for one in found] == [("blocks.0.hook_resid_pre", SAME[1])] * 2
    ids = torch.arange(5, 25)
    one, other = (hl.fra.resolve(gpt2, own_, ids, LAYER, HEAD) for own_ in own)
    assert torch.equal(one.key.vector, other.key.vector)
