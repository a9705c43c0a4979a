"""The text encoder: streamed against transformers' own call, tokens, synthetic contexts, silence."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_weights import FolderWeights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wanconv import errors
from wanconv.engine.text import LENGTH, NEGATIVE_PROMPT, TextEncoder, cleaned, synthetic_context, tokenize

PROMPTS = ["A cat, asleep on a piano.", "two dogs run over the wide beach at dawn; gulls rise"]


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("wan2.1-t2v-1.3b", "diffusers")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[list[int]]:
    return tokenize(folder / "tokenizer", PROMPTS)


def encoder(folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    source = FolderWeights(folder)
    return TextEncoder(source, source.names("text_encoder"), source.config("text_encoder"), dtype)


def oracle(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    from transformers import UMT5EncoderModel

    return UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype, attn_implementation=attention).eval()


def padded_call(model: Any, tokens: list[list[int]], length: int) -> Tensor:
    """What the clients do: pad to `length`, mask, cut, fill with zeros."""
    ids, mask = torch.zeros(2, len(tokens), length, dtype=torch.int64)
    for row, prompt in enumerate(tokens):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), 1
    with torch.no_grad():
        hidden: Tensor = model(ids, mask).last_hidden_state
    return torch.nn.functional.pad(hidden * mask.unsqueeze(-1), (0, 0, 0, LENGTH - length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_streamed_blocks_give_exactly_what_the_whole_model_gives(
    folder: Path, tokens: list[list[int]], dtype: torch.dtype
) -> None:
    streamed, whole = encoder(folder, dtype), oracle(folder, dtype, "eager")
    context = streamed.encode(tokens)
    assert (context.shape, context.dtype) == ((2, LENGTH, 64), dtype)
    for row, prompt in enumerate(tokens):
        assert torch.equal(context[row : row + 1], padded_call(whole, [prompt], len(prompt)))
        padded = streamed.encode([prompt], padded=True)
        assert torch.equal(padded, padded_call(whole, [prompt], LENGTH))
        assert not padded[0, len(prompt) :].any()


def test_padding_to_512_and_another_attention_kernel_change_rounding_only(
    folder: Path, tokens: list[list[int]]
) -> None:
    context = encoder(folder).encode(tokens)
    theirs = padded_call(oracle(folder, torch.float32, "sdpa"), tokens, LENGTH)
    assert context.abs().max() > 0.5
    assert torch.allclose(context, theirs, rtol=0, atol=1e-5)


def test_one_block_is_in_memory_at_a_time_and_nothing_afterwards(folder: Path, tokens: list[list[int]]) -> None:
    class Watched(FolderWeights):
        def tensors(self, component: str, prefix: str) -> Mapping[str, Tensor]:
            assert all(parameter.is_meta for parameter in streamed.module.parameters())
            return super().tensors(component, prefix)

    source = Watched(folder)
    streamed = TextEncoder(source, source.names("text_encoder"), source.config("text_encoder"))
    streamed.encode(tokens)
    assert all(parameter.is_meta for parameter in streamed.module.parameters())
    used = sorted({token for prompt in tokens for token in prompt})
    assert source.asked == [
        f"text_encoder/token_embedding.weight{used}",
        "text_encoder/blocks.0",
        "text_encoder/blocks.1",
        "text_encoder/norm_out",
    ]


def test_no_operation_of_a_sound_encoder_returns_infinity(folder: Path, tokens: list[list[int]]) -> None:
    infinite = []

    class Finite(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's modes are untyped
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not result.is_meta and not result.isfinite().all():
                infinite.append(str(func))
            return result

    streamed = encoder(folder)
    with Finite():  # type: ignore[no-untyped-call]  # torch's
        streamed.encode(tokens)
    assert infinite == []


def test_a_token_beyond_the_table_is_another_models_tokenizer(folder: Path) -> None:
    with pytest.raises(errors.InputError, match="the tokenizer gave token 512, but the text encoder knows 512"):
        encoder(folder).encode([[4, 512, 1]])


def test_a_configuration_of_another_size_is_refused_by_tensor(folder: Path, tokens: list[list[int]]) -> None:
    source = FolderWeights(folder)
    config = source.config("text_encoder") | {"d_ff": 96}
    with pytest.raises(errors.InputError, match="the text encoder's configuration does not describe") as refusal:
        TextEncoder(source, source.names("text_encoder"), config).encode(tokens)
    down = "layer.1.DenseReluDense.wo.weight: configured (64, 96), there is (64, 128)"
    assert down in refusal.value.details
    assert len(refusal.value.details) == 3


# --- tokens


def test_a_prompt_ends_with_the_end_token_and_is_cut_to_512(folder: Path) -> None:
    short, long, empty = tokenize(folder / "tokenizer", ["a cat", "ab " * 600, ""])
    assert short[-1] == long[-1] == 1
    assert len(long) == LENGTH
    assert empty[-1:] == [1]
    assert tokenize(folder / "tokenizer", ["  a\n\tcat "]) == [short]


def test_tokens_are_those_of_transformers(folder: Path, tokens: list[list[int]]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokens == theirs(PROMPTS)["input_ids"]


def test_a_model_of_sentencepiece_alone_gives_the_tokens_of_transformers(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
    from transformers import T5TokenizerFast

    SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat asleep on a piano", "two dogs run over the wide beach at dawn"] * 50),
        model_prefix=str(tmp_path / "spiece"), vocab_size=50, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    processor = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    pieces = [(processor.id_to_piece(token), processor.get_score(token)) for token in range(len(processor))]
    theirs = T5TokenizerFast(vocab=pieces, extra_ids=0)(["a cat, two dogs", ""])["input_ids"]
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert tokenize(tmp_path, [" a  cat, two dogs", ""]) == theirs
    (cut,) = tokenize(tmp_path, ["a cat " * 300], 226)
    assert (len(cut), cut[-1]) == (226, 1)
    (tmp_path / "spiece.model").write_bytes(b"{")
    with pytest.raises(errors.InputError, match=r"spiece\.model is not a valid SentencePiece model"):
        tokenize(tmp_path, ["a cat"])


def test_a_prompt_is_cleaned_as_officially(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cleaned("  a &amp;amp;  b\u00a0c\n") == "a & b c"
    assert cleaned("schÃ¶n") == "schön"
    assert cleaned(NEGATIVE_PROMPT).startswith("色调艳丽,过曝")  # ftfy makes full-width commas plain
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cleaned("  a &amp;amp;  schÃ¶n\n") == "a & schÃ¶n"


@pytest.mark.parametrize("content", [None, "{", '{"tokenizer_class": "T5TokenizerFast"}'])
def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
        (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(errors.InputError, match="holds no tokenizer that transformers can read: "):
        tokenize(tmp_path, ["a cat"])


def test_a_synthetic_context_is_seeded_padded_and_says_what_it_is() -> None:
    context, note = synthetic_context(4096, seed=5)
    assert torch.equal(context, synthetic_context(4096, seed=5)[0])
    assert not torch.equal(context, synthetic_context(4096, seed=6)[0])
    assert (context.shape, context.dtype) == ((LENGTH, 4096), torch.float32)
    assert not context[64:].any()
    assert context[:64].std() == pytest.approx(0.1, rel=0.01)
    assert "64 rows of normal numbers" in note
    assert "seed 5" in note


@pytest.mark.exhaustive
def test_libraries_are_used_in_silence_offline_and_without_torchvision(tiny: Callable[..., Path]) -> None:
    folder = tiny("wan2.1-i2v-14b", "diffusers")
    script = f"""
import sys, torch
from pathlib import Path
sys.modules["torchvision"] = None  # importing it is an error
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from engine_weights import FolderWeights
from wanconv.engine import image, sampling, text, vae
source = FolderWeights(Path({str(folder)!r}))
encoder, codec, clip = (
    make(source, source.names(name), source.config(name))
    for make, name in ((text.TextEncoder, "text_encoder"), (vae.Vae, "vae"), (image.ImageEncoder, "image_encoder"))
)
clip.encode(image.prepared(torch.zeros(1, 3, 40, 30)))
encoder.encode(text.tokenize(source.folder / "tokenizer", ["a cat " * 600]))
codec.decode(torch.zeros(1, 16, 1, 4, 4))
sampling.UniPC(sampling.official_grid(4, 5.0)).step(torch.zeros(1, 16), torch.zeros(1, 16))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
