"""The stage before the denoisers: what the encoders and VAEs of both models make of the same input.

Each that is at hand is run with it: both are compared, the candidate's is recorded under the numerics that are
imitated, and the first one's result, the reference's, is what both denoisers get. Where there is none, it is made up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wanconv.engine.image import synthetic_tokens
from wanconv.engine.numerics import Numerics
from wanconv.engine.recorder import Recorder
from wanconv.evaluation import results
from wanconv.evaluation.results import Rows, agreement_figures
from wanconv.generation import pictures, sampling, speech, tasks
from wanconv.generation.networks import watched
from wanconv.generation.types import Picture, Setting
from wanconv.metrics.tensors import compare
from wanconv.quantization.plain import NAMES
from wanconv.types.progress import Progress, total
from wanconv.weights.model import ModelWeights, Pair


class Encoders:
    """Runs the encoders of a pair of models; what it finds goes into `rows`."""

    def __init__(self, pair: Pair, numerics: Numerics, setting: Setting, seed: int, rows: Rows, tell: Progress) -> None:
        self._pair, self._numerics, self._setting = pair, numerics, setting
        self._seed, self._rows, self._tell = seed, rows, tell
        self._model = pair.candidate.model
        self._strict = numerics.name == "fp16"

    def contexts(self, prompt: str, padded: bool) -> Tensor:
        """Returns the contexts (2, tokens, text); recorded at their whole length where `padded`."""
        having = self._pair.having("text_encoder")
        tokens = sampling.tokens_of([weights.model for weights in self._pair.models], prompt) if having else None
        if tokens is None:
            contexts = self._made_up(*sampling.made_up_contexts(self._model, self._seed))
            if having:
                self._rows.notes.append("the text encoder was not run: there is no tokenizer")
            return contexts
        dtype = self._numerics.text
        encoded = self._encoded(
            "encoding the prompt",
            "text_encoder",
            "text context",
            lambda weights: sampling.text_encoder(weights, torch.float32).encode(tokens),
            lambda: self._recorded(
                "text_encoder",
                NAMES[dtype],
                sampling.text_encoder(self._pair.candidate, dtype),
                lambda encoder: encoder.encode(tokens, padded=padded),
                strict=self._strict,  # transformers keeps a linear of each block in fp32
            ),
        )
        return encoded.to(self._setting.device)

    def image_tokens(self, given: Mapping[Picture, Image.Image]) -> Tensor | None:
        """Returns the tokens of the pictures (1, 257 or 514, d), for a model that looks at them."""
        having = self._pair.having("image_encoder")
        if "image_encoder" not in self._model.family.components or not given:
            return None
        if not having:
            return self._made_up(*synthetic_tokens(self._model.components["dit"].dims["image"], len(given), self._seed))
        dtype = self._numerics.image
        return self._encoded(
            "looking at the image",
            "image_encoder",
            "image tokens",
            lambda weights: tasks.image_tokens(sampling.image_encoder(weights), self._setting, given),
            lambda: self._recorded(
                "image_encoder",
                NAMES[dtype],
                sampling.image_encoder(self._pair.candidate, dtype),
                lambda encoder: tasks.image_tokens(encoder, self._setting, given),
            ),
        )

    def states(self, samples: Tensor | None) -> Tensor | None:
        """Returns the hidden states of a sound, where there is one."""
        if samples is None:
            return None
        having = self._pair.having("audio_encoder")
        if not having:
            return self._made_up(*speech.synthetic_states(self._model.components["dit"].dims, self._setting))
        sound = samples.to(self._setting.device)
        return self._encoded(
            "listening",
            "audio_encoder",
            "hidden states of sound",
            lambda weights: sampling.audio_encoder(weights).encode(sound),
            lambda: self._recorded(
                "audio_encoder",
                "fp32",  # as the official code runs it; whoever widens nothing would have to fit into fp16
                sampling.audio_encoder(self._pair.candidate),
                lambda encoder: encoder.encode(sound),
                strict=self._strict,
            ),
        )

    def vae(self, picture: Image.Image | None) -> None:
        """Compares what both VAEs make of the same latents and of the same image, and records the candidate's."""
        candidate, reference, strict = self._pair.candidate, self._pair.reference, self._strict
        if "vae" not in self._model.components:
            return
        compares = reference is not None and self._pair.compares("vae")
        advance = total(self._tell, "decoding", (4 if strict else 3) + 1 if compares else 1, "runs")
        latents = results.clean_latents(self._setting)[:, :, self._setting.padding :]
        recorded = sampling.vae_of(candidate, torch.float16 if strict else torch.float32)
        decoded = self._recorded("vae", "fp16" if strict else "fp32", recorded, lambda codec: codec.decode(latents))
        advance(1)
        if reference is None or not compares:
            return
        theirs, ours = sampling.vae_of(reference), sampling.vae_of(candidate) if strict else recorded
        image = self._image(picture)

        def passed(values: Tensor) -> Tensor:
            advance(1)
            return values

        again = passed(ours.decode(latents)) if strict else decoded
        self._compared("vae", "decoded video", passed(theirs.decode(latents)), again)
        self._compared("vae", "encoded image", passed(theirs.encode(image)), passed(ours.encode(image)))

    def _image(self, picture: Image.Image | None) -> Tensor:
        """Returns the image that both VAEs encode, given or drawn, as a video of one frame.  # (1, 3, 1, H, W)"""
        size = self._setting.size
        covering = pictures.covering(picture or pictures.drawn("image", size), size)
        return pictures.pixels(covering).unsqueeze(2).to(self._setting.device)

    def _made_up(self, values: Tensor, note: str) -> Tensor:
        self._rows.notes.append(note)
        return values.to(self._setting.device)

    def _encoded(
        self,
        doing: str,
        component: str,
        what: str,
        encode: Callable[[ModelWeights], Tensor],
        record: Callable[[], object],
    ) -> Tensor:
        """Returns what the first model's encoder makes of an input, and gives the encoders' memory back."""
        having = self._pair.having(component)
        advance = total(self._tell, doing, len(having) + (self._pair.candidate in having), "runs")
        encoded = []
        for weights in having:
            encoded.append(encode(weights))
            advance(1)
        if self._pair.compares(component):
            self._compared(component, what, *encoded)
        if self._pair.candidate in having:
            record()
            advance(1)
        for weights in having:
            weights.release(component)
        return encoded[0]

    def _recorded(
        self, component: str, numerics: str, network: Any, run: Callable[[Any], Tensor], strict: bool = False
    ) -> Tensor:
        """Returns what a network makes of its input, with a row of `safety` about its operations."""
        recorder = Recorder(strict=strict)
        with watched(network.module, self._model.components[component], recorder):
            result = run(network)
        self._rows.safety.append(results.safety_row(component, numerics, recorder))
        return result

    def _compared(self, component: str, what: str, reference: Tensor, candidate: Tensor) -> None:
        assert self._pair.reference is not None
        held_to = results.gate(component, self._pair.reference.model, self._model)
        figures = agreement_figures(compare(reference.float(), candidate.float()))
        self._rows.components.append({"component": component, "what": what, "format": held_to, **figures})
