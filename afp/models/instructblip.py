"""InstructBLIP as a frozen answerer: image tokens and a question in, the logits of its answer out.

The image tower runs apart from the rest, because it never changes: its tokens are extracted once and
cached, and an epoch costs only Q-Former and language model. Everything else is transformers' own model,
called as it is.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BertTokenizer,
    BitsAndBytesConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.preprocess import seeded
from ..errors import AfpError, ModelError, require
from ..paths import DEMO_VLM
from . import processes
from .backbones import Backbone, best_device, load_backbone, read_weights

DEMO = "demo-vlm"  # the miniature InstructBLIP (self-pretrained), see data/build/demo_vlm.py
UNTRAINED = "demo-vlm-untrained"  # its control: the same with random weights
TOKEN_STATISTICS = "token_statistics.safetensors"
ALIASES = {
    "instructblip-vicuna-7b": "Salesforce/instructblip-vicuna-7b",
    "instructblip-flan-t5-xl": "Salesforce/instructblip-flan-t5-xl",
}
QUANTISED = {"8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True}}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "mixed": torch.float16,
}
# How AntifakePrompt's tokenizer (Llama's legacy one) reads the question: 2 1317 445 15373 1855 [*] 1577.
PROBE, PIECES = "Is this photo real [*]?", ["</s>", "▁Is", "▁this", "▁photo", "▁real", "▁?"]


class _MixedHalf(InstructBlipForConditionalGeneration):
    """What LAVIS keeps in float32: the Q-Former and its projection, norms and embeddings of the image tower, and
    (AntifakePrompt's modeling_llama.py) the language model's input embeddings."""

    _keep_in_fp32_modules_strict = [  # noqa: RUF012 - transformers declares it so
        "query_tokens",
        "qformer",
        "language_projection",
        "vision_model.embeddings",
        "layer_norm",
        "post_layernorm",
        "embed_tokens",
    ]


@dataclass(frozen=True)
class Encoded:
    """Texts of b questions as tensors; `labels` and `positions` (b, a) say which logits answer what."""

    qformer_input_ids: torch.Tensor
    qformer_attention_mask: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    decoder_input_ids: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> Encoded:
        """The texts of these rows, (n,) integers, repeated as often as they stand there."""
        return Encoded(**{k: v[rows] for k, v in vars(self).items() if v is not None})

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each answer: (b,)."""
        return (self.labels >= 0).sum(1)


@dataclass(frozen=True)
class Vlm:
    """A frozen InstructBLIP: `model` without its image tower, the `tower` beside it, and both tokenizers.

    `n_words` is the vocabulary that the language model came with: rows added later are no answers. `mixed` is
    the dtype of the half-precision parts where others are float32, else None.
    """

    name: str
    model: InstructBlipForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    qformer_tokenizer: PreTrainedTokenizerBase
    tower: Backbone
    output: str
    n_words: int
    mixed: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        return self.model.query_tokens.device

    @cached_property
    def special_ids(self) -> list[int]:
        """What stands before a question (after it, for a T5). InstructBLIP's Llama begins with `</s>`, whatever the
        settings of its tokenizer are."""
        vocab = self.tokenizer.get_vocab()
        return [vocab["</s>"]] if set(PIECES) <= set(vocab) else self.tokenizer("").input_ids

    def answer_id(self, answer: str) -> int:
        """The one token of `answer`. Raises ModelError if it is none or several."""
        ids = self.tokenizer(answer, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ModelError(
                f"answer {answer!r} is not exactly one token of {self.name} (but {ids}): use another word,"
                " or answer_scoring='rank'"
            )
        return ids[0]

    def prompt_ids(self, question: str) -> list[int]:
        """Ids of a question for the language model, special tokens included.

        What stands beside a pseudo-word is read by itself, as by Llama's legacy tokenizer: `?` after `[*]` is the
        piece `▁?`.
        """
        parts = [part for part in re.split(r"\s*(\[\*\d*\])\s*", question) if part]
        ids = [i for part in parts for i in self.tokenizer(part, add_special_tokens=False).input_ids]
        is_decoder = self.model.config.use_decoder_only_language_model
        return self.special_ids + ids if is_decoder else ids + self.special_ids

    def encode(
        self,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        qformer_questions: Sequence[str] | None = None,
        end: bool = True,
    ) -> Encoded:
        """Questions, and the answers that are to be scored or learned, padded on the right.

        The Q-Former reads `qformer_questions`, by default the same ones. Right padding leaves every score
        as it is: the Q-Former masks it, and nothing in the language model looks ahead. Without answers,
        there is one position a question: where the answer's first token stands. With `end`, an answer is followed
        by the end token, as in training.
        """
        q = self.qformer_tokenizer(
            list(qformer_questions or questions), padding=True, padding_side="right", return_tensors="pt"
        )
        config: Any = self.model.config
        n, most = q["input_ids"].shape[1], config.qformer_config.max_position_embeddings
        if n > most:
            raise ModelError(
                f"{self.name}: a question of {n} tokens for the Q-Former, expected at most {most}"
            )
        pad, end_ids = self.tokenizer.pad_token_id or 0, [self.tokenizer.eos_token_id] * end
        image = [config.image_token_index] * config.num_query_tokens
        prompts = [image + self.prompt_ids(question) for question in questions]
        targets: list[list[int]] = [[-100]] * len(prompts)
        if answers is not None:
            targets = [a + end_ids for a in self.tokenizer(list(answers), add_special_tokens=False).input_ids]
        fed = [t[:-1] for t in targets]
        start = torch.tensor([len(p) - 1 for p in prompts])
        texts = {"qformer_input_ids": q["input_ids"], "qformer_attention_mask": q["attention_mask"]}
        if config.use_decoder_only_language_model:
            prompts = [p + a for p, a in zip(prompts, fed, strict=True)]
        else:
            decoder = [[config.text_config.decoder_start_token_id, *a] for a in fed]
            texts["decoder_input_ids"], start = _pad(decoder, pad), torch.zeros_like(start)
        texts["input_ids"], texts["labels"] = _pad(prompts, pad), _pad(targets, -100)
        texts["attention_mask"] = _pad([[1] * len(p) for p in prompts], 0)
        last = texts.get("decoder_input_ids", texts["input_ids"]).shape[1] - 1
        positions = start[:, None] + torch.arange(texts["labels"].shape[1])
        texts["positions"] = positions.clamp(max=last)
        return Encoded(**{key: value.to(self.device) for key, value in texts.items()})

    def logits(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        """Logits (b, a, n_words), float32, of what follows at each answer position, given tokens (b, t, D)."""
        seen = self._read(tokens, texts)
        asked = {k: v for k, v in vars(texts).items() if v is not None and k not in ("positions", "labels")}
        # LAVIS answers in bfloat16 (`predict_class`), and trains in the dtype of the weights.
        with self._autocast(self.mixed if self.model.training else torch.bfloat16):
            found = self.model(pixel_values=None, mm_encoder_outputs={"image": seen}, **asked).logits
        found = found[..., : self.n_words]
        index = texts.positions[..., None].expand(-1, -1, found.shape[-1])
        return found.gather(1, index).float()

    def queries(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        """The Q-Former's queries (b, q, D), float32, after they read tokens (b, t, D) and the question.

        As they leave the Q-Former, before their projection to the language model's width.
        """
        found = self._read(tokens, texts).qformer_outputs.last_hidden_state
        return found[:, : self.model.config.num_query_tokens].float()

    def losses(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        """Mean cross-entropy of the tokens of each answer: (b,)."""
        logits = self.logits(tokens, texts)
        each = nn.functional.cross_entropy(logits.transpose(1, 2), texts.labels, reduction="none")
        return each.sum(1) / texts.lengths

    @torch.inference_mode()
    def ask(self, tokens: torch.Tensor, question: str, max_new_tokens: int = 10) -> list[str]:
        """What the model itself answers to one question about each image, greedily."""
        texts = self.encode([question] * len(tokens))
        keep = ("qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")
        with self._autocast(torch.bfloat16):
            said: Any = self.model.generate(
                pixel_values=tokens.to(self.device, self.model.qformer.dtype),
                **{k: getattr(texts, k) for k in keep},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                # The hub's generation config ends at 1, which its tokenizer never writes.
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        if self.model.config.use_decoder_only_language_model:
            said = said[:, texts.input_ids.shape[1] :]  # the rest repeats the question
        return [t.strip() for t in self.tokenizer.batch_decode(said, skip_special_tokens=True)]

    def _read(self, tokens: torch.Tensor, texts: Encoded) -> Any:
        """What the Q-Former makes of image tokens and its text; of the mix, in half precision in training alone."""
        heard = {k: getattr(texts, k) for k in ("qformer_input_ids", "qformer_attention_mask")}
        tokens = tokens.to(self.device, self.model.qformer.dtype)
        with self._autocast(self.mixed if self.model.training else None):
            return self.model.get_image_features(tokens, **heard)

    def _autocast(self, dtype: torch.dtype | None) -> torch.autocast:
        return torch.autocast(self.device.type, dtype, enabled=bool(self.mixed and dtype))


@torch.inference_mode(False)  # whoever needs it first: its tensors must take part in gradients later
def load_vlm(
    name: str = DEMO,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    quantisation: str | None = None,
    gradient_checkpointing: bool = False,
    pixel_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    crop: bool = False,
    revision: str | None = None,
) -> Vlm:
    """Load a frozen InstructBLIP: `demo-vlm` (or its control `demo-vlm-untrained`), an alias, a hub name, or
    a folder of `save_pretrained`.

    The weights of the last one stay in memory: who asks for the same gets modules and tokenizers of its own around
    them, so that what is attached to one is in no other.

    Args:
        device: torch device; `meta` builds the model from its config alone, without weights.
        dtype: `float32`, `bfloat16`, `float16`, or `mixed`, LAVIS's: image tower and language model in float16
            (a T5 in bfloat16), the Q-Former in float32. `auto` is bfloat16 on a GPU and float32 on a CPU.
        device_map: as in transformers; for one process.
        quantisation: `8bit`, or on a GPU `4bit`, by bitsandbytes.
        pixel_statistics: mean and standard deviation, instead of the image processor's own.
        crop: the tower sees the central square of an image, instead of all of it pressed into a square.
        revision: of the hub: a branch, a tag or a commit.
    Raises:
        AfpError: bitsandbytes is not installed, which `quantisation` needs.
        ModelError: not found, no InstructBLIP, weights that are missing, a tokenizer that reads AntifakePrompt's
            question differently, float16 with a T5 (which overflows in it), or a combination that cannot work.
    """
    where = torch.device(device) if device else best_device()
    if quantisation not in (None, *QUANTISED):
        raise ModelError(f"quantisation is {quantisation!r}, expected one of {', '.join(QUANTISED)}")
    if (
        quantisation == "4bit" and where.type == "cpu"
    ):  # once it has answered, bitsandbytes cannot train it there
        raise ModelError("quantisation is '4bit', which cannot be trained on a CPU; expected 8bit, or a GPU")
    if device_map and processes.count() > 1:
        raise ModelError(
            f"device_map is {device_map!r}, which spreads one model over all GPUs, but there are"
            f" {processes.count()} processes; expected one process, or no device_map: a whole model on each GPU"
        )
    if quantisation:
        require("bitsandbytes", extra="quantisation")
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    load = _load_last if device_map is None else _load  # hooks of a model that is spread know its modules
    frozen = load(name, where, dtype, device_map, quantisation, revision)
    tower: Any = frozen.tower
    if isinstance(tower, VisionTower):
        tower = replace(tower, crop=crop)
    if pixel_statistics:
        stated = dict(zip(("image_mean", "image_std"), map(list, pixel_statistics), strict=True))
        old: Any = tower.image_processor
        tower = replace(tower, image_processor=type(old).from_dict(old.to_dict() | stated))
    vlm = replace(frozen, tower=tower) if device_map else _own_modules(replace(frozen, tower=tower))
    if gradient_checkpointing:
        vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _check_ids(vlm)
    return vlm


def _own_modules(vlm: Vlm) -> Vlm:
    """The same weights in other modules, and copies of the tokenizers."""
    kept: list[Any] = [*vlm.model.parameters(), *vlm.model.buffers()]
    # bitsandbytes moves a layer's 8-bit weights there when it is first called.
    kept += [
        m.state for m in vlm.model.modules() if type(getattr(m, "state", None)).__name__ == "MatmulLtState"
    ]
    model = copy.deepcopy(vlm.model, {id(part): part for part in kept})
    tokenizers = {k: copy.deepcopy(getattr(vlm, k)) for k in ("tokenizer", "qformer_tokenizer")}
    return replace(vlm, model=model, **tokenizers)


def _load(
    name: str,
    device: torch.device,
    dtype: str,
    device_map: str | None,
    quantisation: str | None,
    revision: str | None,
) -> Vlm:
    is_demo = name in (DEMO, UNTRAINED)
    source = str(DEMO_VLM) if is_demo else ALIASES.get(name, name)
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config: Any = AutoConfig.from_pretrained(source, **hub)
        if config.model_type != "instructblip":
            raise ModelError(f"backbone {name}: a {config.model_type} model, expected instructblip")
        if config.image_token_index is None:
            raise ModelError(f"backbone {name}: image_token_index is missing in its config.json")
        is_t5 = config.text_config.model_type == "t5"
        if dtype == "float16" and is_t5:
            raise ModelError(f"dtype is float16, but the T5 of {name} overflows in it; use mixed or bfloat16")
        kind = torch.bfloat16 if dtype == "mixed" and is_t5 else DTYPES[dtype]
        mixed = kind if dtype == "mixed" else None
        quantised = BitsAndBytesConfig(**QUANTISED[quantisation]) if quantisation else None
        model: Any  # a `DualModel` in types alone, where its weights are read
        if device.type == "meta":
            with torch.device("meta"):
                model = InstructBlipForConditionalGeneration(config)
        elif name == UNTRAINED:
            model = _untrained(config)
        else:
            loader: Any = _MixedHalf if mixed else InstructBlipForConditionalGeneration
            options: dict[str, Any] = {"device_map": device_map, "quantization_config": quantised, **hub}
            model = read_weights(loader, name, pretrained_model_name_or_path=source, dtype=kind, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        # Not `AutoTokenizer`: it looks for a config.json in the subfolder, and the hub has none there.
        qformer_tokenizer = BertTokenizer.from_pretrained(source, subfolder="qformer_tokenizer", **hub)
        processor = None if is_demo else AutoImageProcessor.from_pretrained(source, backend="pil", **hub)
    except ModelError:
        raise
    except Exception as error:  # a damaged folder raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"backbone {name}: cannot load {source} ({reason}); expected demo-vlm, a hub name that this machine can"
            " download or has cached, or a folder written by save_pretrained"
        ) from error
    if device_map is None and quantised is None:
        model.to(device)
    model.query_tokens.data = model.query_tokens.to(model.qformer.dtype)  # transformers leaves it in float32
    model.requires_grad_(False).eval()
    if is_demo:
        tower, output = load_backbone("demo-clip"), "cls"
    else:
        assert processor is not None  # only the demo has none
        tower = VisionTower(name, model.vision_model, processor, None, device, kind, mixed=mixed)
        output = "tokens"
    has_statistics = is_demo and device.type != "meta"  # a model without weights sees no token
    statistics = load_file(Path(source) / TOKEN_STATISTICS, device=str(device)) if has_statistics else {}
    model.vision_model = GivenTokens(**statistics)
    n_words = config.text_config.vocab_size
    return Vlm(name, model, tokenizer, qformer_tokenizer, tower, output, n_words, mixed)


_load_last = lru_cache(maxsize=1)(_load)


def _untrained(config: InstructBlipConfig) -> InstructBlipForConditionalGeneration:
    """The model before any training, always the same: the control that shows what pretraining is for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = InstructBlipForConditionalGeneration(config)
        # transformers leaves zeros: all queries alike for ever
        nn.init.normal_(model.query_tokens, std=0.02)
    return model


def _check_ids(vlm: Vlm) -> None:
    """Raise ModelError where a Llama's tokenizer reads AntifakePrompt's question in other ids than the original."""
    if not set(PIECES) <= set(vlm.tokenizer.get_vocab()):
        return  # another vocabulary: nothing to compare with
    expected: Any = vlm.tokenizer.convert_tokens_to_ids(PIECES)
    ids = vlm.prompt_ids(PROBE)
    if ids[:5] + ids[-1:] != expected:
        raise ModelError(
            f"backbone {vlm.name}: its tokenizer reads {PROBE!r} as {ids}, expected {expected[:-1]}, the"
            f" pseudo-word and {expected[-1]}, as in AntifakePrompt"
        )


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of different lengths as one tensor: (b, longest)."""
    return nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def crop_square(image: Image.Image, size: int, seed: str | None = None) -> Image.Image:
    """The short side resized to `size` (bicubic), then the central square of that side.

    With a `seed`, a random square drawn from it, mirrored every other time. As torchvision's `Resize`, `CenterCrop`,
    `RandomCrop` and `RandomHorizontalFlip` (AntifakePrompt, blip_processors.py).
    """
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if seed is None:
        left, top = (round((side - size) / 2) for side in (width, height))
        return image.crop((left, top, left + size, top + size))
    rng = seeded(seed)
    left, top = (int(rng.integers(side - size + 1)) for side in (width, height))
    image = image.crop((left, top, left + size, top + size))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


class GivenTokens(nn.Module):
    """Stands in for `vision_model`: what it is given as pixels are the image tokens, (b, t, D), already.

    With `mean` and `std`, (t, D), every channel of every token is standardised: the blocks of a tower
    differ in scale, and a few channels of each dwarf all others.
    """

    def __init__(self, mean: torch.Tensor | float = 0.0, std: torch.Tensor | float = 1.0):
        super().__init__()
        self.mean = nn.Buffer(torch.as_tensor(mean), persistent=False)
        self.std = nn.Buffer(torch.as_tensor(std), persistent=False)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        tokens = ((pixel_values - self.mean) / self.std).to(pixel_values.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])


@dataclass(frozen=True)
class VisionTower(Backbone):
    """InstructBLIP's own image tower: a `Backbone` whose one output is `tokens`, (b, t, D), normalised.

    `mixed` and `crop` are `load_vlm`'s.
    """

    mixed: torch.dtype | None = None
    crop: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, their dtypes and the preprocessing: what a token depends on."""
        processor: Any = self.image_processor
        digest = hashlib.sha256(f"{processor.to_json_string()} {self.crop} {self.mixed}".encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images to (b, 3, h, w) float32 on the CPU."""
        if self.crop:
            images = [crop_square(image, self.vision_config.image_size) for image in images]
        return super().preprocess(images)

    @torch.inference_mode()
    def extract(self, pixels: torch.Tensor, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """All tokens after the last block, normalised: (b, t, D) float32 on the CPU, as `tokens`."""
        for output in outputs:
            self.check_output(output)
        weight = next(self.model.parameters())
        with torch.autocast(weight.device.type, self.mixed, enabled=self.mixed is not None):
            tokens = self.model(pixel_values=pixels.to(weight.device, weight.dtype)).last_hidden_state
        return dict.fromkeys(outputs, tokens.float().cpu())

    def check_output(self, output: str) -> int:
        """The block after which the tokens are taken. Raises ValueError for any output but `tokens`."""
        if output != "tokens":
            raise AfpError(f"feature output {output!r}: expected 'tokens'")
        return self.n_blocks
