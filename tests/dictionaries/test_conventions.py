"""What TransformerLens shows at a site, against what headlens shows there: parity with TransformerLens itself.

A dictionary made for TransformerLens' value, once fitted, must say of headlens' value what it says of that one.
Runs where transformer-lens is installed (it comes with the sae extra).
"""

import copy
import dataclasses

import pytest
import torch

import headlens as hl
from headlens.dictionaries import Autoencoder, fitted
from tests.families import CONFIGS, build

pytest.importorskip("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore")

LAYER, HEAD = 1, 2
RESID, NORMALIZED, Z = (f"blocks.{LAYER}.{name}" for name in ("hook_resid_pre", "ln1.hook_normalized", "attn.hook_z"))
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


def _gpt2():
    hf = build("gpt2")
    hf.config.scale_attn_by_inverse_layer_idx = False  # TransformerLens knows of no such option
    for block in hf.transformer.h:
        block.attn.scale_attn_by_inverse_layer_idx, block.attn.scaling = False, (48 // 4) ** -0.5
    return hf


def _seen_by_transformer_lens(hf, *, processed: bool):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = HookedTransformerConfig(
        n_layers=3, d_model=48, n_ctx=128, d_head=12, n_heads=4, d_mlp=192, d_vocab=97, act_fn="gelu_new",
        normalization_type="LN", eps=CONFIGS["gpt2"]().layer_norm_epsilon, device="cpu", init_weights=False,
    )  # fmt: skip
    model = HookedTransformer(config)
    weights = convert_gpt2_weights(copy.deepcopy(hf), config)
    options = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), processed)
    model.load_and_process_state_dict(weights, **options)
    return model.run_with_cache(IDS, prepend_bos=False)[1]


def _random(site: str, convention, *, d_in: int = 48, head: int | None = None) -> Autoencoder:
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(d_in, 70, generator=generator) / 7
    b_enc, b_dec = (torch.randn(n, generator=generator) / 3 for n in (70, d_in))
    return Autoencoder(
        W_enc=W, b_enc=b_enc, W_dec=W.T.clone(), b_dec=b_dec, site=site, head=head, convention=convention
    )


@pytest.mark.parametrize(
    ("site", "processed", "convention"),
    [
        (RESID, False, "site"),
        (RESID, True, "centred"),
        (NORMALIZED, False, "before_gain"),
        (NORMALIZED, True, "before_gain"),
        (Z, False, "site"),
        (Z, True, "without_value_bias"),
    ],
)
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_a_fitted_dictionary_says_of_our_value_what_it_says_of_theirs(site, processed, convention, norm):
    hf = _gpt2()
    theirs = _seen_by_transformer_lens(hf, processed=processed)[site].detach()
    model = hl.load(hf)
    ours = next(hl.capture(model, IDS, [site]))[site]
    dictionary = dataclasses.replace(_random(site, convention), norm=norm)
    made = fitted(dictionary, model, LAYER, HEAD, at="z" if site == Z else "input")
    assert made.convention == "site"
    assert torch.allclose(made.encode(ours), dictionary.encode(theirs), atol=2e-4)
    if convention != "site" and (convention, norm) != ("centred", "layer_norm"):  # a norm that takes the mean off
        assert not torch.allclose(dictionary.encode(ours), dictionary.encode(theirs), atol=0.1)
    # and both leave the same of the value unexplained, up to the change of coordinates
    gap = made.error(ours).flatten(2) if site == Z else made.error(ours)
    other = dictionary.error(theirs).flatten(2) if site == Z else dictionary.error(theirs)
    gain = model.norm(LAYER, "pre_norm").weight if convention == "before_gain" else torch.ones(48)
    assert torch.allclose(gap, other * gain, atol=2e-4)


def test_a_dictionary_of_one_head_is_fitted_to_that_head():
    hf = _gpt2()
    theirs = _seen_by_transformer_lens(hf, processed=True)[Z].detach()
    model = hl.load(hf)
    ours = next(hl.capture(model, IDS, [Z]))[Z]
    dictionary = _random(Z, "without_value_bias", d_in=12, head=HEAD)
    made = fitted(dictionary, model, LAYER, HEAD, at="z")
    assert torch.allclose(made.encode(ours[:, :, HEAD]), dictionary.encode(theirs[:, :, HEAD]), atol=2e-4)
