"""Tiny random configurations from transformers; `needed` leaves out a test where that is not installed.

A module of tests must not be skipped because it imports one that is: these are imported by several.
"""

import pytest
import torch
from torch import nn

from tests.models.test_modules import draw

try:
    import transformers
except ImportError:
    transformers = None

needed = pytest.mark.skipif(transformers is None, reason="needs the optional extra transformers")

LABELS = torch.tensor([0, 2])
TOKENS = torch.tensor([[1, 4, 0], [3, 3, 2]])
NEXT_TOKENS = torch.tensor([[4, 0, -100], [3, -100, 1]])


def cross_entropy(output, target):
    """Of a class for each sample, [N, classes], or each token, [N, T, vocabulary]."""
    return nn.functional.cross_entropy(output.logits.view(-1, output.logits.shape[-1]), target.view(-1))


def bert():
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5,
        max_position_embeddings=6, num_labels=3)
    batch = {"input_ids": torch.tensor([[1, 2, 4], [6, 3, 3]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    return transformers.BertForSequenceClassification(config), batch, LABELS


def vit():
    config = transformers.ViTConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5, image_size=4, patch_size=2,
        num_channels=1, num_labels=3)
    return transformers.ViTForImageClassification(config), {"pixel_values": draw(2, 1, 4, 4)}, LABELS


def resnet():
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=2, hidden_sizes=[2, 4], depths=[1, 1], layer_type="basic", num_labels=3)
    return transformers.ResNetForImageClassification(config), {"pixel_values": draw(2, 1, 8, 8)}, LABELS


def gpt2(tied=False):
    """Its Conv1D merges samples and positions by view(-1, width)."""
    config = transformers.GPT2Config(
        vocab_size=5, n_embd=4, n_layer=1, n_head=2, n_positions=6, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=tied)
    return transformers.GPT2LMHeadModel(config), {"input_ids": TOKENS, "use_cache": False}, NEXT_TOKENS


def mixtral():
    """Its rows go to two of three experts each, by default sorted by expert."""
    config = transformers.MixtralConfig(
        vocab_size=5, hidden_size=8, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=6)
    return transformers.MixtralForCausalLM(config), {"input_ids": TOKENS, "use_cache": False}, NEXT_TOKENS


def llama():
    config = transformers.LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=5, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=6, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config), {"input_ids": TOKENS, "use_cache": False}, NEXT_TOKENS


def tied_gpt2():
    """The output layer's weight is the embedding of tokens, as in the published models."""
    return gpt2(tied=True)


def swin():
    """Attention in windows that are merged with the samples, with a trained bias; every second layer's are shifted."""
    config = transformers.SwinConfig(
        image_size=8, patch_size=2, num_channels=1, embed_dim=2, depths=[2], num_heads=[1], window_size=2, num_labels=3)
    return transformers.SwinForImageClassification(config), {"pixel_values": draw(2, 1, 8, 8)}, LABELS


def deberta():
    """Embedded distances, projected and repeated for all samples."""
    config = transformers.DebertaV2Config(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5, num_labels=3,
        max_position_embeddings=6, relative_attention=True, position_buckets=2, pos_att_type=["p2c", "c2p"],
        share_att_key=True, norm_rel_ebd="layer_norm", type_vocab_size=0)
    return transformers.DebertaV2ForSequenceClassification(config), {"input_ids": TOKENS}, LABELS
