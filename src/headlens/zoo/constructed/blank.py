"""How can a norm do nothing? A transformers model whose norms are the identity and whose other weights are zero.

    LayerNorm(x) = gain (x - mean x) / sqrt(var x + eps)       eps = 2^24,  gain = 2^12 = sqrt(eps)
    RMSNorm(x)   = gain x / sqrt(mean x^2 + eps)

If mean x = 0 (for LayerNorm; gpt2.py sees to it), both give x sqrt(eps / (eps + m)), where m = |x|^2 / d_model is
the mean square of the row. In float32 eps + m *is* eps as long as m < 1, so that the norm gives x to the last bit
or two; in exact arithmetic it is x (1 - m / 2^25), and m is below 0.1 in every construction but one (fake_copying's
output: up to 3). This holds for every row and for every part of a row: no norm need be frozen, and these
models say nothing about how a method treats norms. Models with random weights do.

Axes: d_model.
"""

from typing import Any

import torch

EPS = 2.0**24
GAIN = 2.0**12


def blank(kind: Any, config: Any) -> Any:
    """Return a model of this transformers class and config, to be filled in."""
    with torch.random.fork_rng(devices=[]):  # transformers draws weights, which are thrown away at once
        hf = kind(config).eval()
    with torch.no_grad():
        for module in hf.modules():
            for name, parameter in module.named_parameters(recurse=False):
                is_gain = name == "weight" and parameter.ndim == 1
                parameter.fill_(GAIN if is_gain else 0.0)
    return hf
