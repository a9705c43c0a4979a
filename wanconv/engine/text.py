"""Prompts to contexts: tokens, then UMT5's encoder with one block in memory at a time.

The encoder is transformers' own, built on the meta device; each block gets its weights just before it runs and loses
them after. Of the token table (2.1 GB) only the rows in use are read.

As in the official code, prompts are cleaned and cut to 512 tokens, and a context is the encoder's output at a prompt's
true length, padded with zeros, which the denoiser attends to. The clients run the encoder over 512 tokens with the
padding masked. That changes other rows only by rounding and takes twenty times longer for a short prompt, so it is done
only if `padded` asks for it, to probe for overflow: infinity in a padded row spoils every row, as 0 * inf.

bf16 is the official precision, of weights and activations; norms and softmax compute in fp32. In fp16 transformers
keeps the last linear of each feed-forward in fp32, and so does this module.

Definitions: Wan-Video/Wan2.2 wan/modules/t5.py, wan/modules/tokenizers.py, wan/configs/shared_config.py;
huggingface/transformers models/umt5/modeling_umt5.py.
"""

import html
import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanconv.engine.libraries import assigned, quiet
from wanconv.engine.weights import WeightSource
from wanconv.errors import InputError

LENGTH = 512
_COMPONENT = "text_encoder"
_PIECES = "spiece.model"
# negative prompts: from wan/configs/shared_config.py, and from wan/configs/wan_s2v_14B.py
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
SPEECH_NEGATIVE_PROMPT = (
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def cleaned(prompt: str) -> str:
    """Returns the prompt with broken Unicode mended (if ftfy is installed), HTML unescaped and white space joined."""
    if importlib.util.find_spec("ftfy") is not None:
        prompt = importlib.import_module("ftfy").fix_text(prompt)
    return " ".join(html.unescape(html.unescape(prompt)).split())


def tokenize(folder: Path, prompts: Sequence[str], length: int = LENGTH) -> list[list[int]]:
    """Returns each prompt's tokens, at most `length` including the end token; reads only the folder.

    A folder with only SentencePiece's model, such as CogVideoX's, is read by that library. Raises InputError if
    there is no tokenizer.
    """
    texts = [cleaned(prompt) for prompt in prompts]
    if (folder / _PIECES).is_file() and not (folder / "tokenizer.json").is_file():
        return _pieces(folder / _PIECES, texts, length)
    with quiet():
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:  # errors of a broken tokenizer
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"{folder} holds no tokenizer that transformers can read: {reason}",
                "download the tokenizer's folder that belongs to the text encoder again",
            ) from error
        return list(tokenizer(texts, truncation=True, max_length=length)["input_ids"])


def _pieces(file: Path, texts: Sequence[str], length: int) -> list[list[int]]:
    """Returns each text's pieces, at most `length` including the end piece, as transformers' T5Tokenizer does."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor: Any = SentencePieceProcessor(model_file=str(file))
    except RuntimeError as error:
        raise InputError(
            f"{file} is not a valid SentencePiece model",
            "download the tokenizer's folder that belongs to the text encoder again",
        ) from error
    return [[*processor.encode(text)[: length - 1], processor.eos_id()] for text in texts]


def synthetic_context(width: int, seed: int, length: int = LENGTH, tokens: int = 64) -> tuple[Tensor, str]:
    """Returns a made-up context (length, width), float32, for a model without tokenizer, and a note about it."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.zeros(length, width)
    context[:tokens] = 0.1 * torch.randn(tokens, width, generator=generator)
    note = f"synthetic context instead of a prompt: {tokens} rows of normal numbers times 0.1 (seed {seed}), then zeros"
    return context, note


class EncoderWeights:
    """A text encoder's weights by transformers' names, in one dtype; in fp16 `fp32` are the modules that stay wide."""

    def __init__(self, source: WeightSource, names: Mapping[str, str], dtype: torch.dtype, fp32: Iterable[str]) -> None:
        self._source, self._names, self._dtype = source, names, dtype
        self._fp32 = frozenset(fp32 if dtype == torch.float16 else ())  # {"wo"}

    def below(self, theirs: str, *prefixes: str) -> dict[str, Tensor]:
        """Fetches the tensors below canonical prefixes, by their names below the path `theirs`."""
        weights = {}
        for prefix in prefixes:
            for name, tensor in self._source.tensors(_COMPONENT, prefix).items():
                path = self._names[name].removeprefix(theirs)
                kept = not self._fp32.isdisjoint(path.split("."))
                weights[path] = tensor.to(torch.float32 if kept else self._dtype)
        return weights


class TextEncoder:
    """UMT5's encoder on streamed weights.

    `names`: canonical name -> transformers' name, of every tensor (the table's hub column). `module` is for a recorder
    to watch; its parameters are loaded and dropped.
    """

    def __init__(
        self,
        source: WeightSource,
        names: Mapping[str, str],
        config: Mapping[str, object],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._source, self._dtype = source, dtype
        with quiet(), torch.device("meta"):
            from transformers import UMT5Config, UMT5EncoderModel

            # eager attention is the official formula, and a recorder sees its scores
            umt5: Any = UMT5EncoderModel(UMT5Config(**dict(config), attn_implementation="eager"))
        self.module: nn.Module = umt5.eval().requires_grad_(False)
        for block in umt5.encoder.block:
            tabulate_buckets(block.layer[0].SelfAttention, LENGTH)
        self._rows: int = umt5.config.vocab_size
        self._weights = EncoderWeights(source, names, dtype, umt5._keep_in_fp32_modules)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Sequence[int]], padded: bool = False) -> Tensor:
        """Returns the contexts (B, 512, d) of tokenized prompts; one pass over the weights serves them all.

        Prompts do not see each other: each is a batch of its own.
        """
        lengths = [len(prompt) for prompt in prompts]
        assert 0 < min(lengths) <= max(lengths) <= LENGTH, "tokenize() ends every prompt with a token"
        width = LENGTH if padded else 0
        tokens = [torch.tensor([*prompt, *[0] * (width - len(prompt))]) for prompt in prompts]  # 0 is <pad>
        hidden = embedded(self._source, tokens, self._rows, self._dtype)  # each (1, L, d)
        masks = [_mask(length, states) for length, states in zip(lengths, hidden, strict=True)]
        for number in range(len(self._stack.block)):
            with self._held(self._stack.block[number], f"blocks.{number}", f"encoder.block.{number}.") as block:
                hidden = [block(states, mask) for states, mask in zip(hidden, masks, strict=True)]
        with self._held(self._stack.final_layer_norm, "norm_out", "encoder.final_layer_norm.") as norm:
            hidden = [norm(states) for states in hidden]
        return torch.cat(
            [F.pad(states[:, :n], (0, 0, 0, LENGTH - n)) for states, n in zip(hidden, lengths, strict=True)]
        )

    @property
    def _stack(self) -> Any:
        return self.module.encoder

    def _held(self, module: nn.Module, prefix: str, theirs: str) -> AbstractContextManager[nn.Module]:
        """Lets a part of the encoder, at the path `theirs`, hold the weights below a canonical prefix within the
        block."""
        return assigned(module, self._weights.below(theirs, prefix), "text encoder")


def embedded(source: WeightSource, prompts: Sequence[Tensor], known: int, dtype: torch.dtype) -> list[Tensor]:
    """Reads the rows of the token table, `known` in all, that the prompts need.  # each (L,) -> (1, L, d)"""
    needed, places = torch.unique(torch.cat(list(prompts)), return_inverse=True)
    if int(needed[-1]) >= known:
        raise InputError(
            f"the tokenizer gave token {int(needed[-1])}, but the text encoder knows {known}",
            "use the tokenizer that belongs to the text encoder",
        )
    rows = source.rows(_COMPONENT, "token_embedding.weight", needed).to(dtype)
    found = rows[places.to(rows.device)]
    return [part.unsqueeze(0) for part in torch.split(found, [len(prompt) for prompt in prompts])]


def tabulate_buckets(attention: Any, length: int, **sizes: int) -> None:
    """Looks up relative positions' buckets in a table: their formula takes the logarithm of 0, which a recorder would
    report."""
    table = attention._relative_position_bucket(torch.arange(1 - length, length), **sizes)
    attention._relative_position_bucket = partial(_look_up, table, length)


def _look_up(table: Tensor, length: int, positions: Tensor, **_: object) -> Tensor:
    return table.to(positions.device)[positions + length - 1]


def _mask(length: int, hidden: Tensor) -> Tensor | None:
    """Returns the mask to add to the scores, which hides padding, (1, 1, 1, L); None without padding."""
    if length == hidden.shape[1]:
        return None
    mask = hidden.new_zeros(1, 1, 1, hidden.shape[1])
    mask[..., length:] = torch.finfo(hidden.dtype).min
    return mask
