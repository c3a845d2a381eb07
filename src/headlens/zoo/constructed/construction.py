"""Which models of known mechanism are there? Each by its name, as a real transformers module with its truth beside it.

A construction's weights are set by hand (designs.py says how, and what one gets from each by hand), so the type of
every head, the score of every pair of features and every effect on the logits are known before anything is run.

Axes: d_model.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from headlens._errors import ModelNotFound
from headlens._files import whole_folder
from headlens.zoo.constructed import gpt2, llama
from headlens.zoo.constructed.designs import DESIGNS
from headlens.zoo.constructed.vocabulary import MARKS
from headlens.zoo.constructed.wiring import BOS, N_CTX, Design, Wiring

Architecture = Literal["gpt2", "llama"]
_COMPILERS = {"gpt2": gpt2.compiled, "llama": llama.compiled}


@dataclass(frozen=True)
class Constructed:
    """A model whose every head is known, and what is known of it."""

    name: str
    model: Any
    """The transformers module, in eval mode: `hl.load(c.model, tokenizer=c.tokenizer)`."""
    tokenizer: Any
    """Whole words between spaces, and `.,:`, each a word by itself; one that the model does not know is an error."""
    heads: Mapping[tuple[int, int], str]
    """What the head at (layer, head) is; every head of the model is named."""
    wiring: Mapping[tuple[int, int], Wiring]
    """All that it matches and moves, feature by feature."""
    features: Mapping[str, Float[Tensor, " d_model"]]
    """Orthonormal directions of which every residual stream is a sum: x = sum of (x . direction) direction."""
    proof: str
    """What one gets by hand, and how."""

    def save(self, folder: str | Path) -> Path:
        """Write an ordinary `save_pretrained` folder, tokenizer and README included, whole or not at all.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        with whole_folder(folder) as new:
            self.model.save_pretrained(new)
            self.tokenizer.save_pretrained(new)
            (new / "README.md").write_text(self._card(), encoding="utf-8")
        return Path(folder)

    def _card(self) -> str:
        heads = "\n".join(f"    {layer}.{head}  {kind}" for (layer, head), kind in self.heads.items())
        proof = f"```text\n{self.proof}\n```"
        return f"# {self.name}\n\nSet by hand, not trained. Heads (layer.head):\n\n{heads}\n\nBy hand:\n\n{proof}\n"


def names() -> tuple[str, ...]:
    """Names of the constructions, sorted."""
    return tuple(sorted(DESIGNS))


def build(name: str, *, architecture: Architecture = "gpt2", **options: Any) -> Constructed:
    """Return the construction `name`.

    Parameters
    ----------
    architecture
        "gpt2": learned positions, LayerNorm. "llama": rotary, RMSNorm, keys and values shared by two heads each.
    options
        What the construction's function in designs.py takes.

    Raises
    ------
    ModelNotFound
        If there is no such construction or architecture.
    UnsupportedArchitecture
        If it cannot be built exactly on this architecture.
    """
    if name not in DESIGNS:
        raise ModelNotFound(f"There is no construction {name!r}; there are: {', '.join(names())}.")
    if architecture not in _COMPILERS:
        raise ModelNotFound(f"Constructions are built as {' or '.join(_COMPILERS)}, not as {architecture!r}.")
    design = DESIGNS[name](**options)
    hf, layers, directions = _COMPILERS[architecture](design)
    hf.config._name_or_path = f"constructed/{name}"
    wiring = {(layer, head): w for layer, row in enumerate(layers) for head, w in enumerate(row)}
    return Constructed(
        name=name,
        model=hf,
        tokenizer=_tokenizer(design),
        heads={place: w.name for place, w in wiring.items()},
        wiring=wiring,
        features=directions,
        proof=inspect.getdoc(DESIGNS[name]) or "",
    )


def _tokenizer(design: Design) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(design.tokens)}
    tokenizer = Tokenizer(models.WordLevel(words))
    marks_apart = pre_tokenizers.Split(Regex(f"[{MARKS}]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks_apart])
    if design.bos is not None:
        begin = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, design.bos)])
        tokenizer.post_processor = begin
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if design.bos is None else BOS,
        model_max_length=N_CTX,
        clean_up_tokenization_spaces=False,
    )
