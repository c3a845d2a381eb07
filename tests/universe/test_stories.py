"""A model of others, of another tokenizer and other texts, is added last: do its heads lie where heads of their kind do?"""

import numpy as np
import pytest

import headlens as hl
from headlens.data import world
from headlens.heads import atlas
from headlens.universe import fit_features, fit_universe, record_patterns
from headlens.universe.clone import Training

MODELS = ("zoo:llama-small", "zoo:mistral-small", "zoo:olmo2-small", "zoo:qwen3-small")
KIND = "previous_token"


@pytest.mark.slow
def test_previous_token_heads_of_a_model_that_is_added_lie_next_to_previous_token_heads(stories, tmp_path):
    texts = [document.text[:150] for document in world.documents(192, seed=0)]
    features = fit_features(hl.load("zoo:neox-small"), texts)
    recorded = [record_patterns(hl.load(name), texts, tmp_path / name[4:]) for name in MODELS]
    universe = fit_universe(recorded, features, training=Training(epochs=6, rate=0.01, decay=0.3))
    unseen = hl.load(stories)
    universe = universe.add(unseen, texts, documents=64)
    labels = atlas([unseen, *map(hl.load, MODELS)], [KIND], num_samples=16, seed=0).table.to_pylist()
    score = {(row["model"], row["layer"], row["head"]): row["score"] for row in labels if row["kind"] == KIND}
    mine = [head for head in universe.heads if head.model == unseen.name]
    own = np.array([score[tuple(head)] for head in mine])

    near = [universe.neighbours(head, 5, other_models=True).to_pylist() for head in mine]
    around = np.array([np.mean([score[row["model"], row["layer"], row["head"]] for row in rows]) for rows in near])
    everyone = np.mean([score[tuple(head)] for head in universe.heads if head.model in MODELS])
    assert (own > 0.5).any() and around[own > 0.5].mean() > 2 * everyone
    assert around[own > 0.5].mean() > around[own <= 0.5].mean()

    surest = max((head for head in universe.heads if head.model in MODELS), key=lambda head: score[tuple(head)])
    ranked = universe.neighbours(surest, len(universe.heads), other_models=True).to_pylist()
    joined = [(row["layer"], row["head"]) for row in ranked if row["model"] == unseen.name][:5]
    assert np.mean([score[unseen.name, *head] for head in joined]) > own.mean()
