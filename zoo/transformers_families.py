"""transformers: tiny random configurations, each with its head and with the defaults that its users have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .family import CLASSES, SAMPLES, Case, Family, images, labels

VOCABULARY, WIDTH, TOKENS = 23, 16, 6
TEXT = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 20, "pad_token_id": 0, "num_labels": CLASSES}
DECODER = {**TEXT, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {**DECODER, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
           "num_experts_per_tok": 2, "moe_k": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12,
           "moe_num_shared_experts": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
           "qk_nope_head_dim": 4, "qk_rope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
           "moe_layer_start_index": 1, "experts_implementation": "eager"}
"""In double precision experts are computed one after the other; each family reads its own names of these."""
GPT = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 20, "bos_token_id": 1,
       "eos_token_id": 2}
VIT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
       "image_size": 16, "patch_size": 4, "num_labels": CLASSES}
T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
      "decoder_start_token_id": 0}
BART = {"vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "num_labels": CLASSES,
        "max_position_embeddings": 20, "decoder_start_token_id": 2}
STAGES = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "image_size": 32, "patch_size": 2, "window_size": 4,
          "num_labels": CLASSES}
SPEECH = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
          "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
          "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
          "num_labels": CLASSES}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "Bert": TEXT, "Roberta": TEXT, "Electra": {**TEXT, "embedding_size": 12}, "MPNet": TEXT, "FNet": TEXT,
    "Albert": {**TEXT, "embedding_size": 12}, "Camembert": TEXT,
    "DistilBert": {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                   "max_position_embeddings": 20, "num_labels": CLASSES},
    "Deberta": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "DebertaV2": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "MobileBert": {**TEXT, "embedding_size": WIDTH, "true_hidden_size": 8, "intra_bottleneck_size": 8},
    "SqueezeBert": {**TEXT, "embedding_size": WIDTH, "q_groups": 2, "k_groups": 2, "v_groups": 2,
                    "post_attention_groups": 1, "intermediate_groups": 2, "output_groups": 2},
    "ConvBert": {**TEXT, "embedding_size": WIDTH, "conv_kernel_size": 3},
    "ModernBert": {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
                   "global_attn_every_n_layers": 2, "local_attention": 4},
    "XLNet": {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": 1, "n_head": 2, "d_inner": 24,
              "num_labels": CLASSES},
    "Funnel": {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": WIDTH, "n_head": 2, "d_head": 8,
               "d_inner": 24, "num_labels": CLASSES, "num_decoder_layers": 1},
    "Nystromformer": {**TEXT, "num_landmarks": 2, "segment_means_seq_len": TOKENS, "conv_kernel_size": 3},
    "RoFormer": {**TEXT, "embedding_size": WIDTH},
    "Perceiver": {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_latents": 8, "num_latents": 4, "num_blocks": 1,
                  "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2,
                  "max_position_embeddings": 20, "num_labels": CLASSES},
}
DECODERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": GPT, "OpenAIGPTLMHeadModel": GPT, "GPTBigCodeForCausalLM": GPT,
    "GPTJForCausalLM": {**GPT, "rotary_dim": 4}, "CodeGenForCausalLM": {**GPT, "rotary_dim": 4, "n_head": 4},
    "BloomForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 2},
    "MptForCausalLM": {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 2, "n_heads": 2, "max_seq_len": 20},
    "GPTNeoForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 2,
                          "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 20,
                          "window_size": 4},
    "GPTNeoXForCausalLM": TEXT, "FalconForCausalLM": {**TEXT, "bos_token_id": 1, "eos_token_id": 2},
    "OPTForCausalLM": {**TEXT, "ffn_dim": 24, "word_embed_proj_dim": WIDTH},
    **{f"{name}ForCausalLM": EXPERTS for name in
       ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "Phimoe", "GraniteMoe", "GptOss", "Ernie4_5_Moe")},
    "DeepseekV3ForCausalLM": {**EXPERTS, "num_key_value_heads": 2},
    **{f"{name}ForCausalLM": DECODER for name in
       ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Phi", "StableLm", "Olmo", "Cohere", "Starcoder2",
        "Granite", "SmolLM3", "Phi3")},
}
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": VIT, "DeiT": VIT, "Beit": VIT, "Dinov2": VIT, "ViTMSN": VIT,
    "Swin": STAGES, "Swinv2": STAGES, "ConvNext": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2,
                                                   "num_labels": CLASSES},
    "ConvNextV2": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2, "num_labels": CLASSES},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": CLASSES},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4,
               "num_labels": CLASSES},
    "MobileNetV2": {"depth_multiplier": 0.35, "num_labels": CLASSES},
    "PoolFormer": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_labels": CLASSES},
    "Segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
                  "decoder_hidden_size": 8, "num_labels": CLASSES},
    "Pvt": {"image_size": 32, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_labels": CLASSES,
            "num_attention_heads": [1, 1, 2, 2]},
    "Cvt": {"depth": [1, 2, 3], "embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "num_labels": CLASSES},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
              "key_dim": [4, 4, 4], "num_labels": CLASSES},
    "MobileViT": {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
                  "num_labels": CLASSES},
    "FocalNet": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2],
                 "focal_windows": [3, 3], "hidden_sizes": [8, 16], "num_labels": CLASSES},
}


def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (SAMPLES, TOKENS))


def padded() -> Tensor:
    mask = torch.ones(SAMPLES, TOKENS, dtype=torch.long)
    mask[1, 4:] = 0
    return mask


def of_logits(output: Any, target: Tensor) -> Tensor:
    """Cross entropy of a class for each sample, [N, classes], or for each token, [N, T, vocabulary]."""
    return nn.functional.cross_entropy(output.logits.flatten(0, -2), target.flatten())


def _model(name: str, prefix: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{prefix}Config")(**options)
    made: nn.Module = getattr(transformers, name)(config)
    return made


def classifier(prefix: str, options: dict[str, Any]) -> Case:
    model = _model(f"{prefix}ForSequenceClassification", prefix, options)
    name = "inputs" if prefix == "Perceiver" else "input_ids"
    given = {name: tokens()} if prefix in ("FNet", "Nystromformer") else {name: tokens(), "attention_mask": padded()}
    return Case(model, of_logits, given, labels())


def decoder(name: str, options: dict[str, Any]) -> Case:
    prefix = name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return Case(_model(name, prefix, options), of_logits, {"input_ids": tokens()}, tokens())


def translator(name: str, prefix: str, options: dict[str, Any]) -> Case:
    given = {"input_ids": tokens(), "decoder_input_ids": tokens()}
    return Case(_model(name, prefix, options), of_logits, given, tokens())


def image_classifier(prefix: str, options: dict[str, Any]) -> Case:
    model = _model(f"{prefix}ForImageClassification", prefix, options)
    pixels = options.get("image_size", 32)
    return Case(model, of_logits, {"pixel_values": images(pixels)}, labels())


def speech_classifier(prefix: str) -> Case:
    model = _model(f"{prefix}ForSequenceClassification", prefix, SPEECH)
    return Case(model, of_logits, {"input_values": torch.randn(SAMPLES, 320, dtype=torch.float64)}, labels())


def text_encoder() -> Case:
    """CLIP's, whose end picks the token of the highest number."""
    model = _model("CLIPTextModelWithProjection", "CLIPText",
                   {**TEXT, "projection_dim": CLASSES, "bos_token_id": 1, "eos_token_id": 2})
    return Case(model, lambda output, target: nn.functional.cross_entropy(output.text_embeds, target),
                {"input_ids": tokens()}, labels())


def families() -> list[Family]:
    made: dict[str, Callable[[], Case]] = {}
    made |= {prefix: partial(classifier, prefix, options) for prefix, options in CLASSIFIERS.items()}
    made |= {name.removesuffix("ForCausalLM").removesuffix("LMHeadModel"): partial(decoder, name, options)
             for name, options in DECODERS.items()}
    made |= {prefix: partial(image_classifier, prefix, options) for prefix, options in IMAGES.items()}
    made |= {"GPT2Classifier": partial(_padded_decoder, "GPT2", {**GPT, "pad_token_id": 0, "num_labels": CLASSES}),
             "LlamaClassifier": partial(_padded_decoder, "Llama", DECODER),
             "T5": partial(translator, "T5ForConditionalGeneration", "T5", T5),
             "MT5": partial(translator, "MT5ForConditionalGeneration", "MT5", T5),
             "Bart": partial(translator, "BartForConditionalGeneration", "Bart", BART),
             "Pegasus": partial(translator, "PegasusForConditionalGeneration", "Pegasus", BART),
             "Wav2Vec2": partial(speech_classifier, "Wav2Vec2"), "Hubert": partial(speech_classifier, "Hubert"),
             "CLIPText": text_encoder}
    return [Family("transformers", name, make) for name, make in made.items()]


def _padded_decoder(prefix: str, options: dict[str, Any]) -> Case:
    """Classifies by the last token that is not padding."""
    return Case(_model(f"{prefix}ForSequenceClassification", prefix, options), of_logits,
                {"input_ids": tokens(), "attention_mask": padded()}, labels())
