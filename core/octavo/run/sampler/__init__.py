"""The sampler: from logits to tokens, on the device, one small file a feature.

Start in ``sampler.py``, which states the order of the features. ``rows.py`` says how a batch's rows are told
apart without asking the device.
"""

from __future__ import annotations

from octavo.run.sampler.logprobs import Logprobs, SampledLogprobs
from octavo.run.sampler.sampler import Sampled, Sampler

__all__ = ["Logprobs", "Sampled", "SampledLogprobs", "Sampler"]
