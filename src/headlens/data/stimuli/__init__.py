"""Prompts made to order, as token ids: which token plays which part is known, because we wrote them.

    stimulus    what is a stimulus?
    random_ids  repeats, duplicates, plain: what repeats where?
    concepts    entities: a phrase of several tokens comes again
    text        passages: texts, and where their delimiters stand
    gifts       indirect_objects: two people, one of whom gets something
    facts       needles: one fact in a document, and the question that it answers
    puzzles     tasks: pairs that show a relation, and one to be completed
    series      orders: tokens that follow one another in an order that everyone knows
    prompts     how does a text with marked stretches become a prompt with marked tokens?
    words       which words does a tokenizer spell alike?
    english     which English words are used?

Makers that write words take `language`: "english" for ordinary models, "world" for those of the zoo, which know
the text world alone (data/world) and meet its own sentences here.
"""

from headlens.data.stimuli.concepts import entities
from headlens.data.stimuli.facts import needles
from headlens.data.stimuli.gifts import indirect_objects
from headlens.data.stimuli.prompts import Language
from headlens.data.stimuli.puzzles import tasks
from headlens.data.stimuli.random_ids import duplicates, plain, repeats
from headlens.data.stimuli.series import Order, orders
from headlens.data.stimuli.stimulus import Stimulus
from headlens.data.stimuli.text import passages

__all__ = [
    "Language",
    "Order",
    "Stimulus",
    "duplicates",
    "entities",
    "indirect_objects",
    "needles",
    "orders",
    "passages",
    "plain",
    "repeats",
    "tasks",
]
