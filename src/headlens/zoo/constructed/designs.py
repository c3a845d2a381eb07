"""Which models are there, and what does one get from each by hand? One function per construction.

Each docstring is the construction's proof: it goes with the model and is written into its README. Heads are in
heads.py, words in vocabulary.py. Logits are 10 per unit of output:w, but for `rules`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from headlens.zoo.constructed import heads as h
from headlens.zoo.constructed.vocabulary import (
    BETWEEN,
    CITIES,
    CLASSES,
    DENIALS,
    FILLERS,
    GIFT_WORDS,
    MONTHS,
    NAMES,
    PEOPLE,
    RELATIONS,
    SYNONYMS,
    TASK_WORDS,
    WORDS,
)
from headlens.zoo.constructed.wiring import BOS, UNIFORM, Design, Wiring

LOGIT = 10.0


def induction() -> Design:
    """Layer 0 head 0 is a previous-token head, layer 1 head 0 an induction head: the canonical circuit.

    Read `<bos> cat red fox cat`. Head 0.0 writes previous:cat at `red`. At the last `cat`, head 1.0 scores

        red 60 (its previous word is cat), <bos> 30, all else 0        A[red] = 1 - e^-30 = 1

    and copies `red`: its logit is 10, all others are 0, so p(red) = e^10 / (e^10 + 63) = .9971. Every word that has
    not occurred rests on <bos>, for which the head writes nothing: there all logits are 0.
    """
    return _read_out(WORDS, [h.previous_token(WORDS)], [h.induction(WORDS)])


def impostor(*, length: int = 20) -> Design:
    """Head 0.1 looks length - 1 = 19 positions back, whatever is there; on repeats of period 20 it seems to induce.

    On BOS R R with |R| = 20, what followed the earlier copy of a word is 19 back: head 0.1 has induction score 1,
    like the true induction head 1.0. On BOS R G R with a gap of g > 0 words the target is 19 + g back and 0.1 scores 0;
    with g drawn from 0-39 it scores 1 for g = 0 and 0 otherwise, 1/40 on average. On the control, where nothing is
    repeated, it scores as before and 1.0 scores 0.

    From position 19 on; before that there is no key 19 back (gpt2: even attention).
    """
    layer0 = [h.previous_token(WORDS), h.offset(length - 1, "impostor")]
    return _read_out(WORDS, layer0, [h.induction(WORDS)])


def duplicate_token() -> Design:
    """Head 0.0 attends to earlier copies of the query's word, never to itself; it writes nothing.

    Read `<bos> cat red cat`. At the last `cat` it scores: first cat 60, itself 60 - 120 = -60, <bos> 30, red 0, so
    A[first cat] = 1. With two earlier copies each gets 1/2; with none, <bos> gets 1.
    """
    return _read_out(WORDS, [h.duplicate_token(WORDS)])


def sink() -> Design:
    """Both heads park on <bos> and write (next to) nothing for it. 0.0: sink. 0.1: leaky_sink.

    Sink: <bos> scores 30, all else 0, so A[<bos>] = 1, and what it writes for <bos> is 0.

    Leaky sink: <bos> scores 60, each copy of the query's word 60 - ln 99, all else 0. In a text without a word twice
    A[<bos>] = .99 and A[q, q] = .01. The value of <bos> has length .01, that of a word 1; weighted by value the word's
    share is .01 / (.01 + .99 * .01) = .5025. The logit of the word is 10 * .01 = .1, of <bos> 10 * .99 * .01 = .099.
    """
    return _read_out(WORDS, [h.sink(WORDS), h.leaky_sink(WORDS)])


def successor() -> Design:
    """Head 0.0 attends to itself and raises the month that comes next; December is followed by January.

    Read `<bos> March`: the logit of April is 10, all others are 0. The OV map over words is a cyclic shift: it copies
    no word, its eigenvalues (roots of unity) sum to 0, and 12 of 12 words have their successor on top.
    """
    return _read_out(MONTHS, [h.successor(MONTHS)])


def copying() -> Design:
    """Three heads attend evenly and differ in what they write. 0.0 copying, 0.1 anti_copying, 0.2 fake_copying.

                              copying    anti_copying    fake_copying
    OV over the 63 words         I            -I         I + 5 for every later word
    eigenvalue score             1            -1         1         (real part of their sum / sum of their sizes)
    own word on top            63/63         0/63        1/63      (only the last word has no later one)

    At position q each word in view counts 1 / (q + 1). The first two heads cancel, so that the logit of a word is
    10 / (q + 1) times (how often it is in view + 5 times how many words in view stand before it in the list).
    """
    return _read_out(WORDS, [h.copying(WORDS), h.anti_copying(WORDS), h.fake_copying(WORDS)])


def anti_induction() -> Design:
    """Three heads attend alike, with induction score 1; one of them is an induction head. Attention is not function.

    1.0 induction: its OV over words is I. 1.1 induction_random_ov: noise of standard deviation 1/8, eigenvalue score
    near 0. 1.2 anti_induction: -I, so it lowers what it sees.

    Read `<bos> cat red fox cat`: all three attend to `red`. Heads 1.0 and 1.2 cancel, and the logits are 10 times the
    noise in the row of `red`. Without 1.2 the logit of `red` is higher by 10, without 1.0 lower by 10.
    """
    heads = [h.induction(WORDS), h.induction_random_ov(WORDS), h.anti_induction(WORDS)]
    return _read_out(WORDS, [h.previous_token(WORDS)], heads)


def all_kinds() -> Design:
    """One head of every kind, seven in each of two layers, as heads.py describes them.

    0.0 previous_token   0.1 self   0.2 sink   0.3 duplicate_token   0.4 offset_3   0.5 impostor (19 back)   0.6 uniform
    1.0 induction   1.1 induction_random_ov   1.2 anti_induction   1.3 copying   1.4 successor   1.5 anti_copying
    1.6 fake_copying

    On BOS R G R with |R| = 20 distinct words and random gaps each head scores 1 on its own kind (successor on self;
    the three that attend like induction on induction), impostor and offset_3 next to 0, even heads their null.
    """
    layer0 = [
        *(h.previous_token(WORDS), h.self_attending(), h.sink(WORDS), h.duplicate_token(WORDS)),
        *(h.offset(3, "offset_3"), h.offset(19, "impostor"), UNIFORM),
    ]
    layer1 = [
        *(h.induction(WORDS), h.induction_random_ov(WORDS), h.anti_induction(WORDS), h.copying(WORDS)),
        *(h.successor(WORDS), h.anti_copying(WORDS), h.fake_copying(WORDS)),
    ]
    return _read_out(WORDS, layer0, layer1)


def two_matches() -> Design:
    """Head 0.0 finds who is asked for by name *and* by class: two matches side by side, each of rank 1.

    `aunt-Mary` holds name:Mary and class:aunt, `aunt-Mary?` holds asked-name:Mary and asked-class:aunt. Scores:

                          name:Mary  name:Sue  class:aunt  class:uncle
    asked-name:Mary          10        -10         0            0
    asked-name:Sue          -10         10         0            0
    asked-class:aunt          0          0        10          -10
    asked-class:uncle         0          0       -10           10

    Of rank 2, block-diagonal, cross terms 0. For `aunt-Mary?`: aunt-Mary 20, uncle-Mary and aunt-Sue 0,
    uncle-Sue -20, all other words 0. So with n other words A[aunt-Mary] = 1 - n e^-20 = 1 - n 2e-9; its logit is 10,
    all others 0. Without the class match both Marys score 10, and get 1/2 each.
    """
    mentions = {f"{c}-{n}": (f"name:{n}", f"class:{c}") for c in CLASSES for n in NAMES}
    questions = {f"{c}-{n}?": (f"asked-name:{n}", f"asked-class:{c}") for c in CLASSES for n in NAMES}
    match = (*_contrast("name", NAMES), *_contrast("class", CLASSES))
    wiring = Wiring("two_matches", match=match, move=h.copies("token", "output", list(mentions)))
    tokens = {BOS: (), **mentions, **questions, **dict.fromkeys(BETWEEN, ())}
    return _design({w: (f"token:{w}", *carried) for w, carried in tokens.items()}, [wiring], outputs=tuple(mentions))


def synonyms() -> Design:
    """Head 1.1 induces by meaning: two words for one concept share a feature, and only that feature is matched.

    `big` holds token:big and concept:big, `large` holds token:large and concept:big. Head 0.0 moves both features of
    the word before, to previous:big and previous-concept:big. Read `<bos> big boat gift`, then one more word.
    What the heads of layer 1 match, and how much of their attention `boat` gets (the rest goes to <bos>):

                                                          `big`   `large`   `shop`
    1.0 induction           60 token                        1        0         0
    1.1 concept_induction   60 concept                      1        1         0
    1.2 synonym_induction   60 concept - 120 token          0        1         0

    At `large` the concept channel makes 60 of the score of `boat` in 1.1 and the token channel 0. Head 1.2 has
    token-level induction score 0 on any text that begins with <bos>, and induces. The logit of `boat` is 20 after
    `big` (from 1.0 and 1.1) and after `large` (from 1.1 and 1.2).
    """
    words = [w for pair in SYNONYMS for w in pair]
    concepts = [first for first, _ in SYNONYMS]
    by_concept = h.matches("concept", "previous-concept", concepts)
    not_by_token = h.matches("token", "previous", words, -2 * h.MATCH)
    move = h.copies("token", "output", words)
    moved_back = h.copies("token", "previous", words) + h.copies("concept", "previous-concept", concepts)
    layer0 = [Wiring("previous_token", back=((1, h.MATCH),), move=moved_back)]
    layer1 = [
        h.induction(words),
        Wiring("concept_induction", match=by_concept + h.REST_ON_BOS, move=move),
        Wiring("synonym_induction", match=by_concept + not_by_token + h.REST_ON_BOS, move=move),
    ]
    carried = {w: (f"token:{w}", f"concept:{pair[0]}", "constant") for pair in SYNONYMS for w in pair}
    return _design({BOS: (f"token:{BOS}", "constant"), **carried}, layer0, layer1, outputs=words)


def rules(*, attract: float = 3.0, suppress: float = 5.0, value: float = 4.0) -> Design:
    """Head 0.0 follows three rules at `speaks`: [city] -> its language; not after a denial; and it counts.

    Paris, Lyon and Nice hold city:French (other cities city:Italian or city:Spanish), `never` and `not` hold denial,
    `speaks` holds asks-language. At `speaks`:

        key            score   writes
        French city      3     +4 output:French
        denial           5     -4 output:French, and as much for the other languages
        all else         0      0

    There is no <bos>: the T keys are the T words up to and with `speaks`. With n French cities and m denials, and
    e^3 = 20.0855, e^5 = 148.413,

        g = 4 (n e^3 - m e^5) / (n e^3 + m e^5 + T - n - m)

    is how much of output:French is written, and also the logit of the word `French`. With T = 16 words:

        skip-gram   n = 1,  m = 0     80.342 /  35.0855 =  2.2899    French is the most probable next word
        absence     n = 1,  m = 1   -513.311 / 182.499  = -2.8127    below every word but the other languages (-3.2530)
        counting    n = 7,  m = 1    -31.258 / 297.011  = -0.1052    the sign flips at n = e^2 = 7.389:
                    n = 8,  m = 1     49.083 / 316.097  = +0.1553    a denial outweighs seven cities, not eight
                    n = 13, m = 2   -142.858 / 558.938  = -0.2556    two outweigh thirteen
        T = 17:     n = 14, m = 2    -62.515 / 579.023  = -0.1080    and fourteen

    At any other word all scores are 0, and g = 4 (n - m) / T.
    """
    match = [("asks-language", f"city:{language}", attract) for language in CITIES]
    match.append(("asks-language", "denial", suppress))
    denied = [("denial", f"output:{language}", -value) for language in CITIES]
    move = (*h.copies("city", "output", list(CITIES), value), *denied)
    tokens = {
        **{city: (f"city:{language}",) for language, cities in CITIES.items() for city in cities},
        **dict.fromkeys(DENIALS, ("denial",)),
        "speaks": ("asks-language",),
        **dict.fromkeys((*CITIES, *FILLERS), ()),
    }
    carried = {w: (f"token:{w}", *features) for w, features in tokens.items()}
    wiring = Wiring("attract_suppress", match=tuple(match), move=move)
    return _design(carried, [wiring], outputs=tuple(CITIES), logit=1.0)


def indirect_objects(*, by: Literal["duplicate_token", "induction"] = "duplicate_token") -> Design:
    """Three layers of heads find who is given something: a circuit for indirect objects, decoys beside its heads.

    Read `<bos> When Mary and Tom came to the park , Tom gave a book to`; names hold the feature name.

    0.0 duplicate_token       at the second Tom attends to the first, and writes `again`
    1.0 giver_attending       at `to`: the second Tom (again) 60, <bos> 30, else 0; A[second Tom] = 1; writes nothing
    1.1 s_inhibition          attends so, too, and writes inhibited:Tom
    2.0 name_attending        at `to`: Mary 60, each Tom 60 - 60 = 0, <bos> 30; A[Mary] = 1; writes nothing
    2.1 negative_name_mover   attends so, too, and lowers what it sees: logit -5
    2.2 name_mover            attends so, too, and copies what it sees: logit 10

    The logit of Mary is 5, all others are 0, so p(Mary) = e^5 / (e^5 + 157) = .4859.

    If 1.1 is silent at `to`, or names somebody who is not here, Mary and both Toms score 60 and get 1/3 each: all three
    heads of layer 2 lose 2/3 of their attention to Mary. With Lisa in place of the second Tom it is silent, for nobody
    is said again, and it rests on <bos>. With Lisa in place of Mary it writes inhibited:Tom as before. No other head
    moves that attention at `to`: what 0.0 writes there is not read, and 1.0 writes nothing.

    by="induction" finds a repeated name in two steps, which a Llama can do: 0.0 is a previous_token head, and 1.0
    name_induction attends from the second Tom to what followed the first, and writes `again`. Layers 1 and 2 become 2
    and 3.
    """
    movers = [
        h.looking_at_names("name_attending", PEOPLE),
        h.looking_at_names("negative_name_mover", PEOPLE, h.copies("token", "output", GIFT_WORDS, -0.5)),
        h.looking_at_names("name_mover", PEOPLE, h.copies("token", "output", GIFT_WORDS)),
    ]
    name_induction = h.induction(PEOPLE, "name_induction", h.said_before("previous", PEOPLE))
    finding = {
        "duplicate_token": [[h.duplicate_token(GIFT_WORDS, h.said_before("token", PEOPLE))]],
        "induction": [[h.previous_token(PEOPLE)], [name_induction]],
    }
    givers = [h.looking_at_giver("giver_attending"), h.s_inhibition(PEOPLE)]
    return _read_out(GIFT_WORDS, *finding[by], givers, movers, more=dict.fromkeys(PEOPLE, ("name",)))


def concepts() -> Design:
    """Head 1.2 brings on a whole entity of three words; 1.0 only its first word, and 1.1 looks there and says nothing.

    Read `<bos> owl cat red fox goat owl`, of which `cat red fox` is an entity and `owl` its context. 0.0 previous_token
    writes previous:red at `fox`, 0.1 third_back writes third:owl there. At the second `owl`

    1.0 induction            `cat` 60 (its previous word is owl), <bos> 30; A[cat] = 1; raises `cat`: logit 10
    1.1 concept_attending    `fox` 60 (the word three back is owl), <bos> 30; A[fox] = 1; writes nothing
    1.2 concept_induction    attends so, too, and writes coming:red, what stood before the entity's end
    2.0 bringing_on          at the next word attends to the second `owl`, and raises what is coming there: `red`

    So if `cat` is said next, the logit of `red` is 10 from 2.0, and another 10 from 1.0: p(red) = 1 - 63 e^-20.

    Now let the entity be `bear wolf lion`, and `cat` be said all the same. 1.0 finds no `cat`, and `wolf` is coming:

        p(red) = 1 / (e^10 + 63) = .00005
        e^10 / (e^10 + 63) = .9971      if 1.2, at the second `owl`, writes what it writes above
        1 / 64 = .0156                  if it writes there what it writes after an unknown word: nothing

    Nothing that another head writes at the second `owl` matters at `cat`, for 2.0 reads only what is coming.
    """
    layer0 = [h.previous_token(WORDS), h.offset(3, "third_back", h.copies("token", "third", WORDS))]
    layer1 = [
        h.induction(WORDS),
        h.looking_at_entity_end("concept_attending", WORDS),
        h.looking_at_entity_end("concept_induction", WORDS, h.copies("previous", "coming", WORDS)),
    ]
    return _read_out(WORDS, layer0, layer1, [h.offset(1, "bringing_on", h.copies("coming", "output", WORDS))])


def relations() -> Design:
    """Head 2.1 carries the relation that examples show: antonym, capital or plural; without it nobody answers.

    Read `<bos> Q : hot A : cold Q : big A : small Q : old A :`. There are 117 pairs; no word is in two relations.

    0.0 question_of_answer   looks 3 back: at `cold` writes question:hot
    0.1 question_asked       looks 2 back: at the last `:` writes asked:old
    1.0 right_answer         at `cold`: itself 60 (it answers hot) + 60 (the same word), <bos> 90; A[cold] = 1; writes
                             shown:antonym. At a wrong answer 60 at most, so all rests on <bos>
    2.0 examples_attending   at `:`: right answers 60, <bos> 30; 1/2 for each of two; writes nothing
    2.1 function_vector      attends so, too, and writes task:antonym, 1 in all
    3.0 applying_antonym     at `:`: itself 60 (asked:old), <bos> 90 - 60 (task:antonym); A[itself] = 1; raises `young`
    3.1 applying_capital, 3.2 applying_plural      rest on <bos>, 90

    The logit of `young` is 10, all others are 0: p = e^10 / (e^10 + 238) = .9893. If answers stand at one another's
    questions, none is right, 2.1 rests on <bos>, nothing is applied, and p = 1/239 = .0042. If 2.1 then writes at the
    last `:` its mean over other prompts with right answers, task:antonym, p is .9893 again. Nothing that heads before
    it write there matters without a task. The mean of 3.0 over m other prompts holds their answers, 1/m of each: with
    one that is not this prompt's, p = 1 / (e^10 + 238) = .00004.
    """
    questions = [question for pairs in RELATIONS.values() for question in pairs]
    layer0 = [
        h.offset(3, "question_of_answer", h.copies("token", "question", questions)),
        h.offset(2, "question_asked", h.copies("token", "asked", questions)),
    ]
    layer2 = [
        h.looking_at_examples("examples_attending", RELATIONS),
        h.looking_at_examples("function_vector", RELATIONS, h.copies("shown", "task", list(RELATIONS))),
    ]
    layer3 = [h.applying(name, pairs) for name, pairs in RELATIONS.items()]
    return _read_out(TASK_WORDS, layer0, [h.right_answer(RELATIONS)], layer2, layer3)


DESIGNS: dict[str, Callable[..., Design]] = {
    "all_kinds": all_kinds,
    "anti_induction": anti_induction,
    "concepts": concepts,
    "copying": copying,
    "duplicate_token": duplicate_token,
    "impostor": impostor,
    "indirect_objects": indirect_objects,
    "induction": induction,
    "relations": relations,
    "rules": rules,
    "sink": sink,
    "successor": successor,
    "synonyms": synonyms,
    "two_matches": two_matches,
}


def _read_out(
    words: Sequence[str], *layers: Sequence[Wiring], more: Mapping[str, tuple[str, ...]] | None = None
) -> Design:
    """Return a model whose words hold themselves, the constant, and what more is given of some."""
    tokens = {w: (f"token:{w}", "constant", *(more or {}).get(w, ())) for w in (BOS, *words)}
    return _design(tokens, *layers, outputs=(BOS, *words))


def _design(
    tokens: dict[str, tuple[str, ...]], *layers: Sequence[Wiring], outputs: Sequence[str], logit: float = LOGIT
) -> Design:
    return Design(tokens, tuple(map(tuple, layers)), tuple((f"output:{w}", w, logit) for w in outputs))


def _contrast(what: str, pair: tuple[str, str], score: float = 10.0) -> list[tuple[str, str, float]]:
    """Return the terms that reward agreement and punish difference: as a matrix over the two values, of rank 1."""
    return [(f"asked-{what}:{a}", f"{what}:{b}", score if a == b else -score) for a in pair for b in pair]
