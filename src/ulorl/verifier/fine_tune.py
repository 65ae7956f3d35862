"""Fine-tunes a causal LM to say whether two answers are equivalent (section 3.3), with TRL's SFTTrainer.

The verdict is the model's next token, "yes" or "no", followed by the EOS token; only these are trained on. The prompt
is rendered by the chat template that is saved with the model and encoded by `encode_each`, as for every verifier on our
engines; an OpenAI-compatible server that loads the folder renders the same prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from ulorl.common.atomic_files import replacing_folder, writing
from ulorl.config.model_config import LoraConfig
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_each
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.lora import add_lora, require_peft, save_merged
from ulorl.models.model_loading import check_model, load_model
from ulorl.models.model_source import ModelSource
from ulorl.rewards.verdict_prompt import FOLDER_FILE, VerdictPrompt, load_prompt
from ulorl.rng import Stream, generator
from ulorl.types import Problem
from ulorl.verifier.verifier_card import TrainingProgress, write_card
from ulorl.verifier.verifier_config import VerifierTrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ulorl.verifier.pairs import Pair

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
IGNORED = -100  # label of a token that is not trained on


@dataclass(frozen=True)
class Examples:
    """Prompts with their verdicts as tokens, and what was left out."""

    input_ids: list[list[int]]
    labels: list[list[int]]  # IGNORED in the prompt
    too_long: int


@dataclass(frozen=True)
class Trained:
    """A trained verifier's folder, and how its training went."""

    out: Path
    progress: TrainingProgress
    interrupted: bool
    too_long: int  # pairs left out

    def summary(self, max_tokens: int) -> str:
        """Return the training in a line; `max_tokens` is the limit of the pairs that were left out."""
        done = self.progress
        left_out = f"; {self.too_long} were longer than {max_tokens} tokens and left out" if self.too_long else ""
        return (
            f"{self.out}: {done.steps} steps, {done.pairs} pairs, {done.tokens} tokens in {done.minutes:.1f} minutes; "
            f"lately loss {done.loss:.3f}, {done.right:.1%} right{left_out}"
        )


def train(
    pairs: Sequence[Pair], base: str, out: Path, settings: VerifierTrainingConfig, *, overwrite: bool = False
) -> Trained:
    """Fine-tune the model at `base` (folder or hub name) on `pairs` and save it in `out`: a plain transformers folder
    with tokenizer, chat template and `verifier.json`.

    The same pairs, settings and machine give the same weights, unless `settings.minutes` ends the training. The current
    model is saved every `settings.save_minutes`, and when interrupted.

    Raises UserError before the model is loaded: without TRL; without pairs, or with one label only; when no pair fits
    into max_tokens; when `out` is not a verifier's, or is one and `overwrite` is off; for an unusable model. Raises it
    later when the loss is not finite or the disk is full.
    """
    _check(pairs, out, settings, overwrite)
    prompt = load_prompt(settings.prompt, settings.question_chars)
    source = ModelSource(base)
    check_model(source)
    tokenizer = source.tokenizer
    set_chat(tokenizer, settings.chat, base)
    chosen = subset(pairs, settings)
    limit = min(settings.max_tokens, source.context_length or settings.max_tokens)
    examples = encode(chosen, tokenizer, prompt, limit, lead=" " if settings.chat == "plain" else "")
    disable_progress_bar()  # transformers' own, of loading and saving
    model = _model(source, settings)
    facts = {"count": len(chosen), "equivalent": sum(pair.equivalent for pair in chosen), "sha256": digest(chosen)}

    def save(progress: TrainingProgress) -> None:
        with writing(out, lambda: "Free space, or give another --out"), replacing_folder(out) as partial:
            save_merged(model, partial)
            tokenizer.save_pretrained(partial)
            write_card(partial, prompt, settings, progress, base=Path(base).name, pairs=facts)

    from ulorl.verifier.verdict_trainer import fit

    progress, interrupted = fit(model, tokenizer, examples.input_ids, examples.labels, settings, save)
    return Trained(out, progress, interrupted, examples.too_long)


def encode(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, prompt: VerdictPrompt, max_tokens: int, lead: str
) -> Examples:
    """Return tokens and labels of each pair that takes at most `max_tokens`. lead: the text between prompt and verdict.

    Raises UserError when no pair is short enough, or the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        message = "the tokenizer names no EOS token, so no verdict would ever end; set eos_token in its folder"
        raise UserError(message, code=ErrorCode.MODEL_TOKENIZER)
    problems = [Problem(str(i), prompt.render(p.question, p.reference, p.answer)) for i, p in enumerate(pairs)]
    verdicts = {
        verdict: [*tokenizer(lead + word, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for verdict, word in ((True, "yes"), (False, "no"))
    }
    encoded = encode_each(
        problems,
        tokenizer,
        PromptFormat(),
        PromptLimits(context=max_tokens, max_tokens=max(map(len, verdicts.values()))),
    )
    examples = Examples([], [], sum(isinstance(tokens, UserError) for tokens in encoded))
    for pair, tokens in zip(pairs, encoded, strict=True):
        if not isinstance(tokens, UserError):
            examples.input_ids.append([*tokens.tolist(), *verdicts[pair.equivalent]])
            examples.labels.append([IGNORED] * len(tokens) + verdicts[pair.equivalent])
    if not examples.labels:
        shortest = len(tokenizer(prompt.render("", "", ""))["input_ids"])
        raise UserError(
            f"all {len(pairs)} pairs take more than --max-tokens={max_tokens} tokens, of which the prompt alone takes "
            f"{shortest}; raise it, or give a shorter --prompt or --question-chars",
            code=ErrorCode.VERIFIER_TRAINING,
            key="--max-tokens",
        )
    return examples


def set_chat(tokenizer: PreTrainedTokenizerBase, chat: str, base: str) -> None:
    """Set the chat template that training, reward and servers use. Raises UserError when the tokenizer has to keep its
    own and has none."""
    if chat == "own":
        if not tokenizer.chat_template:
            message = f"{base}: --chat=own, but the tokenizer has no chat template; leave --chat=plain"
            raise UserError(message, code=ErrorCode.CHAT_TEMPLATE, key="--chat", file=base)
        return
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if starts else "") + PLAIN


def subset(pairs: Sequence[Pair], settings: VerifierTrainingConfig) -> list[Pair]:
    """Return `settings.max_pairs` of the pairs, drawn with the seed."""
    chosen = list(pairs)
    generator(Stream.TRAINED_PAIRS, settings.seed).shuffle(chosen)
    return chosen[: settings.max_pairs or None]


def digest(pairs: Sequence[Pair]) -> str:
    """Return the SHA-256 of pairs in their order."""
    text = "\n".join(json.dumps(asdict(pair), sort_keys=True) for pair in pairs)
    return hashlib.sha256(text.encode()).hexdigest()


def _check(pairs: Sequence[Pair], out: Path, settings: VerifierTrainingConfig, overwrite: bool) -> None:
    if find_spec("trl") is None:
        message = 'verifier train needs TRL, which is not installed: pip install "ulorl[verifier]"'
        raise UserError(message, code=ErrorCode.EXTRA_MISSING)
    require_peft(LoraConfig(rank=settings.lora_rank))
    if settings.layers and settings.lora_rank:
        message = "--layers and --lora-rank exclude each other: adapters go into every layer"
        raise UserError(message, code=ErrorCode.CONFIG_CONFLICT, key="--layers")
    if not pairs:
        message = "there are no pairs to train on; `ulorl verifier data` makes some"
        raise UserError(message, code=ErrorCode.VERIFIER_TRAINING)
    if len({pair.equivalent for pair in pairs}) == 1:
        found = "equivalent" if pairs[0].equivalent else "not equivalent"
        message = f"all {len(pairs)} pairs are {found}; a verifier needs both kinds to distinguish them"
        raise UserError(message, code=ErrorCode.VERIFIER_TRAINING)
    wrong = ""
    if out.is_dir() and any(out.iterdir()):
        if not (out / FOLDER_FILE).is_file():
            wrong = "contains files that are not a verifier's; name a new folder"
        elif not overwrite:
            wrong = "contains a verifier already; name a new folder, or give --overwrite"
    elif out.exists() and not out.is_dir():
        wrong = "is a file; name a new folder"
    if wrong:
        raise UserError(f"--out {out}: {wrong}", code=ErrorCode.OUTPUT_EXISTS, key="--out", file=out)


def _model(source: ModelSource, settings: VerifierTrainingConfig) -> PreTrainedModel:
    """Return the model in float32, with gradients where `settings` says, and without dropout."""
    import torch

    model = load_model(source, dtype=torch.float32, device="cpu")
    if settings.lora_rank:
        add_lora(model, LoraConfig(rank=settings.lora_rank, alpha=2 * settings.lora_rank))
    if settings.layers:
        stack = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        if settings.layers > len(stack):
            message = f"--layers={settings.layers}: {Path(source.path).name} has {len(stack)}"
            raise UserError(message, code=ErrorCode.VERIFIER_TRAINING, key="--layers")
        upper = {id(p) for layer in list(stack)[-settings.layers :] for p in layer.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in upper)
    if not torch.cuda.is_available():  # where the trainer puts it; for rows this short sdpa is slower on a CPU
        model.set_attn_implementation("eager")
        use_onednn(model)
    return model
