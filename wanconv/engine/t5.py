"""Prompts to contexts as in CogVideoX: T5 v1.1's encoder, with one block in memory at a time.

The encoder is transformers' own, fed like UMT5's (engine/text.py). A prompt is cut or padded to 226 tokens, and the
padding is not masked: every row is attended to, and a context has no zeros. All blocks use the first one's relative
bias.

In fp16 transformers keeps the last linear of each feed-forward in fp32, and so does this module.

Definitions: huggingface/diffusers pipelines/cogvideo/pipeline_cogvideox.py; huggingface/transformers
models/t5/modeling_t5.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wanconv.engine.libraries import quiet, run
from wanconv.engine.text import EncoderWeights, embedded, tabulate_buckets
from wanconv.engine.weights import WeightSource

LENGTH = 226
_WHAT = "text encoder"


class T5Encoder:
    """T5's encoder on streamed weights.

    `names`: canonical name -> transformers' name, of every tensor (the table's hub column). `module` is for a recorder
    to watch; it never holds a weight.
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
            from transformers import T5Config, T5EncoderModel

            t5: Any = T5EncoderModel(T5Config(**dict(config), attn_implementation="eager"))
        self.module: nn.Module = t5.eval().requires_grad_(False)
        self._stack = t5.encoder
        attention = t5.encoder.block[0].layer[0].SelfAttention
        buckets, distance = attention.relative_attention_num_buckets, attention.relative_attention_max_distance
        tabulate_buckets(attention, LENGTH, num_buckets=buckets, max_distance=distance)
        self._rows: int = t5.config.vocab_size
        self._weights = EncoderWeights(source, names, dtype, t5._keep_in_fp32_modules)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Sequence[int]], padded: bool = True) -> Tensor:
        """Returns the contexts (B, 226, d) of tokenized prompts; one pass over the weights serves them all.

        Prompts do not see each other: each is a batch of its own. They are padded for any value of `padded`.
        """
        assert all(0 < len(prompt) <= LENGTH for prompt in prompts), "tokenize() ends every prompt with a token"
        tokens = [torch.tensor([*prompt, *[0] * (LENGTH - len(prompt))]) for prompt in prompts]  # 0 is <pad>
        hidden = embedded(self._source, tokens, self._rows, self._dtype)  # each (1, 226, d)
        bias = None  # the first block computes it from its table
        for number, block in enumerate(self._stack.block):
            prefixes = (f"blocks.{number}", *(("relative_bias",) if number == 0 else ()))
            weights = self._weights.below(f"encoder.block.{number}.", *prefixes)
            results = [run(block, weights, (states, None, bias), _WHAT) for states in hidden]
            hidden, bias = [result[0] for result in results], results[0][1]
        norm = self._weights.below("encoder.final_layer_norm.", "norm_out")
        return torch.cat([run(self._stack.final_layer_norm, norm, (states,), _WHAT) for states in hidden])
