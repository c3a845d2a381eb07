"""Laws of dictionaries of any kind: what is taken apart sums up again, however it is cut into chunks."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens._errors import DataError, InvalidWeights
from headlens.dictionaries import Active, Autoencoder

ACTIVATIONS = ("relu", "topk", "abstopk", "jumprelu", "gated")


def made(
    seed: int = 0, *, d_in: int = 6, d_sae: int = 11, activation: str = "relu", dtype=torch.float64, moved: bool = False,
    **options,
) -> Autoencoder:  # fmt: skip
    """Return a dictionary of random numbers; `moved`: in other coordinates than its site's."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) / d_in**0.5

    weights = {
        "W_enc": random(d_in, d_sae),
        "b_enc": random(d_sae),
        "W_dec": random(d_sae, d_in),
        "b_dec": random(d_in),
    }
    if activation == "jumprelu":
        weights["threshold"] = random(d_sae).abs()
    if activation == "gated":
        weights |= {"r_mag": random(d_sae), "b_mag": random(d_sae)}
    if moved:
        weights |= {"gain": random(d_in).sign() * (0.5 + random(d_in).abs()), "shift": random(d_in)}
    k = min(3, d_sae) if "topk" in activation else None
    return Autoencoder(**weights, activation=activation, k=k, **options)


def rows(n: int, d_in: int = 6, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


DICTIONARIES = st.builds(
    made,
    st.integers(0, 1000),
    d_in=st.integers(1, 8),
    d_sae=st.integers(1, 15),
    activation=st.sampled_from(ACTIVATIONS),
    moved=st.booleans(),
    takes_b_dec_off=st.booleans(),
    scaled_by_decoder=st.booleans(),
    takes_mean_off=st.booleans(),
    norm=st.sampled_from(["none", "constant_norm_rescale", "layer_norm"]),
).filter(lambda d: d.norm == "none" or d.d_in > 2 + d.takes_mean_off)  # a row of one number has no spread


@settings(max_examples=120, deadline=None)
@given(DICTIONARIES, st.integers(0, 9), st.integers(1, 10))
def test_sparse_activations_are_the_dense_ones_for_any_chunk(dictionary, n, chunk):
    x = rows(n, dictionary.d_in)
    active, dense = dictionary.encode_sparse(x, chunk=chunk), dictionary.encode(x)
    assert torch.allclose(active.dense(), dense, atol=1e-12)
    assert active.n_rows == n and active.offsets.tolist() == [0, *(dense != 0).sum(1).cumsum(0).tolist()]
    for row in range(n):
        features, values = active.row(row)
        assert torch.equal(features, dense[row].nonzero()[:, 0])
        assert torch.allclose(values, dense[row, features], atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(DICTIONARIES, st.integers(0, 9))
def test_features_bias_and_error_sum_to_the_row(dictionary, n):
    x = rows(n, dictionary.d_in)
    split = dictionary.split(x)
    assert torch.allclose(split.whole, x, atol=1e-12)
    assert torch.allclose(split.explained + split.bias, dictionary.reconstruct(x), atol=1e-10)
    assert torch.allclose(split.error, dictionary.error(x), atol=1e-10)
    assert torch.allclose(split.bias, dictionary.decode(torch.zeros(n, dictionary.d_sae).double(), like=x), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(DICTIONARIES, st.integers(1, 9))
def test_rows_do_not_see_each_other(dictionary, n):
    x = rows(n, dictionary.d_in)
    alone = torch.cat([dictionary.reconstruct(x[i : i + 1]) for i in range(n)])
    assert torch.allclose(dictionary.reconstruct(x), alone, atol=1e-10)
    assert dictionary.encode(x[None]).shape == (1, n, dictionary.d_sae)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scaled", [False, True])
def test_each_rule_is_what_its_name_says(activation, scaled):
    d = made(activation=activation, scaled_by_decoder=scaled)
    for x, found in zip(rows(40), d.encode(rows(40)), strict=True):
        own = x - d.b_dec
        pre = [float(own @ d.W_enc[:, j] + d.b_enc[j]) * (float(d.W_dec[j].norm()) if scaled else 1) for j in range(11)]
        match activation:
            case "relu":
                wanted = [max(p, 0.0) for p in pre]
            case "topk":
                wanted = [max(p, 0.0) if p in sorted(pre)[-3:] else 0.0 for p in pre]
            case "abstopk":
                wanted = [p if p in sorted(pre, key=abs)[-3:] else 0.0 for p in pre]
            case "jumprelu":
                wanted = [p if p > float(t) else 0.0 for p, t in zip(pre, d.threshold, strict=True)]
            case _:
                loud = (own @ d.W_enc) * d.r_mag.exp() + d.b_mag
                wanted = [max(float(m), 0.0) if p > 0 else 0.0 for p, m in zip(pre, loud, strict=True)]
        assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_other_coordinates_are_the_same_as_other_weights(activation):
    """x = gain * own + shift can be folded into the weights where rows are not normalised."""
    d = made(activation=activation, moved=True)
    folded = dataclasses.replace(
        d,
        W_enc=d.W_enc / d.gain[:, None],
        W_dec=d.W_dec * d.gain,
        b_dec=d.b_dec * d.gain + d.shift,
        gain=None,
        shift=None,
    )
    x = rows(20)
    assert torch.allclose(folded.encode(x), d.encode(x), atol=1e-12)
    assert torch.allclose(folded.reconstruct(x), d.reconstruct(x), atol=1e-12)
    assert torch.allclose(folded.vectors, d.vectors)
    assert torch.allclose(folded.split(x).bias, d.split(x).bias)


@pytest.mark.parametrize("moved", [False, True])
def test_rows_are_needed_to_decode_only_where_each_is_normalised(moved):
    d, x = made(moved=moved), rows(5)
    assert torch.equal(d.decode(d.encode(x)), d.reconstruct(x))
    for options in ({"norm": "layer_norm"}, {"norm": "constant_norm_rescale"}, {"takes_mean_off": True}):
        with pytest.raises(DataError, match="pass the rows too"):
            made(moved=moved, **options).decode(torch.zeros(2, 11))


def test_a_mean_that_is_taken_off_is_given_back():
    d = made(takes_mean_off=True)
    x = rows(5)
    up = x + torch.arange(5.0)[:, None]
    assert torch.allclose(d.encode(up), d.encode(x))
    assert torch.allclose(d.error(up), d.error(x))


def test_split_keeps_the_precision_of_the_rows_and_never_less_than_the_dictionary_s():
    half, x = made(dtype=torch.bfloat16), rows(9, dtype=torch.float32)
    split = half.split(x)
    assert split.whole.dtype == torch.float32 and torch.allclose(split.whole, x, atol=1e-6)
    assert half.encode(x).dtype == torch.bfloat16
    single = made(dtype=torch.float32)
    assert torch.allclose(single.split(rows(9)).whole, rows(9), rtol=0, atol=1e-14)
    assert made().split(x).whole.dtype == torch.float64


def test_z_may_come_head_by_head():
    d = made(norm="layer_norm")
    x = rows(5)
    z = x.unflatten(-1, (3, 2))
    assert torch.equal(d.encode(z), d.encode(x)) and torch.equal(d.reconstruct(z).flatten(-2), d.reconstruct(x))
    assert torch.equal(d.encode_sparse(z).dense(), d.encode_sparse(x).dense())
    assert torch.equal(d.split(z).whole, d.split(x).whole)
    assert d.decode(d.encode(z), like=z).shape == z.shape
    with pytest.raises(DataError, match="2 wide .* reads 6"):
        dataclasses.replace(d, head=1).encode(z)  # one head's dictionary does not read all


def test_a_row_with_no_active_feature_is_bias_and_error():
    d = made(activation="jumprelu")
    quiet = dataclasses.replace(d, threshold=torch.full((11,), torch.inf, dtype=torch.float64))  # never fires
    split = quiet.split(rows(4))
    assert len(split.active.features) == 0 and split.active.offsets.tolist() == [0] * 5
    assert torch.equal(split.explained, torch.zeros(4, 6).double())
    assert torch.allclose(split.error, rows(4) - d.b_dec)


def test_a_row_of_zeros_has_no_length_to_be_divided_by():
    d = made(norm="constant_norm_rescale")
    assert torch.isfinite(d.reconstruct(torch.zeros(1, 6).double())).all()
    flat = made(norm="layer_norm").reconstruct(torch.full((1, 6), 2.0).double())
    assert torch.allclose(flat, torch.full((1, 6), 2.0).double())  # no spread: only the mean is left


def test_the_digest_follows_the_numbers_and_options_alone():
    d = made()
    assert d.digest == made().digest == dataclasses.replace(d, card={"name": "other"}).digest
    others = [made(1), made(scaled_by_decoder=True), made(norm="layer_norm"), d.to(dtype=torch.float32)]
    others += [dataclasses.replace(d, site="blocks.0.hook_resid_pre"), made(moved=True), made(activation="topk")]
    assert len({d.digest, *(o.digest for o in others)}) == len(others) + 1
    assert made(dtype=torch.bfloat16).digest != d.digest
    assert d.to(device="cpu", dtype=torch.float64) is d and d.to(dtype=torch.float32).W_dec.dtype == torch.float32


def test_parts_of_active_rows_are_the_rows():
    active = made().encode_sparse(rows(9))
    assert torch.equal(torch.cat([active.part(0, 4).dense(), active.part(4, 99).dense()]), active.dense())
    assert torch.equal(active.times(made().W_dec), active.dense() @ made().W_dec) or torch.allclose(
        active.times(made().W_dec), active.dense() @ made().W_dec, atol=1e-12
    )
    none = Active(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 11)
    assert torch.equal(none.times(torch.ones(11, 2)), torch.zeros(3, 2)) and none.dense().shape == (3, 11)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"W_dec": torch.zeros(11, 7)}, r"W_dec must be \(11, 6\) beside a W_enc of \(6, 11\), and is \(11, 7\)"),
        ({"b_enc": torch.zeros(12)}, r"b_enc must be \(11,\).* is \(12,\)"),
        ({"b_dec": torch.zeros(11)}, r"b_dec must be \(6,\)"),
        ({"W_enc": torch.zeros(6)}, r"W_enc must be \(d_in, d_sae\), not \(6,\)"),
        ({"W_enc": torch.zeros(6, 0)}, r"W_enc must be"),
        ({"activation": "topk", "k": 12}, "k must be from 1 to the 11 features of this topk one, not 12"),
        ({"activation": "topk", "k": 10**30}, "k must be from 1 to the 11"),
        ({"activation": "topk"}, "not None"),
        ({"activation": "abstopk", "k": 0}, "not 0"),
        ({"activation": "jumprelu"}, "needs its threshold"),
        ({"activation": "gated"}, "needs r_mag and b_mag"),
        ({"gain": torch.zeros(6).double()}, "gain holds 0"),
        ({"threshold": torch.zeros(3).double(), "activation": "jumprelu"}, r"threshold must be \(11,\)"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(change, says):
    with pytest.raises(DataError, match=says):
        dataclasses.replace(made(), **change)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(name, value):
    weights = getattr(made(), name).clone()
    weights.view(-1)[-1] = value
    with pytest.raises(InvalidWeights, match=f"NaN or infinite values in {name}"):
        dataclasses.replace(made(), **{name: weights})


def test_a_threshold_may_be_infinite_but_not_nan():
    d = made(activation="jumprelu")
    with pytest.raises(InvalidWeights, match="threshold"):
        dataclasses.replace(d, threshold=d.threshold * torch.nan)


def test_rows_that_cannot_be_read_are_refused():
    d = made(site="blocks.2.hook_resid_pre")
    with pytest.raises(DataError, match="5 wide and this dictionary of blocks.2.hook_resid_pre reads 6"):
        d.encode(rows(3, 5))
    with pytest.raises(DataError, match="NaN or infinite"):
        d.encode_sparse(rows(3) * torch.tensor([[1], [torch.nan], [1]]))
    with pytest.raises(DataError, match="at least 1 row"):
        d.encode_sparse(rows(3), chunk=0)
    with pytest.raises(DataError, match="7 features a row; this dictionary has 11"):
        d.decode(torch.zeros(2, 7))


def test_a_dictionary_says_what_it_is_in_one_line():
    said = repr(made(site="blocks.2.attn.hook_z", head=1, model="gpt2"))
    assert said == "Autoencoder(11 features of 6 numbers at blocks.2.attn.hook_z, head 1 of gpt2)"
