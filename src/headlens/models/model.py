"""A loaded language model: transformers' own module, its row in the family table, and its heads.

Nothing is wrapped or copied: `model.hf` is the module that transformers made, and it runs as it always
did. What headlens adds is knowledge of where things are.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headlens._errors import UnsupportedArchitecture
from headlens.models.families import Family
from headlens.models.head import Head, HeadCount, QKNorm
from headlens.models.norm import Norm, read_norm
from headlens.models.projections import Projection, check_fused_width, output_weight, read_projections
from headlens.models.rotary import Rotary


@dataclass(frozen=True)
class Model:
    """A transformers model that headlens knows how to take apart."""

    hf: Any
    """The transformers module, in eval mode."""
    tokenizer: Any | None
    family: Family
    name: str
    """How the user named it; the `model` column of every table."""
    revision: str | None

    @property
    def config(self) -> Any:
        """The config of the part that reads text."""
        return self.hf.base_model.config.get_text_config()

    @property
    def stack(self) -> Any:
        """The module that holds the blocks (and the rotary embedding, where there is one)."""
        return self.hf.base_model.get_submodule(self.family.stack)

    @property
    def blocks(self) -> Any:
        return self.stack.get_submodule(self.family.blocks)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        return self.config.num_attention_heads

    @property
    def n_kv_heads(self) -> int:
        return getattr(self.config, "num_key_value_heads", None) or self.n_heads

    @property
    def d_model(self) -> int:
        return self.config.hidden_size

    @property
    def d_head(self) -> int:
        return getattr(self.config, "head_dim", None) or self.d_model // self.n_heads

    @property
    def n_ctx(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        limit = self.config.max_position_embeddings
        # RoBERTa numbers positions from padding_idx + 1, so its table is longer than its context
        return limit - self.config.pad_token_id - 1 if self.config.model_type == "roberta" else limit

    @property
    def vocab_size(self) -> int:
        return self.hf.get_input_embeddings().num_embeddings

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def bos(self) -> int | None:
        """Token id that begins every sequence (of an encoder: [CLS]), or None where the model knows no such token."""
        if not self.family.causal and self.tokenizer is not None:
            return self._known(self.tokenizer.cls_token_id)
        return self._known(self.config.bos_token_id if self.tokenizer is None else self.tokenizer.bos_token_id)

    @property
    def closing(self) -> int | None:
        """Token id that ends every text of an encoder ([SEP]); None for causal models, which see no end."""
        return None if self.family.causal or self.tokenizer is None else self._known(self.tokenizer.sep_token_id)

    def _known(self, token: Any) -> int | None:
        # A config's default may lie outside a small vocabulary: then the model was not trained with it.
        return token if isinstance(token, int) and 0 <= token < self.vocab_size else None

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a block read the same residual stream."""
        return self.family.parallel(self.config)

    @property
    def count(self) -> HeadCount:
        return HeadCount(self.n_heads, self.n_kv_heads, self.d_head)

    def check_causal(self, what: str) -> None:
        """Raise if tokens see what comes after them, for `what` is defined for causal models.

        Raises
        ------
        UnsupportedArchitecture
            If the model is an encoder.
        """
        if not self.family.causal:
            raise UnsupportedArchitecture(
                f"{self.name} is an encoder ({self.family.title}): its activations can be captured, {what}."
            )

    def attention_module(self, layer: int) -> Any:
        """Return the transformers module that computes attention in `layer`."""
        return self.blocks[layer].get_submodule(self.family.attention)

    def projections(self, layer: int) -> dict[str, Projection]:
        """Return where the layer's queries, keys and values come from, under `q`, `k`, `v`."""
        found = read_projections(self.attention_module(layer), self.family, self.count)
        check_fused_width(found, self.count)
        return found

    def norm(self, layer: int, place: str) -> Norm | None:
        """Return the `pre_norm` or `post_norm` of a layer's attention, or None."""
        path = getattr(self.family, place)
        return None if path is None else read_norm(self.blocks[layer].get_submodule(path), self.family.norm)

    def output_bias(self, layer: int) -> Tensor | None:
        """Return b_O (d_model): what the attention block adds whatever its heads do."""
        assert self.family.out is not None
        return self.attention_module(layer).get_submodule(self.family.out).bias

    def head(self, layer: int, head: int) -> Head:
        """Return one head's exact query-key and output-value maps.

        Raises
        ------
        IndexError
            If the model has no such layer or head.
        UnsupportedArchitecture
            If the model is an encoder (capture only) or its weights are quantised.
        """
        self._check_index(layer, head)
        family = self.family
        self.check_causal("its heads cannot be taken apart")
        assert family.out is not None
        attention = self.attention_module(layer)
        parts = self.projections(layer)
        q, k, v = parts["q"], parts["k"], parts["v"]
        kv_head = self.count.kv_head(head)
        pre_norm = self.norm(layer, "pre_norm")
        return Head(
            layer=layer,
            head=head,
            W_Q=q.weight(head),
            W_K=k.weight(kv_head),
            W_V=v.weight(kv_head),
            W_O=output_weight(attention.get_submodule(family.out), family.out, head, self.d_head),
            b_Q=q.bias(head),
            b_K=k.bias(kv_head),
            b_V=v.bias(kv_head),
            query_norm=pre_norm,
            key_norm=pre_norm,
            query_qk_norm=self._qk_norm(attention, family.query_norm, q, head),
            key_qk_norm=self._qk_norm(attention, family.key_norm, k, kv_head),
            rotary=self._rotary(layer),
            scale=family.scale(attention),
            softcap=None if family.softcap is None else getattr(attention, family.softcap),
            window=family.window(attention),
            sink=None if family.sinks is None else getattr(attention, family.sinks)[head],
        )

    def _check_index(self, layer: int, head: int) -> None:
        for what, index, size in (("layer", layer, self.n_layers), ("head", head, self.n_heads)):
            if not 0 <= index < size:
                raise IndexError(f"{self.name} has no {what} {index}: its {what}s go from 0 to {size - 1}.")

    def _qk_norm(self, attention: Any, path: str | None, projection: Projection, head: int) -> QKNorm | None:
        if path is None:
            return None
        norm = read_norm(attention.get_submodule(path), self.family.norm)
        return QKNorm(
            norm=norm,
            over=self.family.qk_norm_over,
            weight=projection.weight_in_out(),
            bias=projection.module.bias,
            part=projection.columns(head),
        )

    def _rotary(self, layer: int) -> Rotary | None:
        if self.family.rotary == "none":
            return None
        if self.family.rotary == "pairs":  # GPT-J keeps a table of angles in each attention module
            return Rotary(self.attention_module(layer).embed_positions, "pairs")
        layer_type = self.config.layer_types[layer] if self.family.rotary_by_layer_type else None
        return Rotary(self.stack.rotary_emb, self.family.rotary, layer_type)

    @property
    def rotary_limit(self) -> int | None:
        """Length beyond which a sequence's rotary angles depend on what shares its batch; None if never."""
        rotaries = [self._rotary(layer) for layer in range(self.n_layers)]
        return min((r.limit for r in rotaries if r is not None and r.limit is not None), default=None)

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, logits: bool = True) -> Any:
        """Run the model on padded ids (batch, token); `mask` is True on real tokens, None where all are.

        Positions count real tokens only, so padding on either side changes nothing. Without `logits` the
        vocabulary is not multiplied out, a third of a small model's work. Gradients are the caller's business;
        nothing is cached.
        """
        arguments: dict[str, Any] = {"input_ids": ids.to(self.device)}
        if mask is not None and not bool(mask.all()):
            mask = mask.to(self.device)
            first = self.config.pad_token_id + 1 if self.config.model_type == "roberta" else 0
            arguments["attention_mask"] = mask.long()
            arguments["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0) + first
        if self.family.causal:
            arguments["use_cache"] = False
        return (self.hf if logits else self.hf.base_model)(**arguments)

    def provenance(self) -> dict[str, Any]:
        """Return what identifies this model in a result: name, revision, family, dtype, hashes, BOS."""
        return {
            "name": self.name,
            "revision": self.revision,
            "family": self.family.title,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "d_model": self.d_model,
            "config": config_hash(self.hf.config),
            "weights": weights_hash(self.hf),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "bos": self.bos,
        }


def weights_hash(hf: Any) -> str:
    """Return a digest of every parameter: its name, shape, 4,096 of its values, and the sum of all its bits.

    One pass at the speed of memory. The sum is of integers, which does not depend on the order of adding, so
    the digest is the same on every machine.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        flat = parameter.detach().contiguous().reshape(-1)
        bits = flat.view(_INTEGERS[flat.element_size()])
        sample = flat[:: max(1, flat.numel() // 4096)].float().cpu().numpy()
        # Part by part: a sum in wider integers first makes a wider copy of all that it sums.
        total = sum(
            (part.sum(dtype=torch.int64) for part in bits.split(1 << 18)), bits.new_zeros((), dtype=torch.int64)
        )
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{int(total)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def config_hash(config: Any) -> str:
    """Return a digest of what the config says of the model, and not of where or by what it was saved."""
    said = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_internal"):
        said.pop(key, None)
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tokenizer_hash(tokenizer: Any | None) -> str | None:
    """Return a digest of how text becomes ids, or None without a tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(said, dict):  # set by whoever used it last, and of no effect here
        said = {key: value for key, value in said.items() if key not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
