"""The tokenizer of a tiny model: a word of its task is one token, and decoding gives the text back exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
_PIECE = r"\d+|\D"  # a text is split into numbers and single characters


def build_tokenizer(words: Sequence[str], context: int = 1024) -> PreTrainedTokenizerFast:
    """Return a transformers tokenizer over `words` and the newline; all else is `<unk>`.

    context: tokens that the model can hold. Raises UserError for a word that is neither a number nor one character.
    """
    if wrong := [word for word in words if not re.fullmatch(_PIECE, word, flags=re.DOTALL)]:
        text = f"words of a task are numbers or single characters, found {', '.join(map(repr, wrong))}"
        raise UserError(text, code=ErrorCode.DATA_GENERATOR, key="words")
    vocabulary = {word: id for id, word in enumerate(dict.fromkeys([PAD, EOS, UNKNOWN, *words, "\n"]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
