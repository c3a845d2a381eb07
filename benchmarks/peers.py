"""Scoring heads as TransformerLens does, and ours against it: the same weights, tokens and kinds, in one process.

TransformerLens never is a dependency of the project: each release that is measured gets an environment of its own,
made here once, which also sees the project's packages (so torch and transformers are the same).

    detect_head(model, text, kind) = sum over targets of A[q, k] / sum of A

for three kinds. It runs the model for each; with `cache=`, one run that the caller made serves all. `make bench` runs
`rows` in the project's environment, and that runs `main` in the other.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf

import headlens as hl
from benchmarks import harness, subjects
from benchmarks.subjects import Size

ROOT = Path(__file__).parents[1]
RELEASES = {"TransformerBridge": "4.3.0", "HookedTransformer": "3.9.0"}
"""Class -> the latest release that has it."""
KINDS = {
    "previous_token": "previous_token_head",
    "duplicate_token": "duplicate_token_head",
    "induction": "induction_head",
}
BAR = 1 / 3


def rows(size: Size) -> Iterator[harness.Row]:
    """Measure against every release, each in its environment."""
    for name, release in RELEASES.items():
        try:
            printed = _run(name, release, size)
        except subprocess.CalledProcessError as error:
            why = f"not measured: {' '.join(map(str, error.cmd[1:5]))} ... ended with {error.returncode}"
            yield harness.Row(
                f"score {', '.join(KINDS)}; {size}", f"TransformerLens {release}", why, f"{BAR:.3g} x", False
            )
            continue
        for row in json.loads(printed.splitlines()[-1]):
            yield harness.Row(**row)


def _run(name: str, release: str, size: Size) -> str:
    # What a peer fetches or reports over the network is no part of its speed.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    command = [_python(release), "-m", "benchmarks.peers", name, *map(str, size)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment).stdout


def _python(release: str) -> str:
    """Return the interpreter of an environment with this release of TransformerLens, made where it is missing."""
    folder = Path(sys.prefix) / f"transformer-lens-{release}"
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        print(f"setting up TransformerLens {release} (once)", file=sys.stderr)
        venv.create(folder, clear=True, symlinks=True)
        asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        there = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
        here = Path(tf.__file__).parents[1]
        (there / "project.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", "constraints.txt"]
        subprocess.run([*install, f"transformer-lens=={release}"], check=True, cwd=ROOT)
        done.touch()
    return str(python)


# --- in the other environment -----------------------------------------------------------------------------


def main(name: str, size: Size) -> list[harness.Row]:
    """Return the rows of one class of TransformerLens."""
    from transformer_lens.head_detector import detect_head  # pyright: ignore[reportMissingImports]

    shown = replace(subjects.repeats(size), control=None)
    text = " ".join(map(str, shown.tokens[0]))
    model = hl.load(subjects.gpt2_small(size))
    with tempfile.TemporaryDirectory() as folder:
        theirs = MODELS[name](subjects.gpt2_small(size), _tokenizer(folder), size)
    theirs.cfg.default_prepend_bos = False
    assert theirs.to_tokens(text)[0].tolist() == shown.tokens[0].tolist()

    def ours() -> Any:
        return hl.heads.score(model, list(KINDS), stimulus=shown, batch_tokens=size.tokens)

    @torch.no_grad()
    def each() -> list[torch.Tensor]:
        return [detect_head(theirs, text, kind) for kind in KINDS.values()]

    @torch.no_grad()
    def shared() -> list[torch.Tensor]:
        _, cache = theirs.run_with_cache(theirs.to_tokens(text), remove_batch_dim=True)
        return [detect_head(theirs, text, kind, cache=cache) for kind in KINDS.values()]

    check(ours(), each(), size)
    check(ours(), shared(), size)
    what = f"score {', '.join(KINDS)}; {size}: one forward pass"
    peer = f"detect_head, {name} of TransformerLens {RELEASES[name]}"
    return [
        harness.ratio(what, ours, f"{peer}: as documented, a pass for each kind", each, BAR, size.rounds),
        harness.ratio(what, ours, f"{peer}: one pass, given to all as `cache`", shared, None, size.rounds),
    ]


def _tokenizer(folder: str) -> Any:
    """A tokenizer to which the number of an id is its text: the head detector reads text only.

    From a folder, because TransformerLens loads it again from where it came.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({str(i): i for i in range(50257)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    last = "50256"
    made = tf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=last, eos_token=last, pad_token=last)
    made.save_pretrained(folder)
    return tf.AutoTokenizer.from_pretrained(folder)


def _bridge(hf: tf.GPT2LMHeadModel, tokenizer: Any, _: Size) -> Any:
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    return TransformerBridge.boot_transformers("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")


def _hooked(hf: tf.GPT2LMHeadModel, tokenizer: Any, size: Size) -> Any:
    """From the state dict: by name it would ask the hub for the model's config."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore[reportMissingImports]
    from transformer_lens.pretrained import weight_conversions  # pyright: ignore[reportMissingImports]

    c = hf.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_heads=c.n_head, d_head=c.n_embd // c.n_head, n_ctx=size.tokens + 1,
        d_vocab=c.vocab_size, act_fn=c.activation_function, normalization_type="LN", eps=c.layer_norm_epsilon,
        original_architecture="GPT2LMHeadModel", device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config, tokenizer=tokenizer)
    model.load_and_process_state_dict(weight_conversions.convert_gpt2_weights(hf, config))
    return model


MODELS = {"TransformerBridge": _bridge, "HookedTransformer": _hooked}


def check(ours: Any, theirs: list[torch.Tensor], size: Size) -> None:
    """Raise unless both say the same of every head; theirs is a share of all rows, ours of those with a target."""
    n_rows = {"previous_token": size.tokens - 1, "duplicate_token": size.tokens // 2, "induction": size.tokens // 2}
    found = dict(zip(KINDS, theirs, strict=True))
    for row in ours.to_table().to_pylist():
        kind = row["kind"]
        other = found[kind][row["layer"], row["head"]].item()
        harness.agree(row["score"] * n_rows[kind] / size.tokens, other, (kind, row["layer"], row["head"]))


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in main(sys.argv[1], Size(*map(int, sys.argv[2:])))]))
