"""The tiny tokenizer: a number is a token, and the text comes back exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from refusals import refused
from ulorl.data.countdown import Countdown
from ulorl.error_codes import ErrorCode
from ulorl.warmup.word_tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(Countdown.words)
_PIECES = [*"+-*=,<>\n", *map(str, range(100))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(Countdown.words).save_pretrained(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def test_a_number_is_one_token_and_the_saved_folder_agrees(saved: PreTrainedTokenizerBase) -> None:
    text = "7,2,10>14\n7*2=14-10=4,14<\n"
    pieces = ["7", ",", "2", ",", "10", ">", "14", "\n"]
    pieces += ["7", "*", "2", "=", "14", "-", "10", "=", "4", ",", "14", "<", "\n"]
    ids = saved(text)["input_ids"]
    assert saved.convert_ids_to_tokens(ids) == pieces
    assert saved.decode(ids) == text
    assert (saved.pad_token_id, saved.eos_token_id, saved.unk_token_id) == (0, 1, 2)
    assert len(saved) == 3 + 8 + 100
    assert saved.chat_template is None
    assert TOKENIZER.get_vocab() == saved.get_vocab()


@given(st.lists(st.sampled_from(_PIECES)))
def test_round_trip(pieces: list[str]) -> None:
    ids = [TOKENIZER.convert_tokens_to_ids(piece) for piece in pieces]
    assert TOKENIZER.decode(ids) == "".join(pieces)
    text = ",".join(pieces)  # no two numbers side by side
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_special_tokens_are_left_out_on_request(saved: PreTrainedTokenizerBase) -> None:
    ids = saved("1+2=3,3<eos><pad>")["input_ids"]
    assert ids[-2:] == [saved.eos_token_id, saved.pad_token_id]
    assert saved.decode(ids, skip_special_tokens=True) == "1+2=3,3"


@given(st.text())
def test_anything_is_encoded(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert all(0 <= id < len(TOKENIZER) for id in ids)


@pytest.mark.parametrize("foreign", ["100", "007", "x", " ", "é", "７"])
def test_what_is_foreign_is_unknown(foreign: str) -> None:
    assert TOKENIZER(f"1{'+' if foreign.isdigit() else ''}{foreign}")["input_ids"][-1] == TOKENIZER.unk_token_id


def test_a_word_is_listed_once_and_the_newline_belongs_to_all() -> None:
    assert len(build_tokenizer(["7", "7", "x"])) == 3 + 3


@pytest.mark.parametrize("word", ["ab", "", "1x"])
def test_longer_words_are_refused(word: str) -> None:
    with refused(ErrorCode.DATA_GENERATOR, key="words"):
        build_tokenizer(["7", word])
