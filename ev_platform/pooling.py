"""A classifier over the mean of an encoder's tokens, as sentence embedders are trained and read.

transformers' BERT classifier reads the first token only; a sentence embedder (Reimers and Gurevych 2019) was never
trained to write anything into.

What does not belong here: training it (`training.heads`), and reading texts longer than its window (`encoder`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

_SCALE = 20.0  # of cosines, as sentence embedders use it: their differences are too small for a softmax


def classifier_class(model_type: str) -> Any:
    """Return the class of a classification head: over the mean for BERT encoders, else what transformers has.

    Args:
        model_type: As config.json has it.
    """
    from transformers import AutoModelForSequenceClassification

    return _mean_pooled_bert() if model_type == "bert" else AutoModelForSequenceClassification


@cache
def _mean_pooled_bert() -> Any:
    import torch
    from torch import nn
    from transformers import BertModel, BertPreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    class MeanPooledBertForSequenceClassification(BertPreTrainedModel):
        """Logits are scaled products of the unit mean of the last hidden states and a weight for each class."""

        def __init__(self, config: Any):
            super().__init__(config)
            self.bert = BertModel(config, add_pooling_layer=False)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
            self.post_init()

        def embed(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            """Return the unit mean of the tokens of each row, padding left out; shape (rows, hidden size)."""
            hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)

        def forward(
            self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, labels: Any = None, **_: Any
        ) -> SequenceClassifierOutput:
            """Return logits, and the mean loss where labels are given."""
            logits = _SCALE * self.classifier(self.embed(input_ids, attention_mask, token_type_ids))
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)

        def start_from_means(self, batches: Any) -> None:
            """Set each class's weight to the direction in which its rows differ from all rows.

            Nearest class mean, before the first step of training.

            Args:
                batches: Inputs with `labels`; every class occurs.
            """
            is_training = self.training
            self.eval()
            sums = torch.zeros_like(self.classifier.weight)
            counts = torch.zeros(len(sums), 1)
            with torch.no_grad():
                for batch in batches:
                    labels = batch.pop("labels")
                    sums.index_add_(0, labels, self.embed(**batch))
                    counts.index_add_(0, labels, torch.ones(len(labels), 1))
                means = sums / counts.clamp(min=1)
                self.classifier.weight.copy_(nn.functional.normalize(means - means.mean(0), dim=-1))
                self.classifier.bias.zero_()
            self.train(is_training)

    return MeanPooledBertForSequenceClassification
