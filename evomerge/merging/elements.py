"""The element hash: who is kept when magnitudes are equal, and who is dropped at random.

`mix32` is the 32-bit finaliser of MurmurHash3 (public domain, A. Appleby): a bijection of 32-bit words, so that the
hashes of the elements of one tensor are all different and exactly the asked number lies below some bound. The word
that is hashed is the element's index xor a salt; salts are taken from sha256 of names, so that nothing depends on
device, thread count, chunking or the order in which tensors are visited.
"""

from __future__ import annotations

import hashlib
from typing import Final

import torch

FULL: Final = 0xFFFFFFFF
_FIRST: Final = 0x85EBCA6B
_SECOND: Final = 0xC2B2AE35


def signed(word: int) -> int:
    """The 32-bit pattern `word` read as a signed integer, which is what torch computes with."""
    return word - (1 << 32) if word > 0x7FFFFFFF else word


def salt(purpose: str, *names: str | int) -> int:
    """A 32-bit word that depends on everything it is given, in order.

    Args:
        purpose: `"tie"`, `"mask"` or `"sample"`; one name never serves two purposes.
        names: tensor, parent, and for masks the recipe's seed.
    """
    text = "\x1f".join([purpose, *(str(n) for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def mix32(word: int) -> int:
    """The finaliser of MurmurHash3 for one word in `[0, 2**32)`."""
    word ^= word >> 16
    word = word * _FIRST & FULL
    word ^= word >> 13
    word = word * _SECOND & FULL
    return word ^ word >> 16


def _shift_xor(words: torch.Tensor, by: int) -> None:
    """`words ^= words >>> by` in place; torch shifts in the sign, so it is masked away."""
    words.bitwise_xor_((words >> by).bitwise_and_((1 << (32 - by)) - 1))


def hash_indices(indices: torch.Tensor, salt_word: int) -> torch.Tensor:
    """`mix32(index ^ salt)` of every index.

    Args:
        indices: int32, shape `(m,)`; an index beyond 2**31 stands as its 32-bit pattern. Not changed.
        salt_word: from `salt`.

    Returns:
        int32 patterns of the same shape.
    """
    words = indices ^ signed(salt_word)
    _shift_xor(words, 16)
    words.mul_(signed(_FIRST))
    _shift_xor(words, 13)
    words.mul_(signed(_SECOND))
    _shift_xor(words, 16)
    return words


def hash_range(first: int, like: torch.Tensor, salt_word: int) -> torch.Tensor:
    """`hash_indices` of the elements `first, first + 1, ...`, as many as `like` has, on its device."""
    indices = torch.arange(first, first + like.numel(), device=like.device)
    return hash_indices(indices.to(torch.int32), salt_word)


def tie_hash(indices: torch.Tensor, tensor_salt: int, parent_salt: int) -> torch.Tensor:
    """`mix32(index ^ tensor_salt) ^ parent_salt`: the order among equal magnitudes; int32 patterns, as given."""
    return hash_indices(indices, tensor_salt).bitwise_xor_(signed(parent_salt))


def tie_salts(tensor: str, parent: str) -> tuple[int, int]:
    """The tensor's and the parent's part of the tie-breaking hash."""
    return salt("tie", tensor), salt("tie", tensor, parent)


def at_most(words: torch.Tensor, bound: int) -> torch.Tensor:
    """Whether each pattern, read as an unsigned number, is at most `bound`; bool, same shape."""
    return (words ^ signed(0x80000000)) <= signed(bound ^ 0x80000000)


def keep_bound(probability: float) -> int | None:
    """The largest hash that a mask of this density keeps: about `probability * 2**32` of all words are at most it.

    Returns:
        The bound, or None when nothing is kept. Masks are nested: a larger density keeps what a smaller one keeps.
    """
    kept = min(int(probability * 2.0**32), 1 << 32)
    return kept - 1 if kept > 0 else None
