"""The kinds of models that can be exported: how to recognise them, what they read and give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qcompiler import settings
from qcompiler.errors import ExportError

Role = Literal["decoder", "pair", "head", "bare"]
Axes = tuple[str | int, ...]
"""Of an input: the name of an axis of any size, or its size."""


ENDINGS: dict[Role, tuple[str, ...]] = {
    "decoder": ("ForCausalLM", "LMHeadModel"),
    "pair": ("ForConditionalGeneration", "MTModel", "ForSpeechSeq2Seq"),
    "head": (
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
        *("ForImageClassification", "ForObjectDetection", "ForSemanticSegmentation"),
        *("ForDepthEstimation", "ForCTC", "ForAudioClassification", "ModelWithProjection"),
    ),
    "bare": ("",),
}
"""Of the names of classes. A "decoder" continues a text; a "pair" is an encoder and a decoder, two
graphs; a "head" answers as the class does that the config names; "bare" gives vectors."""

OUTPUTS = (
    *("logits", "pred_boxes", "start_logits", "end_logits", "predicted_depth"),
    *("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"),
)
"""What is exported of what a model answers; where it answers none of them, its vectors."""
VECTORS, POOLED = "last_hidden_state", "pooler_output"

UNROLLED = (
    *("falcon_mamba", "jamba", "mamba", "rwkv", "xlstm", "zamba"),
    *("kimi_linear", "minimax", "olmo_hybrid"),
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
)
"""`model_type`s with a loop over the text, or over chunks of it, that tracing writes out."""
OTHER_MEANS = "export it with other tools: any ONNX model can be compiled"

TEXT, MASK, POSITIONS, TYPES = "input_ids", "attention_mask", "position_ids", "token_type_ids"
PIXELS, SAMPLES, FEATURES = "pixel_values", "input_values", "input_features"


def role_of(config: Mapping[str, Any]) -> Role:
    """The role of the model that a config.json describes; ExportError where it has no export."""
    name, both = architecture(config), config.get("is_encoder_decoder") is True
    if config.get("model_type") in UNROLLED:
        raise ExportError(
            f"{name} scans its text step by step, and the export would be for texts of one "
            f"length; {OTHER_MEANS}"
        )
    found = role_by_name(name)
    if found == "bare" and both:
        raise ExportError(
            f"{name} is an encoder and a decoder without a head, and those can't be exported; "
            "take the model with its head (...ForConditionalGeneration)"
        )
    if found == "pair" and not both:
        raise ExportError(
            f"{name} reads more than text, or writes it another way than an encoder and a decoder "
            "do, and such models can't be exported; take one of its parts as a model of its own"
        )
    return found


def role_by_name(name: str) -> Role:
    """The role of a class, by its name alone."""
    return next(role for role, endings in ENDINGS.items() if name.endswith(endings))


def architecture(config: Mapping[str, Any]) -> str:
    """The class that a config.json names first; empty where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def inputs_of(
    role: Role, main: str, parameters: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, ...]:
    """The inputs of a model that is one graph without a cache.

    `main`: the class's `main_input_name`; `parameters`: those of its forward.
    """
    if main != TEXT:
        return (main,)
    # An encoder without a head reads single texts; pairs are for heads.
    pairs = role == "head" and (settings.count(config, "type_vocab_size") or 1) > 1
    wanted = (TEXT, PIXELS, MASK, *((TYPES,) if pairs else ()))
    return tuple(name for name in wanted if name in parameters)


def axes_of(
    name: str, config: Mapping[str, Any], preprocessor: Mapping[str, Any], *, beside_text: bool
) -> Axes:
    """The axes of an input; sizes that a model fixes are in its config.

    `beside_text`: images and texts are read together, and their numbers may differ.
    """
    if name == PIXELS:
        seen = settings.table(config, "vision_config") or config
        channels = settings.count(seen, "num_channels") or 3
        return ("images" if beside_text else "batch", channels, *_image(seen, preprocessor))
    if name == SAMPLES:
        return ("batch", "samples")
    if name == FEATURES:
        frames = settings.count(config, "max_source_positions")
        bins = settings.count(config, "num_mel_bins")
        if frames is None or bins is None:
            raise ExportError(
                "config.json gives no max_source_positions and num_mel_bins: the size of "
                f"'{FEATURES}' is unknown"
            )
        return ("batch", bins, 2 * frames)
    return ("batch", "sequence")


def _image(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Axes:
    """Height and width: of the config, else of what prepares images, else any."""
    size = config.get("image_size")
    one = settings.count(config, "image_size")
    if one is not None:
        return (one, one)
    if isinstance(size, list) and len(size) == 2:
        return (int(size[0]), int(size[1]))
    for key in ("crop_size", "size"):
        height = settings.count(settings.table(preprocessor, key), "height")
        width = settings.count(settings.table(preprocessor, key), "width")
        if height and width:
            return (height, width)
    return ("height", "width")
