"""What does an atlas say as a whole? Counts, distributions, layers, and models side by side by relative depth.

Every summary is a table. Columns beside model and kind:

    counts         level, heads
    distribution   heads, mean, sd, least, p25, median, p75, p95, most            of the scores
    layers         layer, mean, most, heads (of the kind)                         of each layer's scores
    depths         depth (from, in tenths of the layers), mean, most, share       share of heads of the kind

A head is of a kind from level medium on.
"""

import duckdb
import pyarrow as pa

from headlens.heads.scores import HeadScores

_OF = "count(*) FILTER (level IN ('medium', 'high'))"
_ORDER = "ORDER BY model, kind"


def counts(atlas: HeadScores) -> pa.Table:
    """Return how many heads of each model are high, medium and low in each kind."""
    return _query(atlas, f"SELECT model, kind, level, count(*) AS heads FROM t GROUP BY ALL {_ORDER}, level")


def distribution(atlas: HeadScores) -> pa.Table:
    """Return how the scores of each model and kind are spread over its heads."""
    quantiles = ", ".join(f"quantile_cont(score, {q}) AS {name}" for q, name in _QUANTILES)
    return _query(
        atlas,
        f"SELECT model, kind, count(*) AS heads, avg(score) AS mean, coalesce(stddev_samp(score), 0) AS sd, "
        f"min(score) AS least, {quantiles}, max(score) AS most FROM t GROUP BY model, kind {_ORDER}",
    )


_QUANTILES = ((0.25, "p25"), (0.5, "median"), (0.75, "p75"), (0.95, "p95"))


def layers(atlas: HeadScores) -> pa.Table:
    """Return each layer's mean and highest score, and how many of its heads are of the kind."""
    return _query(
        atlas,
        f"SELECT model, kind, layer, avg(score) AS mean, max(score) AS most, {_OF} AS heads "
        f"FROM t GROUP BY model, kind, layer {_ORDER}, layer",
    )


def depths(atlas: HeadScores) -> pa.Table:
    """Return the same by tenths of the layers, so that models of different depth can be compared.

    Layer l of L stands at (l + 1/2) / L.
    """
    return _query(
        atlas,
        f"SELECT model, kind, floor(10 * (layer + 0.5) / (SELECT max(layer) + 1 FROM t AS own "
        f"WHERE own.model = t.model)) / 10 AS depth, avg(score) AS mean, max(score) AS most, {_OF} / count(*) AS share "
        f"FROM t GROUP BY ALL {_ORDER}, depth",
    )


def top(atlas: HeadScores, k: int = 10) -> pa.Table:
    """Return the `k` heads of each kind that stand out most from their null, over all models."""
    return _query(
        atlas,
        f"SELECT kind, model, layer, head, score, low, high, \"null\", level FROM t "
        f"QUALIFY row_number() OVER (PARTITION BY kind ORDER BY score - \"null\" DESC, model, layer, head) <= {int(k)} "
        f"ORDER BY kind, score - \"null\" DESC, model, layer, head",
    )  # fmt: skip


def _query(atlas: HeadScores, query: str) -> pa.Table:
    table = atlas.table
    if "level" not in table.column_names:
        table = table.append_column("level", pa.nulls(len(table), pa.string()))
    with duckdb.connect() as database:
        database.register("t", table)
        return database.sql(query).to_arrow_table()
