"""Any encoder and decoder as a dictionary, a crosscoder included; what does not sum up is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens._errors import DataError, InvalidWeights, NotAffineError
from headlens.dictionaries import wrapped
from tests.dictionaries.test_dictionary import made, rows

SITE = "blocks.1.hook_resid_pre"


def _wrapped(**options):
    inner = made()
    return inner, wrapped(inner.encode, inner.decode, inner.W_dec, site=SITE, **options)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 10))
def test_a_wrapped_dictionary_is_the_dictionary(n, chunk):
    inner, sae = _wrapped(model="gpt2", head=None)
    x = rows(n)
    assert torch.equal(sae.encode(x), inner.encode(x)) and torch.equal(sae.reconstruct(x), inner.reconstruct(x))
    assert torch.allclose(sae.encode_sparse(x, chunk=chunk).dense(), inner.encode(x), atol=1e-12)
    ours, theirs = sae.split(x), inner.split(x)
    for name in ("whole", "explained", "bias", "error"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-12)
    assert (sae.d_in, sae.d_sae, sae.inputs, sae.model) == (6, 11, (SITE,), "gpt2")


def test_what_decodes_otherwise_than_its_vectors_is_not_taken_apart():
    inner = made()
    for decode in (
        lambda f: inner.decode(f) ** 2,
        lambda f: inner.decode(f.sqrt()),
        lambda f: inner.decode(f) * torch.nan,
    ):
        sae = wrapped(inner.encode, decode, inner.W_dec, site=SITE)
        assert sae.encode_sparse(rows(3)).n_rows == 3
        with pytest.raises(NotAffineError, match="not the sum of its features' vectors"):
            sae.split(rows(3))
    other = wrapped(inner.encode, inner.decode, inner.W_dec.roll(1, 0), site=SITE)
    with pytest.raises(NotAffineError, match="Pass the vectors that it decodes with"):
        other.split(rows(3))


def test_every_chunk_is_checked(monkeypatch):
    monkeypatch.setattr("headlens.dictionaries.wrap.CHUNK_NUMBERS", 22)  # 2 rows
    W, x = made().W_dec, torch.arange(7.0).double()[:, None].expand(7, 6)

    def decode(f):
        return f @ W + f[:, 6:7]  # feature 6 decodes to something else than its vector

    sae = wrapped(lambda rows: torch.eye(11).double()[rows[:, 0].long()], decode, W, site=SITE)
    assert torch.allclose(sae.split(x[:6]).whole, x[:6])
    with pytest.raises(NotAffineError):
        sae.split(x)


def test_a_crosscoder_reads_several_sites_and_is_taken_apart_at_one():
    sites = ("blocks.0.hook_resid_pre", SITE, "blocks.2.hook_resid_pre")
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(3, 6, 11, generator=generator), torch.randn(3, 11, 6, generator=generator)

    def encode(x):
        return torch.einsum("...id,ids->...s", x, W_enc).relu()

    sae = wrapped(encode, lambda f: f @ W_dec[1] + 0.5, W_dec[1], site=SITE, inputs=sites)
    x = torch.randn(8, 3, 6, generator=generator)
    split = sae.split(x)
    assert sae.inputs == sites and torch.allclose(split.whole, x[:, 1], atol=1e-6)
    assert torch.allclose(split.error, x[:, 1] - encode(x) @ W_dec[1] - 0.5, atol=1e-4)
    assert torch.allclose(sae.encode_sparse(x, chunk=3).dense(), encode(x))
    with pytest.raises(DataError, match=r"Rows of this dictionary are \(row, 3, 6\), not \(8, 6\)"):
        sae.split(x[:, 1])
    with pytest.raises(DataError, match=r"\(row, 3, 6\), not \(8, 2, 6\)"):
        sae.encode(x[:, :2])
    with pytest.raises(DataError, match="not among the inputs"):
        wrapped(encode, lambda f: f @ W_dec[1], W_dec[1], site="blocks.5.hook_resid_pre", inputs=sites)


def test_answers_of_the_wrong_shape_are_refused():
    inner = made()
    with pytest.raises(DataError, match=r"encode must return \(3, 11\) for rows of \(3, 6\), not \(3, 10\)"):
        wrapped(lambda x: inner.encode(x)[:, 1:], inner.decode, inner.W_dec, site=SITE).encode(rows(3))
    with pytest.raises(DataError, match="not ndarray"):
        wrapped(lambda x: inner.encode(x).numpy(), inner.decode, inner.W_dec, site=SITE).encode(rows(3))
    with pytest.raises(DataError, match=r"decode must return \(1, 6\), not \(1, 5\)"):
        wrapped(inner.encode, lambda f: inner.decode(f)[:, 1:], inner.W_dec, site=SITE).split(rows(3))
    with pytest.raises(DataError, match=r"are \(row, 6\), not \(3, 5\)"):
        _wrapped()[1].encode(rows(3, 5))
    with pytest.raises(InvalidWeights, match="finite numbers"):
        wrapped(inner.encode, inner.decode, inner.W_dec * torch.inf, site=SITE)


def test_nothing_of_it_learns():
    W = torch.nn.Parameter(made().W_dec)
    sae = wrapped(lambda x: (x @ W.T).relu(), lambda f: f @ W, W, site=SITE)
    assert not sae.split(rows(3)).whole.requires_grad and not sae.encode(rows(3)).requires_grad


def test_the_digest_follows_vectors_bias_and_site():
    inner, sae = _wrapped()
    same = wrapped(inner.encode, inner.decode, inner.W_dec, site=SITE)
    biased = wrapped(inner.encode, lambda f: inner.decode(f) + 1, inner.W_dec, site=SITE)
    moved = wrapped(inner.encode, inner.decode, inner.W_dec, site="blocks.0.hook_resid_pre")
    assert sae.digest == same.digest and len({sae.digest, biased.digest, moved.digest}) == 3
    assert sae.to(dtype=torch.float32).W_dec.dtype == torch.float32
