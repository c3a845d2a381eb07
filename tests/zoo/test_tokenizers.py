"""The tokenizers of the text world: give any text of it back, tile it, and ship as they are trained."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from headlens import zoo
from headlens._errors import ModelNotFound
from headlens.data import world
from headlens.zoo.tokenizer import BOS, SIZES, world_tokenizer

NAMES = tuple(SIZES)


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return AutoTokenizer.from_pretrained(zoo.tokenizer_path(request.param))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in world.documents(100, seed=99)]


def test_text_comes_back_and_offsets_tile_it(shipped, texts):
    for text in texts:
        encoded = shipped(text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        assert ids[0] == shipped.bos_token_id
        assert shipped.unk_token_id not in ids
        assert shipped.decode(ids[1:]) == text
        assert [start for start, _ in offsets[1:]] == [0, *(end for _, end in offsets[1:-1])]
        assert offsets[-1][1] == len(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_ships_as_it_is_trained(name):
    file = zoo.tokenizer_path(name) / "tokenizer.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(world_tokenizer(name).backend_tokenizer.to_str())


def test_sizes_are_as_named():
    sizes = {name: len(AutoTokenizer.from_pretrained(zoo.tokenizer_path(name))) for name in NAMES}
    assert {name: sizes[f"bpe-{name}"] for name in (300, 600, 1200)} == {300: 300, 600: 600, 1200: 1200}
    assert 400 < sizes["word"] < 1000  # every word, with and without a space before it
    assert sizes["characters"] > 100  # or random stimuli without a repeat could not be made


def test_the_coarser_the_pieces_the_shorter_the_text(texts):
    lengths = {}
    for name in NAMES:
        tokenizer = AutoTokenizer.from_pretrained(zoo.tokenizer_path(name))
        lengths[name] = np.mean([len(ids) - 1 for ids in tokenizer(texts)["input_ids"]])
    assert sorted(lengths, key=lambda name: lengths[name]) == ["word", "bpe-1200", "bpe-600", "bpe-300", "characters"]
    assert lengths["characters"] == np.mean([len(text) for text in texts])


@pytest.mark.parametrize("name", ["bpe-600", "bpe-1200"])
def test_the_byte_tokenizers_give_back_any_text(name):
    tokenizer = AutoTokenizer.from_pretrained(zoo.tokenizer_path(name))
    text = "naïve café — 東京  \t\n🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_bos_is_a_token_of_its_own(shipped):
    assert shipped.bos_token == BOS
    assert shipped.convert_ids_to_tokens(shipped("Ada")["input_ids"])[0] == BOS


def test_an_unknown_tokenizer_is_refused_with_the_names_there_are():
    with pytest.raises(ModelNotFound, match="bpe-1200, bpe-300, bpe-600, characters, word"):
        zoo.tokenizer_path("bytes")
