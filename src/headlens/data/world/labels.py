"""What can be said of a whole document? Labels, and the sentences that show those which plain text does not.

    topic, author    show in plain text (see `plain`)
    sentiment        of the one verdict that the author gives; 1-3 hearsay sentences beside it praise or blame
                     as it happens, so that counting words of praise does not tell; None without a verdict
    needle           a rare word is the password; as many documents have a common word there

Labels are drawn independently of one another and of the document's length.
"""

from dataclasses import dataclass

from headlens.data.world.lexicon import BLAME, NEEDLES, OBJECTS, PRAISE
from headlens.data.world.scene import Line, Mark, Scene, fill


@dataclass(frozen=True)
class Labels:
    """What is true of a document as a whole."""

    topic: str
    author: str
    sentiment: str | None
    """good or bad; None where the author gives no verdict."""
    needle: bool


VERDICTS = ("To my mind it was {word}.", "I myself found it {word}.")
HEARSAY = ("{person} called it {word}.", "{person} found it {word}.")
PASSWORD = "The password is {word}."


def draw_labels(scene: Scene) -> tuple[Labels, list[Line]]:
    """Draw the labels of a document, and the lines that show them, in their order."""
    asides: list[Line] = []
    sentiment = None
    if scene.coin(scene.config.sentiments):
        sentiment, words = scene.one_of((("good", PRAISE), ("bad", BLAME)))
        asides = [_hearsay(scene) for _ in range(1 + scene.below(3))]
        verdict = fill(scene, scene.one_of(VERDICTS), word=Mark(scene.one_of(words), "verdict"))
        asides.insert(scene.below(len(asides) + 1), verdict)
    share = scene.config.needles
    secret = scene.which((1 - 2 * share, share, share))
    if secret:
        word = Mark(scene.one_of(NEEDLES), "needle") if secret == 1 else scene.one_of(OBJECTS)
        asides.insert(scene.below(len(asides) + 1), fill(scene, PASSWORD, word=word))
    return Labels(scene.topic, scene.author, sentiment, needle=secret == 1), asides


def _hearsay(scene: Scene) -> Line:
    return fill(scene, scene.one_of(HEARSAY), word=Mark(scene.one_of((*PRAISE, *BLAME)), "hearsay"))
