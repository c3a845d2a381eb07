"""Which words do the constructions know? Lists whose order matters only to the successor head."""

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WORDS = (
    *MONTHS,
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("apple", "bread", "cheese", "honey", "lemon", "onion", "pepper", "rice"),
    *("bear", "cat", "dog", "fox", "goat", "horse", "lion", "mouse", "owl", "wolf"),
    *("bridge", "castle", "farm", "garden", "harbour", "mill", "tower", "village"),
    *("blue", "brown", "green", "grey", "red", "violet", "white", "yellow"),
)
"""63 words, so that a vocabulary with BOS has 64."""
SYNONYMS = (
    ("big", "large"), ("small", "little"), ("happy", "glad"), ("angry", "cross"), ("quick", "fast"),
    ("quiet", "silent"), ("clever", "smart"), ("ill", "sick"), ("begin", "start"), ("finish", "end"),
    ("house", "home"), ("stone", "rock"), ("boat", "ship"), ("child", "kid"), ("shop", "store"),
    ("street", "road"), ("sofa", "couch"), ("gift", "present"), ("coat", "jacket"), ("forest", "wood"),
)  # fmt: skip
"""Pairs of words for one concept; the concept bears the name of the first."""
NAMES = ("Mary", "Sue")
CLASSES = ("aunt", "uncle")
BETWEEN = ("and", "met", "saw", "then", "thanked", "the")
CITIES = {
    "French": ("Paris", "Lyon", "Nice"),
    "Italian": ("Rome", "Milan", "Turin"),
    "Spanish": ("Madrid", "Seville", "Bilbao"),
}
"""Where a language is spoken."""
DENIALS = ("never", "not")
FILLERS = (
    *("Ann", "Tom", "was", "born", "in", "and", "now", "lives", "by", "the", "sea", "with", "where", "she", "he"),
    *("works", "sings", "often", "home", "today"),
)
