"""Train models of the zoo: `python -m headlens.zoo.train NAME... [--out DIR]`.

Every ~30 seconds the weights and the optimiser are written whole to a work folder; the same command started
again after a kill goes on from there and ends with the same bytes, for nothing else has a state: batch i
and the learning rate at step i depend only on the recipe. At the end the saved fp16 files are loaded again and
measured; the exit status is 1 if a model lacks what the zoo promises.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from headlens._files import whole_folder
from headlens.data import world
from headlens.zoo import guide
from headlens.zoo.card import write_card
from headlens.zoo.check import Findings, check
from headlens.zoo.curriculum import Batch, Corpus, batch, plain_ids, read
from headlens.zoo.recipes import RECIPES, Recipe
from headlens.zoo.tokenizer import train_tokenizer

SAVE_EVERY = 30.0
"""Seconds between checkpoints."""
WARM_UP = 50
"""Steps over which the learning rate rises; it then falls to a tenth along a cosine."""


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of a recipe before its first step. Eager attention, because the guide reads patterns."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(recipe.family, **recipe.sizes, **ids, vocab_size=len(tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def new_optimiser(model: PreTrainedModel) -> torch.optim.AdamW:
    """AdamW that decays matrices, and neither norms nor biases."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    fall = 0.1 + 0.45 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.lr * min(1.0, (step + 1) / WARM_UP) * fall


def loss(model: PreTrainedModel, given: Batch, recipe: Recipe, *, guided: bool) -> Tensor:
    """Next-token loss in nats; while `guided`, plus what guides two heads."""
    out = model(input_ids=given.ids, labels=given.labels, position_ids=given.positions, output_attentions=guided)
    if not guided:
        return out.loss
    (previous_layer, previous_head), (induction_layer, induction_head) = recipe.previous, recipe.induction
    previous = out.attentions[previous_layer][:, previous_head]
    induction = out.attentions[induction_layer][given.is_repeat, induction_head]
    return (
        out.loss
        + guide.guide_loss(previous, guide.previous_token(given.ids))
        + guide.guide_loss(induction, guide.induction(given.ids[given.is_repeat]))
    )


def step(model: PreTrainedModel, optimiser: torch.optim.Optimizer, i: int, recipe: Recipe, given: Batch) -> float:
    """Take step `i` and return its loss."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(i, recipe)
    value = loss(model, given, recipe, guided=i < guide.GUIDED * recipe.steps)
    optimiser.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return value.item()


def save_checkpoint(
    folder: Path, recipe: Recipe, model: PreTrainedModel, optimiser: torch.optim.Optimizer, done: int
) -> None:
    """Write all that training needs to go on after `done` steps."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    moments = {
        f"{name}/{key}": value for name, p in model.named_parameters() for key, value in optimiser.state[p].items()
    }
    state = {"done": done, "recipe": _fingerprint(recipe)}
    with whole_folder(folder) as new:
        save_file(weights, new / "weights.safetensors")
        save_file(moments, new / "optimiser.safetensors")
        (new / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path, recipe: Recipe, model: PreTrainedModel, optimiser: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote and return how many steps were done; 0 if it was for no such recipe."""
    if not (folder / "state.json").is_file():
        return 0
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state["recipe"] != _fingerprint(recipe):
        return 0
    weights = load_file(folder / "weights.safetensors")
    moments = load_file(folder / "optimiser.safetensors")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
            keys = [key for key in moments if key.startswith(f"{name}/")]
            optimiser.state[p] = {key.removeprefix(f"{name}/"): moments[key] for key in keys}
    return state["done"]


def _fingerprint(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()


def fit(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    checkpoint: Path,
    *,
    report: Callable[[int, float], None] = lambda _done, _loss: None,
    save_every: float = SAVE_EVERY,
) -> PreTrainedModel:
    """Train a model, from `checkpoint` if there is one; `report` hears of every step."""
    model = new_model(recipe, tokenizer).train()
    optimiser = new_optimiser(model)
    plain = plain_ids(tokenizer)
    saved = time.monotonic()
    for i in range(load_checkpoint(checkpoint, recipe, model, optimiser), recipe.steps):
        value = step(model, optimiser, i, recipe, batch(i, recipe, corpus, plain))
        report(i + 1, value)
        if time.monotonic() - saved >= save_every:
            save_checkpoint(checkpoint, recipe, model, optimiser, i + 1)
            saved = time.monotonic()
    return model.eval()


def make(name: str, out: Path, work: Path, console: Console) -> Findings:
    """Train the model `name`, save it to `out / name` with its card, and return what was measured in it."""
    recipe = RECIPES[name]
    with Progress(console=console) as progress:
        drawn = world.documents(recipe.documents, seed=recipe.seed)
        documents = list(progress.track(drawn, total=recipe.documents, description=f"{name}: world"))
        tokenizer = train_tokenizer(
            recipe.tokenizer, (d.text for d in documents), size=recipe.vocabulary, context=recipe.context
        )
        corpus = read(documents, tokenizer)
        bar = progress.add_task(f"{name}: training", total=recipe.steps)
        model = fit(
            recipe,
            tokenizer,
            corpus,
            work / name,
            report=lambda done, loss: progress.update(bar, completed=done, description=f"{name}: loss {loss:.3f}"),
        )
    with whole_folder(out / name) as folder:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        findings = check(folder)
        write_card(folder, name, recipe, corpus, findings)
    shutil.rmtree(work / name, ignore_errors=True)
    return findings


def main(arguments: list[str] | None = None) -> int:
    """Train the models named on the command line; 1 if one of them lacks what it should contain."""
    parser = argparse.ArgumentParser(prog="python -m headlens.zoo.train", description="Train models of the zoo.")
    parser.add_argument("names", nargs="+", choices=sorted(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder for the finished models")
    parser.add_argument("--work", type=Path, default=Path(".zoo-work"), help="folder for checkpoints")
    parser.add_argument("--threads", type=int, default=2, help="of torch; the last bits of the weights depend on it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console, failed = Console(), False
    for name in options.names:
        findings = make(name, options.out, options.work, console)
        failed = failed or bool(findings.failures)
        console.print(f"{name}: {'; '.join(findings.failures) or 'contains what it should'}", markup=False)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
