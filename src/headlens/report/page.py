"""Assemble one HTML page that needs nothing but itself.

The page holds a style sheet, one script and any number of data blocks. Its Content-Security-Policy
admits exactly that style and that script, by hash: nothing else runs, and no request can leave the
page, whatever a token or a model name contains. Data is JSON in blocks that the browser never
executes, and the views put it into the page as text only.

A view is an ES module of its own under views/, so that other hosts can load the same file. What
several views share stands in views/common.js, the one module that they may import. Here all are
inlined, each in a function scope of its own, because importing them would need URLs that the
policy forbids: common.js once, as an object of what it exports, and each view as a function of
the names that it imports. To add a view: write views/NAME.js, name it in `_views`, and let
`payload.traits` return what it reads.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from headlens._errors import ResultError
from headlens._files import whole_file
from headlens._result import Result
from headlens.report.payload import traits

VIEWS = ("head_grid", "head", "attention", "provenance")
"""Modules under views/, in the order in which they stand on a page of heads."""

FRA_VIEW = "feature_attention"
"""What a page of feature-resolved attention has; a page of heads too has it after those."""

SEARCH_VIEW = "conceptual_induction"
"""What a page of searches for conceptual induction has, after feature-resolved attention."""

UNIVERSE_VIEW = "universe"
"""What a page of a universe of heads has first; views of heads follow where there are scores."""

STUDY_VIEW = "universe_study"
"""What a page of a study of a universe has after its map."""

RULES_VIEW = "rules"
"""What a page of rules has, after searches."""

PROBE_VIEWS = {"probe_evaluation": "evaluations", "probe_reading": "readings"}
"""What a page of probes has instead of those of heads, and what each shows; a page of both has them after those."""

_LEAD_OF_HEADS = """Every square below is one attention head: a row is a layer, a column a head, and the
stronger the colour, the higher the score. Choose what to look for, then a head to see where it looks."""
_LEAD_OF_FRA = """A head scores each token that it sees, and every score is a sum over pairs: something that the query
holds meets something that the key holds. Point at two tokens to see which pairs raise the score and which lower it.
Nothing is left out: the parts end at the model's own number."""
_LEAD_OF_SEARCHES = """An induction head finds where the current token stood before. Some heads find where its concept
did, in other words: below are the pairs of features by which they do, beside what chance would show."""
_LEAD_OF_UNIVERSE = """Every dot below is one attention head, and heads that look alike lie together, whatever model
they are of. Point at a dot to see its pattern; choose it to see its like in other models, on the same text."""
_LEAD_OF_STUDY = """Does a head of one model have its like in others? Each head of a kind looks for its like
among the heads of all other families: below is what it finds, beside what is found by knowing less."""
_LEAD_OF_RULES = """A head writes features, and each fires for a reason. Below are rules that tell when: what a token
holds, seen from what another one holds, and how far that moves the feature. Each was judged on texts that did not
choose it."""
_LEAD_OF_PROBES = """A probe reads what a model holds in mind while it reads a text. Below is how far it can be trusted,
and which tokens of a text make it say what it says."""
_EXPORT = "export default { render };"
_IMPORT = re.compile(r'^import \{([^{}]*)\} from "\./common\.js";$', re.MULTILINE)
_SHARED = re.compile(r"^export (?=(?:async function|function|const) ([\w$]+))", re.MULTILINE)
_OTHER = re.compile(r"^\s*(?:import|export)\b", re.MULTILINE)


def write_report(results: Sequence[Result] | Result, path: str | Path, *, title: str | None = None) -> Path:
    """Write one self-contained page that shows `results` (one, or several), and return its path.

    `results` holds HeadAtlas or HeadScores, and at most one AttentionPatterns and one HeadCircuits per model; any
    number of FeatureAttention, ConceptualInduction and Rules, with FeatureLabels of their dictionaries; a HeadUniverse
    and a UniverseStudy; and the Evaluation and ProbeReadings of probes, any number of each.
    The same results give the same bytes. Any existing file is replaced, and only once the page is complete.

    Raises
    ------
    ResultError
        If `results` is empty, holds a type that no view shows, or contradicts itself.
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    page = _page(traits([results] if isinstance(results, Result) else results), title)
    with whole_file(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", errors="replace"))  # a title may hold a lone surrogate
    return path


def _page(values: dict[str, Any], title: str | None) -> str:
    style = _source("style.css")
    views = _views(values)
    script = _script(views)
    title = html.escape(_title(values) if title is None else title)
    blocks = "\n".join(_data_block(name, value) for name, value in values.items())
    sections = "\n".join(f'<section id="view-{name}"></section>' for name in views)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title} · headlens</title>
<style data-headlens>{style}</style>
</head>
<body class="headlens page">
<header>
<p class="wordmark"><span class="lens"></span>headlens</p>
<h1>{title}</h1>
<p class="summary">{html.escape(_summary(values))}</p>
<p class="lead">{_lead(values)}</p>
<noscript><p class="notice">The figures are drawn with JavaScript, which is switched off in this browser.</p></noscript>
</header>
<main>
{sections}
</main>
{blocks}
<script type="module" data-headlens>{script}</script>
</body>
</html>
"""


def _views(values: dict[str, Any]) -> list[str]:
    """The views that have something to show; where all came from stands last."""
    *of_heads, last = VIEWS
    of_universe = [UNIVERSE_VIEW] if values["universe"] and values["universe"]["fitted"] else []
    of_universe += [STUDY_VIEW] if values["study"] else []
    # Patterns alone are there for the universe to show; grids without a score would say nothing.
    grids = values["heads"] and (values["kinds"] or any(values["circuits"]) or not of_universe)
    of_fra = [FRA_VIEW] if values["fra"] else []
    of_search = [SEARCH_VIEW] if values["searches"] else []
    of_rules = [RULES_VIEW] if values["rules"] else []
    of_probes = [name for name, shows in PROBE_VIEWS.items() if values[shows]]
    return [*of_universe, *(of_heads if grids else []), *of_fra, *of_search, *of_rules, *of_probes, last]


def _lead(values: dict[str, Any]) -> str:
    if values["universe"]:
        return _LEAD_OF_UNIVERSE if values["universe"]["fitted"] else _LEAD_OF_STUDY
    if values["heads"]:
        return _LEAD_OF_HEADS
    if values["fra"]:
        return _LEAD_OF_FRA
    if values["searches"]:
        return _LEAD_OF_SEARCHES
    return _LEAD_OF_RULES if values["rules"] else _LEAD_OF_PROBES


def _source(name: str) -> str:
    return (files("headlens.report") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{content_hash(script)}'",
            f"style-src '{content_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
            # Refuses innerHTML and its kin where the browser knows it, so a view cannot forget itself.
            "require-trusted-types-for 'script'",
        )
    )


def content_hash(source: str) -> str:
    """The hash by which a policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _script(views: list[str]) -> str:
    shared, names = common(_source("views/common.js"))
    scopes = ",\n".join(f'"{name}": {scoped(f"views/{name}.js", _source(f"views/{name}.js"), names)}' for name in views)
    return f"const common = {shared};\nconst views = {{\n{scopes}\n}};\n{_source('host.js')}"


def common(source: str) -> tuple[str, list[str]]:
    """The module that views share, as an expression that evaluates to what it exports; and the names of that.

    Raises
    ------
    ValueError
        If the module imports, exports in any other way than `export const NAME`, `export function NAME` or
        `export async function NAME` at the start of a line, or would end the script element.
    """
    names = _SHARED.findall(source)
    body = _SHARED.sub("", source.rstrip())
    _check_inert("views/common.js", body, "import nothing, and export only const and functions, each by name")
    return f"(() => {{\n{body}\nreturn {{ {', '.join(names)} }};\n}})()", names


def scoped(name: str, source: str, shared: Sequence[str] = ()) -> str:
    """An ES module as an expression that evaluates to its default export, where `common` holds what is `shared`.

    Raises
    ------
    ValueError
        If the module does not end with the line `export default { render };`, imports anything but `shared` names,
        by one `import { a, b } from "./common.js";`, exports anything else, or would end the script element.
    """
    body = source.rstrip()
    if not body.endswith(f"\n{_EXPORT}"):
        raise ValueError(f"{name} must end with the line: {_EXPORT}")
    body = body.removesuffix(_EXPORT)
    found = _IMPORT.search(body)
    wanted = [part.strip() for part in found[1].split(",") if part.strip()] if found else []
    if unknown := [one for one in wanted if one not in shared]:
        raise ValueError(
            f"{name} imports {', '.join(unknown)}, which views/common.js does not export: export it there."
        )
    body = _IMPORT.sub("", body, count=1)
    rule = 'stand alone: no import but one, import { a, b } from "./common.js"; and no export but the last line'
    _check_inert(name, body, rule)
    return f"(({{ {', '.join(wanted)} }}) => {{\n{body}return {{ render }};\n}})(common)"


def _check_inert(name: str, body: str, rule: str) -> None:
    """Refuse what cannot stand in a function of an inline script."""
    if _OTHER.search(body):
        raise ValueError(f"{name} must {rule}.")
    if "</script" in body.lower() or "<!--" in body:
        raise ValueError(f"{name} must not contain </script or <!--: they end or change the script element.")


def _data_block(name: str, value: Any) -> str:
    return f'<script type="application/json" data-headlens id="data-{name}">{embedded_json(name, value)}</script>'


def embedded_json(name: str, value: Any) -> str:
    """JSON in ASCII without any character that HTML reads: inert wherever it stands in a page.

    ASCII also covers U+2028, U+2029 and lone surrogates, which could not be written as UTF-8.

    Raises
    ------
    ResultError
        If the value holds something that JSON has no word for.
    """
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ResultError(f"The {name} of these results cannot be written as JSON ({error}).") from error
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _title(values: dict[str, Any]) -> str:
    if values["universe"]:
        models = values["universe"]["models"]
        what = f"{len(models)} models, side by side" if len(models) > 1 else models[0]["model"]
        return f"Attention heads of {what}"
    names = [h["model"] for h in values["heads"]]
    if not names and values["fra"]:
        return _title_of_fra(values["fra"])
    if not names and values["searches"]:
        return f"Conceptual induction in {_joined(list(dict.fromkeys(one['model'] for one in values['searches'])))}"
    if not names and values["rules"]:
        found = values["rules"]
        what = found[0]["name"][:1].lower() + found[0]["name"][1:] if len(found) == 1 else f"{len(found)} heads"
        return f"What makes the features of {what} fire"
    if not names:
        names = list(dict.fromkeys(one["model"] for one in _of_probes(values) if one["model"]))
        what = "Probes" if max(len(values["evaluations"]), len(values["readings"])) > 1 else "A probe"
        return f"{what} of {_joined(names)}" if names else what
    return f"Attention heads of {_joined(names)}"


def _title_of_fra(found: list[dict[str, Any]]) -> str:
    heads = list(dict.fromkeys((one["layer"], one["head"]) for one in found))
    models = _joined(list(dict.fromkeys(one["model"] for one in found)))
    if len(heads) == 1:
        return f"Why layer {heads[0][0]}, head {heads[0][1]} of {models} looks where it looks"
    return f"Why {len(heads)} heads of {models} look where they look"


def _joined(names: list[str]) -> str:
    if len(names) > 3:
        return f"{len(names)} models"
    return ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1]


def _of_probes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [*values["evaluations"], *values["readings"]]


def _summary(values: dict[str, Any]) -> str:
    parts = _summary_of_universe(values) if values["universe"] else []
    if values["heads"] and not values["universe"]:
        n = [n for n in values["scores"]["n"] if n is not None]
        texts = sum(len(p["texts"]) for p in values["patterns"] if p)
        parts = [
            _count(len(values["heads"]), "model"),
            _count(sum(h["layers"] * h["heads"] for h in values["heads"]), "head"),
            _count(len(values["kinds"]), "kind"),
            *([f"{_range(n)} sequences per score"] if n else []),
            *([_count(texts, "example text")] if texts else []),
        ]
    if found := values["fra"]:
        features = [one["n_features"] for one in found]
        parts += [
            _count(len({(one["model"], one["layer"], one["head"]) for one in found}), "head") + " taken apart",
            f"{_range([one['tokens'] for one in found])} tokens",
            f"a dictionary of {_range(features)} features",
        ]
    for one in values["searches"]:
        heads = len({(row["layer"], row["head"]) for row in one["heads"]})
        channels = f"{_count(sum(row['found'] for row in one['heads']), 'channel')} of {one['tested']:,} found"
        parts += [f"{_count(heads, 'head')} searched", channels]
    for one in values["rules"]:
        parts += [_count(len(one["features"]), "feature"), _count(sum(f["rules"] for f in one["features"]), "rule")]
        parts += [
            _count(n, name) for name in ("absence", "count") if (n := sum(f[f"{name}s"] for f in one["features"]))
        ]
        parts += [_count(one["texts"], "text")] if one["texts"] is not None else []
    for unit in ("documents", "tokens"):
        if judged := [one["n"] for one in values["evaluations"] if one["unit"] == unit and one["n"] is not None]:
            parts.append(f"judged on {_range(judged)} {unit}")
    if read := sum(len(one["documents"]) for one in values["readings"]):
        parts.append(f"{_count(read, 'text')} read token by token")
    return " · ".join(parts)


def _summary_of_universe(values: dict[str, Any]) -> list[str]:
    universe = values["universe"]
    families = {one["family"] for one in universe["models"] if one["family"] is not None}
    parts = [_count(len(universe["models"]), "model")]
    parts += [f"{len(families)} famil{'y' if len(families) == 1 else 'ies'}"] if families else []
    return [*parts, _count(len(universe["heads"]["model"]) + universe["left_out"], "head")]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
