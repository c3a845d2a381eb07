"""Changing heads side by side is changing them one by one; who carries a task gets all of its effect."""

import numpy as np
import pytest
import torch

import headlens as hl
from headlens.data import pack
from headlens.heads import effects
from headlens.heads.effects import (
    attention_lost,
    attention_watched,
    name_movers,
    outputs_at,
    probability_gained,
    sweep,
    target_watched,
    undisturbed,
)
from headlens.heads.kinds import KINDS
from headlens.heads.setting import Protocol, Setting
from headlens.tracing import edit, patch
from headlens.zoo import constructed
from tests.families import CONFIGS, build


def prompts(n: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    return pack([np.append([1], rng.integers(5, 90, m)) for m in rng.integers(5, 9, n)])


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("batch_tokens", [20, 10**6])
def test_a_sweep_is_every_head_patched_alone(family, batch_tokens):
    model, tokens, rng = hl.load(build(family)), prompts(), np.random.default_rng(1)
    where, targets = rng.integers(1, 5, 4), rng.integers(5, 90, 4)
    new = torch.randn(model.n_layers, model.n_heads, 4, model.d_head, generator=torch.Generator().manual_seed(0))
    found = sweep(model, tokens, new, where, target_watched(model, targets), batch_tokens=batch_tokens)
    for i, ids in enumerate(tokens):
        before = model.forward(torch.tensor(ids.tolist())[None]).logits[0, -1].softmax(-1)[targets[i]].item()
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                site = f"blocks.{layer}.attn.hook_z"
                with edit(model, patch(site, new[layer, head, i][None, None], head=head, position=[int(where[i])])):
                    logits = model.forward(torch.tensor(ids.tolist())[None]).logits[0, -1]
                after = logits.softmax(-1)[targets[i]].item()
                assert found[i, layer, head] == pytest.approx(after - before, abs=1e-6)


def test_gains_by_hand():
    before, after = torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([[0.0, np.log(3.0)], [0.0, 9.0]])
    target = torch.tensor([1, 0])
    np.testing.assert_allclose(probability_gained(before, after, target), [0.75 - 0.5, 0], atol=1e-7)
    heads = after.expand(2, 3, 2, 2)  # what came of three heads in two layers
    np.testing.assert_allclose(probability_gained(before, heads, target)[1, 2], [0.25, 0], atol=1e-7)
    was, now = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]]]), torch.tensor([[[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]])
    lost = attention_lost(was, now, torch.tensor([[True, False, True]]))
    np.testing.assert_allclose(lost, [((0.7 - 0.2) + (0.1 - 0.9)) / 2], atol=1e-7)


def test_putting_back_what_a_head_says_changes_nothing():
    model, tokens = hl.load(build("qwen3")), prompts()
    ends, targets = tokens.lengths - 1, np.array([7, 8, 9, 10])
    gained = sweep(model, tokens, outputs_at(model, tokens, ends), ends, target_watched(model, targets))
    np.testing.assert_allclose(gained, 0, atol=1e-6)


def test_the_one_head_that_carries_a_task_gets_all_of_its_effect_and_the_others_none():
    """One layer, and of its heads only one writes: at the same last token, its output is all that tells prompts apart."""
    hf = build("gpt2")
    hf.transformer.h = hf.transformer.h[:1]
    hf.config.n_layer = 1
    with torch.no_grad():
        hf.transformer.h[0].attn.c_proj.weight[:24] = 0  # rows are heads 0-3, 12 each
        hf.transformer.h[0].attn.c_proj.weight[36:] = 0
    model, n = hl.load(hf), 6
    rng = np.random.default_rng(0)
    told, control = (pack([np.append(rng.integers(5, 90, 7), 3) for _ in range(n)]) for _ in range(2))
    ends, targets = told.lengths - 1, rng.integers(5, 90, n)
    watch = target_watched(model, targets)
    gain = sweep(model, control, outputs_at(model, told, ends), ends, watch)
    right = torch.from_numpy(targets)
    whole = probability_gained(undisturbed(model, control, watch), undisturbed(model, told, watch), right).numpy()
    np.testing.assert_allclose(gain[:, 0, 2], whole, atol=1e-6)
    np.testing.assert_allclose(gain[:, 0, [0, 1, 3]], 0, atol=1e-7)
    assert np.abs(whole).max() > 1e-4  # there was something to carry


def test_a_mean_over_a_group_leaves_the_prompt_itself_out():
    z = torch.arange(6.0)[None, None, :, None].expand(1, 2, 6, 3)
    mean = effects._mean_by(np.array([0, 1, 0, 1, 0, 1]), z)
    assert mean[0, 0, :, 0].tolist() == [3, 4, 2, 3, 1, 2]


def test_name_movers_are_the_heads_that_look_most():
    model, tokens = hl.load(build("llama")), prompts()
    io = [np.array([1, 2]), np.array([3]), np.array([2]), np.array([1, 3])]
    found = np.zeros((model.n_layers, model.n_heads))
    for ids, keys in zip(tokens, io, strict=True):
        (batch,) = hl.capture(model, [ids.tolist()], ["blocks.*.attn.hook_pattern"])
        for layer in range(model.n_layers):
            found[layer] += batch[f"blocks.{layer}.attn.hook_pattern"][0, :, -1, keys].sum(-1).numpy()
    best = sorted(np.ndindex(*found.shape), key=lambda at: -found[at])[: effects.NAME_MOVERS]
    assert name_movers(model, tokens, tokens.lengths - 1, io) == best
    watch = attention_watched(model, best, tokens.lengths - 1, io)
    attended = undisturbed(model, tokens, watch)
    lost = watch.gain(attended, torch.zeros_like(attended), np.arange(4))
    assert lost.sum().item() == pytest.approx(np.mean([found[at] for at in best]), abs=1e-5)


def test_an_entity_that_was_swapped_out_is_nowhere_in_the_prompt():
    setting = Setting(hl.load(build("gpt2")), Protocol(num_prompts=6))
    stimulus = setting.stimulus("entities")
    swapped = effects._with_first(effects._without_entity(setting), stimulus.answers["first"])
    for i, ids in enumerate(swapped):
        told = stimulus.tokens[i]
        assert len(ids) == len(told) + 1 and ids[-1] == stimulus.answers["first"][i]
        changed = np.flatnonzero(ids[:-1] != told)
        assert len(changed) == 3 and np.ptp(changed) == 2  # the entity's three tokens


@pytest.mark.parametrize("kind", ["concept_induction"])
@pytest.mark.parametrize("family", CONFIGS)
def test_causal_kinds_run_on_every_family(family, kind):
    measured = KINDS[kind].how(Setting(hl.load(build(family)), Protocol(num_prompts=3)))
    assert measured.own.shape == measured.null.shape == (3, 3, 4)
    assert np.isfinite(measured.own).all() and np.isfinite(measured.null).all()
    assert np.abs(measured.own).max() < 1


@pytest.mark.parametrize("kind", ["s_inhibition", "function_vector"])
def test_causal_kinds_run_on_prompts(kind):
    model = hl.load("zoo:mistral-small")
    measured = KINDS[kind].how(Setting(model, Protocol(num_prompts=16)))
    assert measured.own.shape == (16, model.n_layers, model.n_heads)
    assert np.abs(measured.own).max() > 1e-4  # some head does change something


def test_a_hand_set_model_is_swept_too():
    made = constructed.build("induction")
    setting = Setting(hl.load(made.model), Protocol(num_prompts=4))
    assert np.isfinite(KINDS["concept_induction"].how(setting).own).all()
