"""Words and rows, against what they must keep whatever the text and whatever comes and goes."""

import random
from itertools import pairwise

import numpy as np

from envs.web.rows import Rows, letters, word_array
from envs.web.words import span, split
from flowhand.contracts.screen.fields import ELEMENTS, LETTERS, WORDS

ALPHABET = "aZ9,;.:!?\"'()<> \t\nöß漢🙂@-\u201c\u00ab"


def texts_of(count, most):
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randrange(most))) for _ in range(count)]


def test_words_of_instructions_as_they_are():
    def texts(text):
        return [word.text for word in split(text)]

    assert texts('Click on the "Cancel" button.') == ["Click", "on", "the", "Cancel", "button"]
    assert texts("Select one,two, 1937 and click Submit.") == ["Select", "one", "two", "1937", "and", "click", "Submit"]
    assert texts("from: Prudhoe Bay/Deadhorse, AK on 11/08/2016.")[1:4] == ["Prudhoe", "Bay/Deadhorse", "AK"]
    assert texts("pay 1,000 to a@b.com (now) - 'ok'") == ["pay", "1,000", "to", "a@b.com", "now", "-", "ok"]
    assert texts(' "" ... ') == []


def test_a_span_is_what_stands_in_the_instruction():
    text = "Enter  \"New  York\", then 'x'."
    words = split(text)
    assert span(text, words, 1, 2) == "New  York"
    assert span(text, words, 2, 1) == "York"
    assert span(text, words, 3, 99) == "then 'x"
    assert span(text, words, 9, 9) is None


def test_words_are_parts_of_the_text_in_order():
    for text in texts_of(300, 80):
        words = split(text)
        assert all(text[word.start : word.end] == word.text for word in words)
        assert all(one.end <= other.start for one, other in pairwise(words))
        inside = {place for word in words for place in range(word.start, word.end)}
        left = [letter for place, letter in enumerate(text) if place not in inside]
        assert not any(letter.isalnum() or letter in "@-" for letter in left)  # only spaces and punctuation
        assert word_array(words).shape == (WORDS, LETTERS)


def test_letters_are_the_beginning_of_the_text_and_cut_no_character():
    for text in texts_of(300, 40):
        data = letters(text).tobytes()
        assert len(data) == LETTERS
        shown = data.rstrip(b"\0").decode()
        assert text.startswith(shown)
        assert len(shown.encode()) > LETTERS - 4 or shown == text


def elements(*ids, active=(), away=()):
    return [{"id": each, "active": each in active, "away": each in away} for each in ids]


def test_an_element_keeps_its_row_and_a_free_row_waits():
    draw = random.Random(1)
    for _ in range(40):
        rows, last, freed_at = Rows(), {}, {}
        for time in range(10):
            ids = draw.sample(range(1, 91), draw.randrange(81))
            placed, left_out = rows.place(0.0, elements(*ids))
            now = {each["id"]: each["row"] for each in placed}
            assert len(now) == min(len(ids), ELEMENTS) == len(ids) - left_out == len(set(now.values()))
            assert all(last[each] == now[each] for each in now.keys() & last.keys())
            freed_at |= {last[each]: time for each in last.keys() - now.keys()}
            taken = [now[each] for each in now.keys() - last.keys()]
            free = set(range(ELEMENTS)) - {last[each] for each in last.keys() & now.keys()} - set(taken)
            waited = [freed_at.get(each, -1) for each in taken]
            # None is taken while another has been free for longer.
            assert not taken or not free or max(waited) <= min(freed_at.get(each, -1) for each in free)
            last = now


def test_what_can_be_acted_on_comes_first_where_there_are_too_many():
    many = elements(*range(1, 101), active=range(60, 101))
    placed, left_out = Rows().place(0.0, many)
    assert left_out == 100 - ELEMENTS
    assert {each["id"] for each in placed} == {*range(60, 101), *range(1, ELEMENTS - 40)}
    assert [each["row"] for each in placed] == list(range(ELEMENTS))  # in their order on the page


def test_what_is_in_view_comes_before_what_can_be_scrolled_to():
    many = elements(*range(1, 81), active=range(1, 31), away=range(1, 31))
    placed, left_out = Rows().place(0.0, many)
    assert left_out == 80 - ELEMENTS
    assert {each["id"] for each in placed} == {*range(31, 81), *range(1, ELEMENTS - 49)}


def test_the_same_number_on_another_page_is_another_element():
    rows = Rows()
    assert rows.place(1.0, elements(1))[0][0]["row"] == 0
    assert rows.place(2.0, elements(1))[0][0]["row"] == 1


def test_words_of_the_contract_are_bytes():
    array = word_array(split("Größe 42"))
    assert np.array_equal(array[0][:7], np.frombuffer("Größe".encode(), np.uint8))
    assert not array[2:].any()
