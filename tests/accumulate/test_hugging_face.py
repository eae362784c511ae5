"""A loader of transformers: texts, tokenizer, DataCollatorWithPadding, a small BERT."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import hbpcompiler as hbp

transformers = pytest.importorskip("transformers")

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "quickly", "slowly"]
TEXTS = ["the cat sat on the mat", "a dog ran", "the dog ran quickly under a tree", "cat",
         "a cat ran slowly on the mat"]
LABELS = [0, 1, 2, 0, 1]


class Classifier(nn.Module):
    """A dict of the tokenizer's names -> logits [N, 3]."""

    def __init__(self):
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=5 + len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=16, num_labels=3, attn_implementation="eager")
        self.bert = transformers.BertForSequenceClassification(config)

    def forward(self, **tokens):
        return self.bert(**tokens).logits


def loader(folder, size, shuffle=False):
    """Batches are BatchEncodings, each padded to its own longest text."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast(str(path))
    rows = [{**tokenizer(text), "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    return DataLoader(rows, batch_size=size, shuffle=shuffle,
                      collate_fn=transformers.DataCollatorWithPadding(tokenizer))


def test_padded_texts_of_any_length_give_the_whole(tmp_path):
    """Masked positions count for nothing, so that the total is that of one batch, and autograd's gradient."""
    torch.manual_seed(0)
    model = Classifier().double().eval()
    compiled = hbp.compile(model, quantities=["grad", "variance", "diag_ggn"])
    whole_batch = next(iter(loader(tmp_path, 5)))
    assert type(whole_batch).__name__ == "BatchEncoding"
    lengths = {batch["input_ids"].shape[1] for batch in loader(tmp_path, 2)}
    assert len(lengths) > 1
    total = hbp.accumulate(compiled, loader(tmp_path, 2, shuffle=True), progress=False)
    whole = hbp.accumulate(compiled, [whole_batch], progress=False)
    tokens = {name: tensor for name, tensor in whole_batch.items() if name != "labels"}
    loss = nn.functional.cross_entropy(model(**tokens), whole_batch["labels"])
    names = [name for name, _ in model.named_parameters() if name in total.grad]
    gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    assert total.samples == 5
    torch.testing.assert_close(total.loss, loss.detach())
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(total.grad[name], gradient, rtol=1e-9, atol=1e-12)
        for quantity in ("variance", "diag_ggn"):
            torch.testing.assert_close(total[quantity][name], whole[quantity][name], rtol=1e-8, atol=1e-12)
