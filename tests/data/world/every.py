"""Every way in which a scene can be drawn, with its probability: to check laws exactly, not on samples."""

from collections.abc import Callable, Iterator, Sequence
from math import fsum
from typing import TypeVar

from headlens.data.world import WorldConfig
from headlens.data.world.scene import Scene

T = TypeVar("T")


class Scripted(Scene):
    """A scene whose draws are chosen beforehand; past the end of the script it takes the first possible."""

    def __init__(self, script: list[int], config: WorldConfig) -> None:
        self.script, self.shares, self.probability = script, [], 1.0
        super().__init__(0, 0, config)

    def _chosen(self, shares: Sequence[float]) -> int:
        place = len(self.shares)
        if place == len(self.script):
            self.script.append(next(i for i, share in enumerate(shares) if share))
        self.shares.append(shares)
        self.probability *= shares[self.script[place]]
        return self.script[place]

    def hidden(self, n: int) -> int:
        return self._chosen([1 / n] * n)

    def below(self, n: int) -> int:
        self.charge(1 / n)
        return self._chosen([1 / n] * n)

    def which(self, weights: Sequence[int] | Sequence[float]) -> int:
        shares = [weight / fsum(weights) for weight in weights]
        chosen = self._chosen(shares)
        self.charge(shares[chosen])
        return chosen


def every(draw: Callable[[Scene], T], config: WorldConfig) -> Iterator[tuple[T, float, float]]:
    """Yield what `draw` makes of every possible scene, the probability of its draws, and their nats."""
    script: list[int] | None = []
    while script is not None:
        scene = Scripted(script, config)
        drawn = draw(scene)
        yield drawn, scene.probability, scene.nats
        script = _next(scene)


def _next(scene: Scripted) -> list[int] | None:
    """The script after this one, in the order of a tree that is walked depth first."""
    for place in reversed(range(len(scene.shares))):
        for choice in range(scene.script[place] + 1, len(scene.shares[place])):
            if scene.shares[place][choice]:
                return [*scene.script[:place], choice]
    return None
