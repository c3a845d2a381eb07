"""Labels of documents: independent of one another and of length, and shown by the text as far as they should be."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from headlens.data.world import Document, WorldConfig
from headlens.data.world.lexicon import BLAME, FAVOURITE, NEEDLES, OBJECTS, PRAISE
from headlens.data.world.sentences import TOPICS
from tests.data.world.reading import alone, said, sentences, spans_of, written

N = 3000
LABELS = ("topic", "author", "sentiment", "needle")
SURE = 1e-3
"""A test with a fixed seed fails where chance would do so once in a thousand."""


def p_value(a: list, b: list) -> float:
    """How likely a table of `a` by `b` at least so uneven is, were they independent."""
    rows, columns = (sorted(set(values), key=str) for values in (a, b))
    counts = Counter(zip(a, b, strict=True))
    return chi2_contingency([[counts[row, column] for column in columns] for row in rows]).pvalue


def labels(documents: tuple[Document, ...], name: str) -> list:
    return [getattr(document.labels, name) for document in documents]


def words(document: Document) -> list[str]:
    return re.findall(r"[A-Za-z]+", document.text)


@pytest.mark.parametrize("name", LABELS)
def test_a_label_says_nothing_of_the_length(name):
    documents = written(N, 1)
    lengths = np.array([len(document.text.split()) for document in documents])
    quarter = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths).tolist()
    assert p_value(labels(documents, name), quarter) > SURE


@pytest.mark.parametrize(("one", "other"), list(combinations(LABELS, 2)))
def test_a_label_says_nothing_of_another(one, other):
    documents = written(N, 1)
    assert p_value(labels(documents, one), labels(documents, other)) > SURE


@pytest.mark.parametrize("name", LABELS)
def test_a_label_says_nothing_of_what_is_planted(name):
    """Except that a verdict with its hearsay takes room from utterances, whichever verdict it is."""
    documents = tuple(d for d in written(N, 1) if name != "sentiment" or d.labels.sentiment)
    for kind in ("fact", "task", "consequence", "tally"):
        planted = [bool(spans_of(document, kind)) for document in documents]
        assert p_value(labels(documents, name), planted) > SURE


def test_labels_are_as_frequent_as_they_should_be():
    documents = written(N, 1)
    counts = {name: Counter(labels(documents, name)) for name in LABELS}
    for name, share in (("topic", 1 / 6), ("author", 1 / 3)):
        assert len(counts[name]) == round(1 / share)
        assert all(count == pytest.approx(N * share, abs=4 * (N * share) ** 0.5) for count in counts[name].values())
    assert counts["sentiment"]["good"] == pytest.approx(0.2 * N, abs=4 * (0.2 * N) ** 0.5)
    assert counts["sentiment"]["bad"] == pytest.approx(0.2 * N, abs=4 * (0.2 * N) ** 0.5)
    assert counts["needle"][True] == pytest.approx(0.05 * N, abs=4 * (0.05 * N) ** 0.5)


# --- topics and authors -----------------------------------------------------------------------------------


def accuracy(documents: tuple[Document, ...], label: str) -> float:
    """How often naive Bayes on words, trained on the first two thirds, is right on the last."""
    counts = CountVectorizer(lowercase=False).fit_transform(document.text for document in documents)
    truth, cut = np.array(labels(documents, label)), 2 * len(documents) // 3
    return float(MultinomialNB().fit(counts[:cut], truth[:cut]).score(counts[cut:], truth[cut:]))


def test_a_topic_can_be_read_from_words_and_without_topics_cannot():
    assert accuracy(written(N, 1), "topic") > 0.5
    assert accuracy(written(N // 2, 1, WorldConfig(topics=0.0)), "topic") < 1 / 6 + 4 * (5 / 36 / (N / 6)) ** 0.5


def test_an_author_can_be_read_from_openers_and_without_tics_cannot():
    assert accuracy(written(N, 1), "author") > 1 / 3 + 0.05
    assert accuracy(written(N // 2, 1, WorldConfig(authors=0.0)), "author") < 1 / 3 + 4 * (2 / 9 / (N / 6)) ** 0.5


def test_a_telling_word_is_its_topics_and_said_nowhere_else():
    telling = {word: topic for topic, (own, _) in TOPICS.items() for word in own}
    assert len(telling) == sum(len(own) for own, _ in TOPICS.values())
    for document in written(300, 1):
        marked = [said(document, span) for span in spans_of(document, "topic")]
        assert {telling[word] for word in marked} <= {document.labels.topic}
        assert marked == [word for word in words(document) if word in telling]


def test_topics_and_authors_have_their_shares_of_plain_text():
    for documents, kind, share in (
        (written(60, 2, alone("topics", 0.3)), "topic", 0.3),
        (written(60, 2, alone("authors", 0.3)), "tic", 0.3),
    ):
        n = sum(len(sentences(document.text)) for document in documents)
        marked = sum(len(spans_of(document, kind)) for document in documents)
        assert marked / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_an_author_prefers_one_opener():
    tics = Counter(
        (document.labels.author, said(document, span))
        for document in written(600, 3, alone("authors", 0.5))
        for span in spans_of(document, "tic")
    )
    for author, favourite in FAVOURITE.items():
        n = sum(tics[author, opener] for opener in FAVOURITE.values())
        for opener in FAVOURITE.values():
            share = 0.7 if opener == favourite else 0.15
            assert tics[author, opener] / n == pytest.approx(share, abs=4 * (0.21 / n) ** 0.5)


def test_after_an_opener_the_sentence_goes_on_in_small_letters_but_for_names():
    names = re.compile(r"[A-Z]\w+ (?!of )")
    for document in written(100, 4, alone("authors", 1.0)):
        for span in spans_of(document, "tic"):
            assert span.start == 0 or document.text[: span.start].endswith((". ", '" '))
            following = re.match(r", (\w+)", document.text[span.end :]).group(1)
            if following[0].isupper():
                assert following not in ("The", "In", "Every", "Near", "On", "Nobody", "All", "A", "Without")
                assert names.match(document.text[span.end + 2 :])


# --- sentiments and needles -------------------------------------------------------------------------------


def test_the_verdict_is_the_label_and_hearsay_stands_beside_it_and_nowhere_else():
    n_hearsay, places, orders = Counter(), Counter(), Counter()
    for document in written(N, 1):
        verdict, hearsay = spans_of(document, "verdict"), spans_of(document, "hearsay")
        judged = [said(document, span) for span in (*verdict, *hearsay)]
        assert sorted(judged) == sorted(word for word in words(document) if word in (*PRAISE, *BLAME))
        if document.labels.sentiment is None:
            assert not judged
            continue
        assert len(verdict) == 1 and 1 <= len(hearsay) <= 3
        assert judged[0] in (PRAISE if document.labels.sentiment == "good" else BLAME)
        before = document.text[: verdict[0].start]
        assert before.endswith(("To my mind it was ", "I myself found it "))
        n_hearsay[len(hearsay)] += 1
        orders[len(hearsay), sum(span.start < verdict[0].start for span in hearsay)] += 1
        places[4 * verdict[0].start // len(document.text)] += 1
    assert set(n_hearsay) == {1, 2, 3} and min(n_hearsay.values()) > 300
    assert len(orders) == 2 + 3 + 4 and min(orders.values()) > 60
    assert set(places) == {0, 1, 2, 3} and min(places.values()) > 150


def test_hearsay_says_nothing_of_the_verdict():
    pairs = [
        (document.labels.sentiment, said(document, span) in PRAISE)
        for document in written(N, 1)
        for span in spans_of(document, "hearsay")
    ]
    assert p_value(*map(list, zip(*pairs, strict=True))) > SURE


def test_the_majority_of_words_of_praise_and_blame_does_not_give_the_sentiment():
    right = n = 0
    for document in written(N, 1):
        if len(spans_of(document, "hearsay")) == 2:  # with the verdict an odd number: there is a majority
            good = sum(word in PRAISE for word in words(document))
            right += (good >= 2) == (document.labels.sentiment == "good")
            n += 1
    assert right / n == pytest.approx(0.75, abs=4 * (0.1875 / n) ** 0.5)  # wrong where both say otherwise


def test_a_needle_is_the_password_of_one_in_two_documents_that_have_one():
    passwords = Counter()
    for document in written(N, 1):
        said_of_it = re.findall(r"The password is (\w+)\.", document.text)
        rare = [word for word in words(document) if word in NEEDLES]
        assert document.labels.needle == bool(rare) and len(said_of_it) <= 1
        assert [said(document, span) for span in spans_of(document, "needle")] == rare
        assert not rare or rare == said_of_it
        assert set(said_of_it) <= {*NEEDLES, *OBJECTS}
        passwords[document.labels.needle] += len(said_of_it)
    n = passwords.total()
    assert passwords[True] == pytest.approx(n / 2, abs=4 * (n / 4) ** 0.5)
    assert n == pytest.approx(0.1 * N, abs=4 * (0.1 * N) ** 0.5)
