"""The tiny reasoner's tokenizer: a number is one token, and decoding gives the text back exactly."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ulorl.data.countdown import LARGEST

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
# A product of a value within bounds and a digit can leave the bounds; with the numbers up to 99 a model can write it.
_WORDS = [PAD, EOS, UNKNOWN, *"+-*=,<>\n", *map(str, range(2 * LARGEST))]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a transformers tokenizer over numbers 0..99, the symbols and the newline; all else is `<unk>`."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(_WORDS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\D"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
