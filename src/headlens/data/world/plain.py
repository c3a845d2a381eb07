"""What does a document say when it plants nothing? Plain sentences, some on its topic, some with its author's tic.

    plain sentence    general (1 - topics), or on the document's topic (topics)
                      bare (1 - authors), or opened by a tic (authors), which is the author's favourite opener
                      14 times in 20, and either of the others 3 times in 20

Topic and author are drawn for every document, and charged in nats once the text first shows them.
"""

from headlens.data.world.lexicon import FAVOURITE
from headlens.data.world.scene import Line, Mark, Scene, fill
from headlens.data.world.sentences import GENERAL, TOPICS

OFTEN, SELDOM = 14, 3
"""Weight of an author's favourite opener, and of each of the others."""


def plain(scene: Scene) -> tuple[Line, ...]:
    """One plain sentence in the voice of this document."""
    if scene.coin(scene.config.topics):
        if not scene.times("topic"):
            scene.charge(1 / len(TOPICS))
        scene.did("topic")
        words, templates = TOPICS[scene.topic]
        template, given = scene.one_of(templates), {"telling": Mark(scene.one_of(words), "topic")}
    else:
        template, given = scene.one_of(GENERAL), {}
    if scene.coin(scene.config.authors):
        template = "{tic}, " + template[0].lower() + template[1:]
        given["tic"] = Mark(_opener(scene), "tic")
    return (fill(scene, template, **given),)


def _opener(scene: Scene) -> str:
    if not scene.times("tic"):
        scene.charge(1 / len(FAVOURITE))
    scene.did("tic")
    weights = [OFTEN if author == scene.author else SELDOM for author in FAVOURITE]
    return tuple(FAVOURITE.values())[scene.which(weights)]
