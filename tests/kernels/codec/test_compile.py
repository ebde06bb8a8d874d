"""The kernels compile for GPUs, which needs none."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from logitstore.device import decode_kernels, encode_kernels, group_kernels
from logitstore.kernels import one_pass_kernels

def build(kernel, types, options={"num_warps": 1}, **constants):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    assert compile(source, target=target, options=options).asm["cubin"]

types = {name: "*i32" for name in ("words", "table", "quotients", "status", "out")}
types |= {name: "i32" for name in ("rows", "stride", "slots", "bound")} | {"places": "*i64", "offsets": "*i64"}
build(decode_kernels.block_places, types, TILE=256)
build(decode_kernels.entries_of_rows, types, IS_IDS=True, IS_FLOAT=False, BITS=32, UNUSED=-1, FLAT=False, TILE=64)
build(
    decode_kernels.entries_of_rows, types | {"out": "*i16"},
    IS_IDS=False, IS_FLOAT=True, BITS=16, UNUSED=-1024, FLAT=True, TILE=64,
)
groups = {name: "*i32" for name in ("table", "counts", "out", "status", "entries", "contexts", "parts", "levels")}
groups |= {name: "*i32" for name in ("gap_tables", "first_nibble", "listed", "order")}
groups |= {"words": "*i16", "nibble_tables": "*i16", "offsets": "*i64", "bins": "*i64"}
groups |= {name: "i32" for name in ("groups", "first", "past", "slots", "classes", "vocab_size")}
groups |= {name: "i32" for name in ("level_count", "plain_symbols")}
build(group_kernels.ids_of_groups, groups, FLAT=False, LANES=32, TURNS=8)
for bits, out, flat in ((16, "*i16", True), (8, "*u8", False)):
    build(
        group_kernels.values_of_groups, groups | {"out": out},
        BITS=bits, IS_FLOAT=bits == 16, FLAT=flat, LANES=32, TURNS=8,
    )
types |= {name: "*i64" for name in ("places", "quotients", "lengths", "starts")}
types |= {name: "*i32" for name in ("residuals", "counts", "parameters", "bases")}
for kernel in (encode_kernels.best_parameters, encode_kernels.row_lengths, encode_kernels.write_rows):
    build(kernel, types, BLOCK=16, TILE=8)

types = {name: "*fp32" for name in ("label_logprobs", "scales", "held", "sums", "factor")}
types |= {name: "i32" for name in ("width", "rows", "slots", "words", "row_stride", "gradient_stride")}
types |= {"logits": "*bf16", "gradient": "*bf16", "numbers": "*bf16", "logprobs": "*fp16", "labels": "*i64"}
types |= {"counted": "*i8", "ids": "*i32", "marks": "*i32"}
build(
    one_pass_kernels.learn_rows, types, {"num_warps": 16, "maxnreg": 64}, TILE=4096, SLOTS=1024, MASKED=True,
    KEPT=True, RENORM=True, TAIL=True, LABEL=True, WEIGHT=1,
)
build(one_pass_kernels.multiply_unless_one, types, TILE=256)
"""


@pytest.mark.parametrize("capability", [90])
def test_kernels_compile(capability: int, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(capability)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
