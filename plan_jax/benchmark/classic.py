"""The classic local loss in PyTorch, as a baseline: attention over regions, log-sum-exp over words, report by report.

Written after the description in Huang et al., *GLoRIA* (ICCV 2021), and in the manner of the implementations in use:
the words of a report are repeated for every image, every report makes its own transposed copy of all images, and
autograd keeps these copies, which is where B^2 N D numbers of memory go.
"""

import importlib
import importlib.util
from typing import Any

ATTENTION, SCORE, LOSS = 4.0, 5.0, 10.0  # the three inverse temperatures, at the published defaults


def find_torch() -> Any:
    """The torch module, or None where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    return importlib.import_module("torch")


def classic_loss(torch: Any, patch: Any, word: Any, lengths: list[int]) -> Any:
    """Symmetric cross-entropy over the scores of all images and reports.

    Args:
        torch: the module.
        patch: [B D N] patch features.
        word: [B D L] word features.
        lengths: number of real words of each report.
    """
    columns = []
    for report, length in enumerate(lengths):
        query = word[report, :, :length].unsqueeze(0).contiguous().repeat(len(patch), 1, 1)  # [B D l]
        context = _attend(torch, query, patch)  # [B D l]
        query, context = (x.transpose(1, 2).contiguous().view(-1, x.shape[1]) for x in (query, context))  # [B*l D]
        cosine = (query * context).sum(1) / (query.norm(dim=1) * context.norm(dim=1)).clamp(min=1e-8)
        columns.append((cosine.view(len(patch), length) * SCORE).exp().sum(1, keepdim=True).log())
    logits = torch.cat(columns, 1) * LOSS  # [B B]
    own = torch.arange(len(logits), device=logits.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(logits, own) + cross_entropy(logits.T, own)


def _attend(torch: Any, query: Any, patch: Any) -> Any:
    """The mean patch of every word: softmax over the words, then, sharpened, over the patches."""
    images, _, patches = patch.shape
    words = query.shape[2]
    similarity = torch.bmm(patch.transpose(1, 2).contiguous(), query)  # [B N l]
    over_words = torch.softmax(similarity.view(images * patches, words), dim=-1).view(images, patches, words)
    sharpened = over_words.transpose(1, 2).contiguous().view(images * words, patches) * ATTENTION
    attention = torch.softmax(sharpened, dim=-1).view(images, words, patches)
    return torch.bmm(patch, attention.transpose(1, 2).contiguous())  # [B D l]
