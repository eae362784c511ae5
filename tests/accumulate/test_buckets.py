"""Few messages, and little memory beside the tensors."""

import torch

from hbpcompiler.accumulate import buckets


def test_neighbours_go_together_as_far_as_a_bucket_holds(monkeypatch):
    messages = []

    def doubled(tensor, group):
        messages.append(tensor.numel())
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", doubled)
    shapes = [(2, 3), (), (3,), (20,), (0,), (4, 2), (5,)]
    tensors = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    tensors.append(torch.rand(4, 5, dtype=torch.float64).t())
    right = [2 * tensor for tensor in tensors]
    buckets.all_reduce(tensors, None, most=80)
    assert all(torch.equal(own, wanted) for own, wanted in zip(tensors, right, strict=True))
    assert messages == [10, 20, 8, 5, 20]
    narrow = torch.ones(1, dtype=torch.float32)
    assert [len(bucket) for bucket in buckets.buckets([*tensors[:2], narrow], 80)] == [2, 1]
