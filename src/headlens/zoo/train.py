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
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from headlens._files import whole_folder
from headlens.zoo import guide
from headlens.zoo.card import write_card
from headlens.zoo.check import Findings, check, failures_of
from headlens.zoo.curriculum import Batch, Corpus, batch, guided, plain_ids, read, reading
from headlens.zoo.recipes import RECIPES, Place, Recipe
from headlens.zoo.tokenizer import world_tokenizer

SAVE_EVERY = 30.0
"""Seconds between checkpoints."""
WARM_UP = 50
"""Steps over which the learning rate rises; it then falls to a tenth along a cosine."""


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of a recipe before its first step. Eager attention: the guide reads patterns, and caps need it."""
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


def hasten(model: PreTrainedModel) -> None:
    """Use the fused attention kernel, which hides patterns; a model with a soft-cap, which it lacks, stays as it is."""
    if not getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("sdpa")


def loss(model: PreTrainedModel, given: Batch, guides: Mapping[str, Place]) -> Tensor:
    """Weighted next-token loss in nats, plus what guides heads, if any."""
    out = model(input_ids=given.ids, position_ids=given.positions, use_cache=False, output_attentions=bool(guides))
    logits = out.logits[:, :-1].flatten(0, 1)
    each = torch.nn.functional.cross_entropy(logits, given.ids[:, 1:].flatten(), reduction="none")
    weights = given.weights[:, 1:].flatten()
    value = (each * weights).sum() / weights.sum()
    for what, (layer, head) in guides.items():
        target, only_repeats = guide.TARGETS[what]
        rows = given.is_repeat if only_repeats else torch.ones_like(given.is_repeat)
        value = value + guide.guide_loss(out.attentions[layer][rows, head], target(given.ids[rows]))
    return value


def step(model: PreTrainedModel, optimiser: torch.optim.Optimizer, i: int, recipe: Recipe, given: Batch) -> float:
    """Take step `i` and return its loss."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(i, recipe)
    value = loss(model, given, {what: recipe.guides[what] for what in guided(i, recipe)})
    optimiser.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return value.item()


def save_checkpoint(
    folder: Path, recipe: Recipe, model: PreTrainedModel, optimiser: torch.optim.Optimizer, done: int, seconds: float
) -> None:
    """Write all that training needs to go on after `done` steps, which took `seconds` of the processor."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    moments = {
        f"{name}/{key}": value for name, p in model.named_parameters() for key, value in optimiser.state[p].items()
    }
    state = {"done": done, "seconds": seconds, "recipe": _fingerprint(recipe)}
    with whole_folder(folder) as new:
        save_file(weights, new / "weights.safetensors")
        save_file(moments, new / "optimiser.safetensors")
        (new / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def load_checkpoint(
    folder: Path, recipe: Recipe, model: PreTrainedModel, optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    """Restore what `save_checkpoint` wrote; return the steps done and their seconds, 0 if it was for no such recipe."""
    if not (folder / "state.json").is_file():
        return 0, 0.0
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state["recipe"] != _fingerprint(recipe):
        return 0, 0.0
    weights = load_file(folder / "weights.safetensors")
    moments = load_file(folder / "optimiser.safetensors")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
            keys = [key for key in moments if key.startswith(f"{name}/")]
            optimiser.state[p] = {key.removeprefix(f"{name}/"): moments[key] for key in keys}
    return state["done"], state["seconds"]


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
) -> tuple[PreTrainedModel, float]:
    """Train a model, from `checkpoint` if there is one; return it and the processor seconds that all its steps took.

    `report` hears of every step.
    """
    model = new_model(recipe, tokenizer).train()
    optimiser = new_optimiser(model)
    plain = plain_ids(tokenizer)
    done, before = load_checkpoint(checkpoint, recipe, model, optimiser)
    began, saved = time.process_time(), time.monotonic()
    for i in range(done, recipe.steps):
        if not guided(i, recipe):
            hasten(model)
        value = step(model, optimiser, i, recipe, batch(i, recipe, corpus, plain))
        report(i + 1, value)
        if time.monotonic() - saved >= save_every:
            save_checkpoint(checkpoint, recipe, model, optimiser, i + 1, before + time.process_time() - began)
            saved = time.monotonic()
    return model.eval(), before + time.process_time() - began


def make(name: str, out: Path, work: Path, console: Console) -> Findings:
    """Train the model `name`, save it to `out / name` with its card, and return what was measured in it."""
    recipe = RECIPES[name]
    tokenizer = world_tokenizer(recipe.tokenizer)
    with Progress(console=console) as progress:
        documents = progress.track(reading(recipe), total=recipe.documents, description=f"{name}: world")
        corpus = read(documents, tokenizer)
        told = teller(name, recipe, progress)
        model, seconds = fit(recipe, tokenizer, corpus, work / name, report=told)
    tokenizer.model_max_length = recipe.context
    with whole_folder(out / name) as folder:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with console.status(f"{name}: measuring"):
            findings = check(folder)
        write_card(folder, name, recipe, corpus, findings, seconds)
    shutil.rmtree(work / name, ignore_errors=True)
    return findings


def teller(name: str, recipe: Recipe, progress: Progress) -> Callable[[int, float], None]:
    """Return what shows each step: a bar, and where no terminal shows one, twenty lines."""
    bar, every = progress.add_task(f"{name}: training", total=recipe.steps), max(1, recipe.steps // 20)

    def tell(done: int, loss: float) -> None:
        progress.update(bar, completed=done, description=f"{name}: loss {loss:.3f}")
        if not progress.console.is_terminal and done % every == 0:
            progress.console.print(f"{name}: step {done} of {recipe.steps}, loss {loss:.3f}", markup=False)

    return tell


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
        wrong = failures_of(name, findings)
        failed = failed or bool(wrong)
        console.print(f"{name}: {'; '.join(wrong) or 'contains what it should'}", markup=False)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
