"""`headlens demo`: verify and score the shipped models, and write a page to look at."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headlens._files import check_file_target
from headlens.cli import _console
from headlens.cli._common import Debug, Quiet, Seed, quieten_transformers, with_command
from headlens.cli.heads import print_summary

N_TEXTS = 4
N_DOCUMENTS = 256


def demo(
    *,
    out: Annotated[Path, Parameter(help="The page to write.")] = Path("out/demo.html"),
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Take a tour of the shipped models: what their heads do, as a table and as a page.

    Needs no network and takes under a minute on two cores.
    """
    check_file_target(out)
    quieten_transformers()
    from headlens import zoo
    from headlens.data import world
    from headlens.heads import attention_patterns, score
    from headlens.models import load
    from headlens.report import write_report
    from headlens.tracing import verify

    models = [load(f"zoo:{name}") for name in zoo.names()]
    for model in models:
        parity = "holds" if verify(model, seed=seed).passed else "FAILS"
        _console.note(f"{model.name}: {model.n_layers} layers x {model.n_heads} heads, parity {parity}", quiet)
    texts = [document.text for document in world.documents(N_DOCUMENTS, seed=seed + 1)]
    with _console.progress(quiet) as progress:
        scores = with_command(score(models, corpus=texts, seed=seed, progress=progress))
    longest = sorted(texts, key=len, reverse=True)[:N_TEXTS]
    page = write_report([scores, *(attention_patterns(m, longest, max_tokens=256) for m in models)], out,
                        title="Three small models and what their heads do")  # fmt: skip
    print_summary(scores)
    _console.out.print("\nThe same as a page, with every head's attention to look at:")
    _console.out.print(f"  {page.resolve()}", soft_wrap=True, markup=False)
    return 0
