"""The fused kernels in C: compiled once by the machine's C compiler, kept in one folder, called through ctypes.

Why C and not a graph compiler: one variant takes 0.2 s instead of 10 s, has no shape guards, costs microseconds per
call on small tensors, and switching off floating-point contraction is one flag. Each variant is one small shared
object named by the digest of source, flags and processor, so that a folder may be shared by different machines.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.errors import EvomergeError
from evomerge.merging import kernel_files
from evomerge.merging.fused_compiled import FusedVariant, bind, call_fused, fused_variant
from evomerge.merging.fused_settings import FusedSetting
from evomerge.merging.settings import (
    DENSE_RAMP,
    DROP_NONE,
    KEEP_ALL,
    GtaParent,
    LinearSetting,
    Setting,
    VectorSetting,
)
from evomerge.ownership import private_folder

TYPES: Final = {torch.bfloat16: 16, torch.float16: 17, torch.float32: 32}
BINS: Final = 1 << 15
_KINDS: Final = {
    "linear": 1,
    "delta": 2,
    "gta": 3,
    "histogram": 4,
    "collect": 5,
    "ranks": 6,
    "lower_sums": 7,
    "vectors": 8,
    "delta_vectors": 9,
}
_FLAGS: Final = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_TIMEOUT_S: Final = 60


class CompilerError(EvomergeError):
    """The C compiler is missing or fails; the eager kernels give the same bits without it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled function: the macros of kernels.c.

    Attributes:
        kind: a key of `_KINDS`.
        dtype: 16 bfloat16, 17 float16, 32 float32: of the output.
        n: number of inputs; 1 for what measures one delta.
        trim: some input has a low cut.
        cap: some input has a high cut.
        mask: 1 when some input has a random mask, 2 when one has a mask by rank.
        elect: signs are elected.
        norm: sums become means.
        mixed: the element types of base and inputs when they are not all the output's, else empty; a kernel that has
            no base takes the output's type for it.
    """

    kind: str
    dtype: int
    n: int = 1
    trim: bool = False
    cap: bool = False
    mask: int = 0
    elect: bool = False
    norm: bool = False
    mixed: tuple[int, ...] = ()

    sources: ClassVar[tuple[str, ...]] = ("kernels.c",)
    """Files of which the translation unit is made."""

    def macros(self) -> list[str]:
        """The `-D` flags."""
        kind, *rest, mixed = astuple(self)
        names = ("TYPE", "N", "TRIM", "CAP", "MASK", "ELECT", "NORM")
        flags = [f"-DKIND={_KINDS[kind]}", *(f"-D{k}={int(v)}" for k, v in zip(names, rest, strict=True))]
        return [*flags, f"-DMIXED={','.join(str(t) for t in (self.dtype, *mixed))}"] if mixed else flags


AnyVariant = Variant | FusedVariant


def mixed_types(out: int, base: int | None, inputs: Sequence[int]) -> tuple[int, ...]:
    """`Variant.mixed` for these element types."""
    types = (out if base is None else base, *inputs)
    return () if all(t == out for t in types) else types


def variant_of(setting: Setting, dtype: int, mixed: tuple[int, ...] = ()) -> AnyVariant:
    """The variant that runs a setting and writes elements of `dtype`; `mixed` is that of the inputs that take part."""
    n = len(setting.inputs)
    if isinstance(setting, LinearSetting):
        return Variant("delta" if setting.deltas else "linear", dtype, n, mixed=mixed)
    if isinstance(setting, VectorSetting):
        return Variant("delta_vectors" if setting.deltas else "vectors", dtype, n, mixed=mixed)
    if isinstance(setting, FusedSetting):
        return fused_variant(setting, dtype, mixed)
    mask = 2 if setting.ranked else int(setting.masked)
    return Variant("gta", dtype, n, setting.trimmed, setting.capped, mask, setting.elect, setting.normalize, mixed)


def find_compiler() -> str | None:
    """The path of a C compiler: `$CC` when it is one executable, else cc, gcc or clang; None without any."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    return None


def build(variant: AnyVariant, folder: Path) -> Path:
    """The shared object of a variant, compiled when the folder has none for this kind of machine (0.2 s).

    Several processes may do so at once, on several machines: each writes a file of its own and renames it.

    Raises:
        CompilerError: without a compiler, when it fails, or when others may write to the folder.
    """
    source = "".join(files("evomerge.merging").joinpath(name).read_text() for name in variant.sources)
    key = kernel_files.machine_key([source, *_FLAGS, *variant.macros()])
    try:
        foreign = private_folder(folder)
        if foreign is not None:
            raise _failed(f"{foreign}; what is loaded from there would be code of others")
        return kernel_files.find(folder, key) or _compile(variant, source, folder, key)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{folder}: {error}") from error


def _compile(variant: AnyVariant, source: str, folder: Path, key: str) -> Path:
    compiler = find_compiler()
    if compiler is None:
        raise _failed("no cc, gcc or clang in PATH")
    temporary = folder / f".{key}.{socket.gethostname()}.{os.getpid()}.tmp"
    command = [compiler, *_FLAGS, *variant.macros(), "-x", "c", "-", "-o", str(temporary)]
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise _failed(f"{compiler}: {done.stderr.strip()[-300:]}")
        return kernel_files.keep(temporary, folder, key)
    finally:
        temporary.unlink(missing_ok=True)


def _failed(got: str) -> CompilerError:
    return CompilerError(
        "The merge kernels cannot be compiled.",
        got=got,
        allowed="a C compiler such as gcc 12 or clang 15",
        fix="install a compiler, and keep the cache folder to yourself (mode 700); or run without: the eager kernels "
        "give the same bits, more slowly.",
    )


class _Parent(ctypes.Structure):
    """`struct parent` of kernels.c."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("gain", "weight", "keep", "keep_step", "divisor", "divisor_step")),
        *((name, ctypes.c_uint32) for name in ("low", "low_bound", "high", "high_bound")),
        *((name, ctypes.c_uint32) for name in ("tie_salt", "mask_bound", "mask_salt")),
    ]


_POINTER: Final = ctypes.c_void_p
_COUNT: Final = ctypes.c_int64
_LINEAR: Final = ([_POINTER] * 4 + [_COUNT], ctypes.c_int)
_VECTORS: Final = ([_POINTER] * 3 + [_COUNT, _COUNT, ctypes.c_int, _POINTER, _COUNT, _COUNT], ctypes.c_int)
_GTA: Final = (
    [_POINTER] * 4 + [ctypes.c_uint32, ctypes.c_float, _POINTER, _COUNT, _COUNT],
    ctypes.c_int,
)
_SIGNATURES: Final[Mapping[str, tuple[list[Any], Any]]] = {
    "linear": _LINEAR,
    "delta": _LINEAR,
    "vectors": _VECTORS,
    "delta_vectors": _VECTORS,
    "gta": _GTA,
    "histogram": ([_POINTER, _POINTER, _COUNT, _POINTER, _POINTER], None),
    "collect": ([_POINTER, _POINTER, _COUNT, ctypes.c_uint32, _POINTER, _POINTER], _COUNT),
    "ranks": ([_POINTER, _POINTER, _COUNT, _COUNT, _POINTER, _POINTER], None),
    "lower_sums": ([_POINTER, _POINTER, _COUNT, _POINTER], None),
}
_NAMES: Final = {"histogram": "histogram", "collect": "collect", "ranks": "row_ranks", "lower_sums": "lower_sums"}


def load(variant: AnyVariant, folder: Path) -> Any:
    """The compiled function of a variant, ready to be called with pointers.

    Raises:
        CompilerError: when it cannot be compiled or loaded.
    """
    library = build(variant, folder)
    try:
        opened = ctypes.CDLL(str(library))
    except OSError as error:
        raise _failed(f"{library}: {error}") from error
    if isinstance(variant, FusedVariant):
        return bind(opened)
    function = getattr(opened, _NAMES.get(variant.kind, "merge"))
    function.argtypes, function.restype = _SIGNATURES[variant.kind]
    return function


def call_merge(
    function: Any,
    setting: Setting,
    base: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
    out: torch.Tensor,
    *,
    ranks: Mapping[int, torch.Tensor],
    first: int,
) -> bool:
    """Run a compiled merge on flat contiguous tensors; whether every entry of `out` is finite."""
    if isinstance(setting, FusedSetting):
        if base is None:
            raise ValueError("a fused kernel needs a base")
        return call_fused(function, setting, base, inputs, out, first=first)
    pointers = _pointers(inputs)
    origin = base.data_ptr() if base is not None else None
    target, n = out.data_ptr(), out.numel()
    if isinstance(setting, LinearSetting):
        coefficients = (ctypes.c_float * len(inputs))(*setting.coefficients)
        return bool(function(origin, pointers, coefficients, target, n))
    if isinstance(setting, VectorSetting):
        size = (setting.vectors, setting.length, int(setting.by == "columns"))
        return bool(function(origin, pointers, setting.table, *size, target, first, n))
    parents = (_Parent * len(inputs))(*(_parent(p) for p in setting.parents))
    # an input without mask reads some ranks too, and its ramp does not depend on them
    chosen = _pointers([ranks.get(i, ranks[setting.ranked[0]]) for i in setting.inputs]) if setting.ranked else None
    return bool(function(origin, pointers, chosen, parents, setting.tie_salt, setting.scale, target, first, n))


def _pointers(tensors: Sequence[torch.Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def _parent(parent: GtaParent) -> _Parent:
    low, high = parent.low or KEEP_ALL, parent.high or DROP_NONE
    ramp = parent.ramp or DENSE_RAMP
    mask = 0xFFFFFFFF if parent.mask_bound is None else parent.mask_bound
    reals = (parent.gain, parent.weight, ramp.keep, ramp.keep_step, ramp.divisor, ramp.divisor_step)
    cuts = (low.bits, low.bound, high.bits, high.bound)
    return _Parent(*reals, *cuts, parent.tie_salt, mask, parent.mask_salt)


def call_lower_sums(function: Any, base: torch.Tensor, x: torch.Tensor) -> npt.NDArray[np.int64]:
    """Sums of the lower 16 bits of the patterns of `|x - base|` by its upper 16 bits, shape `(32768,)`."""
    sums = np.empty(BINS, np.int64)
    function(base.data_ptr(), x.data_ptr(), x.numel(), sums.ctypes.data)
    return sums


def call_ranks(function: Any, base: torch.Tensor, x: torch.Tensor, length: int) -> torch.Tensor:
    """See `Kernels.ranks`."""
    out, pairs = torch.empty(x.numel(), dtype=torch.uint8), np.empty(2 * length, np.uint64)
    function(base.data_ptr(), x.data_ptr(), x.numel() // length, length, out.data_ptr(), pairs.ctypes.data)
    return out


def call_histogram(function: Any, base: torch.Tensor, x: torch.Tensor) -> npt.NDArray[np.int64]:
    """Counts of `|x - base|` by the upper 16 bits of its fp32 pattern, shape `(32768,)`."""
    counts, scratch = np.empty(BINS, np.int64), np.empty(4 * BINS, np.uint32)
    function(base.data_ptr(), x.data_ptr(), x.numel(), counts.ctypes.data, scratch.ctypes.data)
    return counts


def call_collect(
    function: Any, base: torch.Tensor, x: torch.Tensor, bin_index: int, size: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """Indices and lower 16 pattern bits of the entries of one bin, at most `size`, in order."""
    indices, low = np.empty(size, np.uint32), np.empty(size, np.uint16)
    found = function(base.data_ptr(), x.data_ptr(), x.numel(), bin_index, indices.ctypes.data, low.ctypes.data)
    return indices[:found], low[:found]
