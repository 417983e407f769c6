"""A small causal transformer over bytes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """Attention and a feed-forward layer, each behind a norm and around a residual."""

    def __init__(self, width: int, heads: int, dropout: float, rngs: nnx.Rngs):
        self.heads = heads
        self.dropout = nnx.Dropout(dropout)
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.mix = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.feed_norm = nnx.RMSNorm(width, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(batch, length, 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True
        )
        x = x + self.dropout(self.mix(attended.reshape(batch, length, width)), rngs=rngs)
        fed = self.dropout(nnx.gelu(self.widen(self.feed_norm(x))), rngs=rngs)
        return x + self.dropout(self.narrow(fed), rngs=rngs)


class ByteTransformer(nnx.Module):
    """Bytes (batch, length) in, logits of the next byte (batch, length, 256) out.

    The layers are unrolled, as in most training code, so compile time grows with their number.
    """

    def __init__(
        self, *, layers: int, width: int, heads: int, length: int, dropout: float, rngs: nnx.Rngs
    ):
        self.bytes = nnx.Embed(256, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, dropout, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.logits = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, tokens: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        x = self.bytes(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, rngs)
        return self.logits(self.norm(x))
