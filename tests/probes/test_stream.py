import numpy as np
import pytest
import torch

from headlens._errors import DataError
from headlens.probes.stream import Stream
from headlens.probes.training.module import ProbeModule, Shape
from headlens.probes.training.pooling import POOLINGS

ROWS = torch.randn(70, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def some_probe(pooling, *, before=(), after=(), outputs=1, setting=None):
    several = POOLINGS[pooling].several_heads
    probe = ProbeModule(Shape(5, outputs, pooling, 3 if several else 1, before, after, setting=setting)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in probe.parameters():
            value.add_(torch.randn(value.shape, generator=generator))
    return probe


@torch.no_grad()
def of_prefixes(probe):
    return torch.cat([probe(ROWS[:n], torch.tensor([n]))[-1:] for n in range(1, len(ROWS) + 1)])


@pytest.mark.parametrize("before, after, outputs", [((), (), 1), ((4,), (3,), 2)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_score_after_each_row_is_that_of_the_prefix(pooling, before, after, outputs):
    probe = some_probe(pooling, before=before, after=after, outputs=outputs)
    stream = Stream(probe)
    scores = np.array([np.atleast_1d(np.asarray(stream.update(row))) for row in ROWS.numpy()])
    np.testing.assert_allclose(scores, of_prefixes(probe), atol=1e-9)
    assert stream.n == len(ROWS)


@pytest.mark.parametrize("pooling, setting", [("rolling_attention", 3.0), ("rolling_mean_max", 1.0), ("ema", 0.03)])
def test_other_windows_and_averages_too(pooling, setting):
    probe = some_probe(pooling, setting=setting)
    stream = Stream(probe)
    np.testing.assert_allclose([stream.update(row) for row in ROWS], of_prefixes(probe)[:, 0], atol=1e-9)


def test_keys_that_grow_with_the_position_do_not_overflow():
    probe = some_probe("attention").float()
    with torch.no_grad():
        probe.slopes.fill_(3.0)
    stream = Stream(probe)
    scores = [stream.update(row) for row in ROWS.float()]
    np.testing.assert_allclose(scores, of_prefixes(probe)[:, 0], atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_state_stops_growing(pooling):
    stream = Stream(some_probe(pooling))
    sizes = []
    for row in ROWS:
        stream.update(row)
        sizes.append(sum(value.numel() for value in stream._state.values()))
    assert len(set(sizes[40:])) == 1
    assert sizes[-1] <= 2 * 3 * 40


def test_two_texts_do_not_mix():
    probe = some_probe("attention")
    one, other = Stream(probe), Stream(probe)
    for row in ROWS[:5]:
        one.update(row)
        other.update(-row)
    assert one.update(ROWS[5]) == pytest.approx(of_prefixes(probe)[5].item())


def test_a_row_that_cannot_be_scored_is_refused_and_leaves_the_stream_as_it_was():
    probe = some_probe("attention")
    stream = Stream(probe)
    stream.update(ROWS[0])
    with pytest.raises(DataError, match="Row 1 holds NaN"):
        stream.update(ROWS[1] * np.nan)
    with pytest.raises(DataError, match="must have 5 numbers"):
        stream.update(ROWS[1, :4])
    assert stream.update(ROWS[1]) == pytest.approx(of_prefixes(probe)[1].item())
