"""Laws of every construction: what is wired is what transformers computes, and nothing else is there."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headlens as hl
from headlens._errors import ModelNotFound, UnsupportedArchitecture
from headlens.zoo import constructed
from headlens.zoo.constructed import llama, maps
from headlens.zoo.constructed.wiring import Design
from tests.zoo.constructions import ALL, ROTARY, by_hand, construction, design, directions, loaded, read

each = pytest.mark.parametrize(("name", "architecture"), ALL)


def test_names():
    assert constructed.names() == (
        "all_kinds",
        "anti_induction",
        "concepts",
        "copying",
        "duplicate_token",
        "impostor",
        "indirect_objects",
        "induction",
        "relations",
        "rules",
        "sink",
        "successor",
        "synonyms",
        "two_matches",
    )


# --- the forward pass is what the wiring says ---------------------------------------------------------------


@each
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_transformers_computes_what_is_wired(name, architecture, data):
    c, wired = construction(name, architecture), design(name, architecture)
    words = st.integers(0 if wired.bos is None else 1, len(wired.tokens) - 1)
    # few different words, so that they come back; with BOS in front or without
    drawn = data.draw(st.lists(st.sampled_from(data.draw(st.lists(words, min_size=1, max_size=8))), max_size=50))
    ids = [data.draw(words), *drawn] if data.draw(st.booleans()) or wired.bos is None else [wired.bos, *drawn]
    seen = read(c, ids)
    patterns, logits = by_hand(wired, ids, architecture)
    for place, pattern in patterns.items():
        np.testing.assert_allclose(seen.patterns[place].numpy(), pattern, atol=2e-6)
    np.testing.assert_allclose(seen.logits.numpy(), logits, atol=1e-4, rtol=1e-5)


@each
def test_heads_beyond_the_wired_ones_are_even_and_silent(name, architecture):
    c = construction(name, architecture)
    ids = list(range(10))
    wired = [(layer, head) for layer, row in enumerate(design(name, architecture).layers) for head in range(len(row))]
    even = torch.ones(10, 10).tril() / torch.arange(1, 11)[:, None]
    for place in set(c.heads) - set(wired):
        assert c.heads[place] == "uniform"
        torch.testing.assert_close(read(c, ids).patterns[place], even)
        assert not loaded(c).head(*place).W_O.any()
    assert set(wired) <= set(c.heads)
    assert len(c.heads) == loaded(c).n_layers * loaded(c).n_heads


# --- the weights hold the wiring and nothing else -------------------------------------------------------------


def table(terms, names):
    index = {name: i for i, name in enumerate(names)}
    filled = torch.zeros(len(names), len(names))
    for one, other, weight in terms:
        filled[index[one], index[other]] += weight
    return filled


@each
def test_feature_pairs_of_every_head(name, architecture):
    """Scores and effects between any two features are the wiring's; where it says nothing they are zero.

    Exactly zero in the weights; LayerNorm's own mean, which torch rounds, leaves next to nothing in what they give.
    """
    c = construction(name, architecture)
    model, basis = loaded(c), directions(c)
    for place, wiring in c.wiring.items():
        head = model.head(*place)
        effects, moved = head.output(head.value(basis)) @ basis.T, table(wiring.move, c.features)
        torch.testing.assert_close(effects, moved, atol=1e-5, rtol=1e-6)
        assert effects[moved == 0].abs().sum() < 1e-9
        assert not (basis @ head.W_V @ head.W_O @ basis.T)[moved == 0].any()
        if not wiring.back:  # as Llama, looking back is a rotation and not a pair
            scores = head.scale * head.query(basis, None) @ head.key(basis, None).T
            matched = table(wiring.match, c.features)
            torch.testing.assert_close(scores, matched, atol=1e-5, rtol=1e-6)
            assert scores[matched == 0].abs().sum() < 1e-9
            assert not (basis @ head.W_Q @ head.W_K.T @ basis.T)[matched == 0].any()


@pytest.mark.parametrize("name", constructed.names())
def test_a_value_is_as_long_as_what_it_makes_the_head_write(name):
    """So weighing attention by values and by outputs is the same. (Heads that share values hold others', too.)"""
    c = construction(name)
    for place, wiring in c.wiring.items():
        lengths = loaded(c).head(*place).value(directions(c)).norm(dim=1)
        torch.testing.assert_close(lengths, table(wiring.move, c.features).norm(dim=1), atol=1e-5, rtol=1e-6)


def test_terms_that_are_named_twice_add_up():
    assert maps.table([("a", "x", 1), ("b", "x", 2), ("a", "x", 4)], ["a", "b"], ["x", "y"]).tolist() == [
        [5, 0],
        [2, 0],
    ]


@each
def test_features_are_a_true_dictionary(name, architecture):
    """Orthonormal, and every row of every residual stream is the sum of its parts."""
    c = construction(name, architecture)
    basis = directions(c)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-6, rtol=0)
    model = loaded(c)
    ids = torch.randint(len(c.tokenizer), (3, 40), generator=torch.Generator().manual_seed(0))
    sites = [f"blocks.*.{site}" for site in ("hook_resid_pre", "hook_attn_out", "hook_resid_post")]
    (batch,) = hl.capture(model, ids, sites)
    for site in batch.keys():  # noqa: SIM118 (not a dict)
        stream = batch[site]
        torch.testing.assert_close(stream @ basis.T @ basis, stream, atol=1e-5, rtol=1e-6)
    embedded = batch["blocks.0.hook_resid_pre"] @ basis.T
    assert {round(x, 5) for x in embedded.unique().tolist()} == {0.0, 1.0}


@each
def test_norms_do_nothing(name, architecture):
    c = construction(name, architecture)
    model, basis = loaded(c), directions(c)
    x = torch.randn(200, len(basis), generator=torch.Generator().manual_seed(1)) @ basis
    for layer in range(model.n_layers):
        torch.testing.assert_close(model.norm(layer, "pre_norm")(x), x, atol=2e-7, rtol=1e-6)
        parts = 3 * x[:100], x[100:] - 3 * x[:100]  # of any part, and so without freezing
        norm = model.norm(layer, "pre_norm")
        torch.testing.assert_close(norm(parts[0]) + norm(parts[1]), x[100:], atol=5e-6, rtol=1e-6)


# --- ordinary transformers models ------------------------------------------------------------------------------


@each
def test_headlens_verifies_it(name, architecture):
    report = hl.verify(loaded(construction(name, architecture)))
    assert report.passed, report.worst()


@each
def test_a_model_object_alone_knows_how_its_sequences_begin(name, architecture):
    c = construction(name, architecture)
    assert hl.load(c.model).bos == design(name, architecture).bos
    assert len(c.tokenizer) == loaded(c).vocab_size == len(design(name, architecture).tokens)
    assert c.model.config.eos_token_id is None  # the default of transformers lies outside the vocabulary
    assert c.model.config.pad_token_id is None


@each
def test_saved_and_loaded_again(tmp_path, name, architecture):
    c = construction(name, architecture)
    folder = c.save(tmp_path / "model")
    model = hl.load(str(folder))
    words = list(design(name, architecture).tokens)
    text = " ".join(words[1:9])
    ids = c.tokenizer(text)["input_ids"]
    assert model.tokenizer(text)["input_ids"] == ids == ([0] if words[0] == "<bos>" else []) + list(range(1, 9))
    assert model.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert model.bos == loaded(c).bos == design(name, architecture).bos
    with torch.no_grad():
        before, after = (hf(torch.tensor([ids])).logits for hf in (c.model, model.hf))
    assert torch.equal(before, after)
    assert type(model.hf) is type(c.model)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert c.proof in card
    assert "ead" in c.proof.split("\n")[0]
    assert all(f"    {layer}.{head}  {kind}\n" in card for (layer, head), kind in c.heads.items())


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_text_goes_in_and_out(architecture):
    c = construction("induction", architecture)
    patterns = hl.heads.attention_patterns(loaded(c), ["cat red fox cat"])
    assert patterns.tokens == (("<bos>", "cat", " red", " fox", " cat"),)
    with pytest.raises(Exception, match="Missing"):
        c.tokenizer("cat unheard-of")


def test_models_are_told_apart_by_name():
    models = [hl.load(construction(name).model) for name in ("induction", "sink")]
    scores = hl.heads.score(models, ["sink"], num_samples=2)
    assert set(scores.table["model"].to_pylist()) == {"constructed/induction", "constructed/sink"}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_building_twice_gives_the_same_bits_and_draws_no_random_number(architecture):
    before = torch.get_rng_state()
    one, two = (hl.load(constructed.build("anti_induction", architecture=architecture).model) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.provenance() == two.provenance()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_construction_does_not_drop_out(architecture):
    assert not constructed.build("successor", architecture=architecture).model.training


@pytest.mark.parametrize("name", ROTARY)
def test_a_llama_groups_its_heads(name):
    model = loaded(construction(name, "llama"))
    assert model.family.title == "Llama"
    assert model.n_heads == 2 * model.n_kv_heads


# --- refusals ----------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ModelNotFound, match="'inductoin'.*copying, duplicate_token"):
        constructed.build("inductoin")
    with pytest.raises(Exception, match="mamba"):
        constructed.build("induction", architecture="mamba")


@pytest.mark.parametrize("name", [*sorted(set(constructed.names()) - set(ROTARY)), "indirect_objects"])
def test_what_rotation_cannot_do_is_refused(name):
    with pytest.raises(UnsupportedArchitecture, match='The duplicate_token head .* architecture="gpt2"'):
        constructed.build(name, architecture="llama")


@pytest.mark.parametrize(
    "wiring",
    [
        constructed.Wiring("suppressing", back=((0, -60.0),)),
        constructed.Wiring("in two minds", back=((1, 60.0), (2, 60.0))),
        constructed.Wiring("matching, too", match=(("constant", "token:a", 1.0),), back=((1, 60.0),)),
    ],
    ids=lambda wiring: wiring.name,
)
def test_each_thing_that_rotation_cannot_do_is_refused(wiring):
    with pytest.raises(UnsupportedArchitecture, match=f"The {wiring.name} head"):
        llama.compiled(Design({"a": ("token:a", "constant")}, ((wiring,),), ()))


@pytest.mark.parametrize("n", [130, 131])
def test_as_many_features_as_rotation_can_tell_are_matched_and_no_more(n):
    words = [f"w{i}" for i in range(n)]
    wiring = constructed.Wiring("matching", match=tuple((f"token:{w}", f"token:{w}", 60.0) for w in words))
    wide = Design({w: (f"token:{w}", "constant") for w in words}, ((wiring,),), ())
    if n > 130:
        with pytest.raises(UnsupportedArchitecture, match="308 .* need 310.*fewer features"):
            llama.compiled(wide)
        return
    turning = llama.compiled(wide).hf.model.rotary_emb.inv_freq[: llama.SLOW]
    expected = 10 ** (-torch.arange(llama.SLOW) / 4)
    torch.testing.assert_close(turning, expected, rtol=1e-4, atol=0)
