"""The memory traffic of a compiled program by its text: bytes per instruction, by kind, and what is large."""

import collections
import dataclasses
import math
import re

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16}
_BITS |= {"s16": 16, "u16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "opt-barrier")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)')
_CALLED = re.compile(r"(?:calls|body|to_apply|condition)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """A top-level instruction: one kernel, or one call of a library."""

    name: str
    kind: str  # the operation; of a custom call, its target
    shape: str  # of the result
    read_bytes: int
    written_bytes: int
    num_fused: int = 0  # instructions inside a fusion
    where: str = ""  # the JAX operation that it comes from

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read_bytes + self.written_bytes


def array_bytes(shape: str) -> int:
    """Bytes of the arrays of an HLO shape, such as 'bf16[2,3]{1,0}' or a tuple of shapes.

    Workspaces of libraries, which are arrays of s8 in a tuple, do not count.
    """
    arrays = [(dtype, dims) for dtype, dims in _SHAPE.findall(shape) if dtype in _BITS]
    if shape.startswith("("):
        arrays = [(dtype, dims) for dtype, dims in arrays if dtype != "s8"]
    total = 0
    for dtype, dims in arrays:
        bits = _BITS[dtype]
        for dim in filter(None, dims.split(",")):
            bits *= int(dim)
        total += bits // 8
    return total


def float32_bytes(shape: str) -> int:
    """Bytes of the largest float32 array of an HLO shape; 0 if it has none."""
    return max((array_bytes(array) for array in re.findall(r"f32\[[\d,]*\]", shape)), default=0)


def array_shapes(text: str, *, axis: int = 1) -> list[str]:
    """The different shapes of arrays in a program, such as 'bf16[2,3]', those of most bytes first.

    Only arrays whose number of elements is a multiple of axis^2: with a prime that divides the rows of a
    device and no other axis, those that have the axis of the batch twice, also if it is divided or joined
    with others. Values inside fusions, which are never in memory, are among them.
    """
    shapes = {f"{dtype}[{dims}]" for dtype, dims in _SHAPE.findall(text) if dtype in _BITS and dims}
    found = [shape for shape in shapes if num_elements(shape) % axis**2 == 0]
    return sorted(found, key=lambda shape: (-array_bytes(shape), shape))


def num_elements(shape: str) -> int:
    """Elements of the (first) array of an HLO shape, such as 'bf16[2,3]'."""
    return math.prod(_sizes(shape))


def computations(text: str) -> dict[str, list[str]]:
    """{name: lines of the body} of all computations; that of the entry is 'ENTRY'."""
    found: dict[str, list[str]] = {}
    body: list[str] | None = None
    for line in text.splitlines():
        if body is None:
            head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if head:
                body = found["ENTRY" if head[1] else head[2]] = []
        elif line.startswith("}"):
            body = None
        else:
            body.append(line)
    return found


def instructions(text: str) -> list[Instruction]:
    """The instructions of the entry computation that read or write memory.

    The body of a loop counts once. An operand counts in full, also where only a slice of it is read, so the
    bytes are an upper estimate of the traffic without any cache.
    """
    bodies = computations(text)
    found: list[Instruction] = []
    todo, seen = ["ENTRY"], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in bodies:
            continue
        seen.add(name)
        parsed = [match for line in bodies[name] if (match := _INSTRUCTION.match(line))]
        shapes = {match[1]: match[2] for match in parsed}
        for match in parsed:
            operation, rest = match[3], match[4]
            if operation in _FREE:
                continue
            if operation in ("while", "call", "conditional"):
                todo += _CALLED.findall(rest)
                continue
            found.append(_instruction(match, shapes, bodies))
    return found


def _instruction(match: re.Match[str], shapes: dict[str, str], bodies: dict[str, list[str]]) -> Instruction:
    name, shape, operation, rest = match.groups()
    operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
    called = _CALLED.search(rest)
    target = re.search(r'custom_call_target="([^"]+)"', rest)
    where = re.search(r'op_name="([^"]*)"', rest)
    return Instruction(
        name=name,
        kind=target[1] if target else operation,
        shape=shape,
        read_bytes=sum(array_bytes(shapes[operand]) for operand in operands if operand in shapes),
        written_bytes=array_bytes(shape),
        num_fused=len(bodies.get(called[1], [])) if operation == "fusion" and called else 0,
        where=where[1] if where else "",
    )


def product_flops(text: str) -> int:
    """FLOPs of the matrix products, convolutions and cuDNN attention in a program; a loop's body counts once.

    2 for each multiplication and addition. Attention counts two products forward and four backward, without
    those that its kernel computes again. Not for TPUs, where products of batches are written as convolutions
    with padding.
    """
    total = 0
    for body in computations(text).values():
        parsed = [match for line in body if (match := _INSTRUCTION.match(line))]
        shapes = {match[1]: match[2] for match in parsed}
        total += sum(_product_flops(match, shapes) for match in parsed)
    return total


def _product_flops(match: re.Match[str], shapes: dict[str, str]) -> int:
    _, shape, operation, rest = match.groups()
    target = re.search(r'custom_call_target="__cu(?:blas|dnn)\$(\w+)', rest)
    kind = target[1] if target else operation
    if not re.match("dot$|convolution$|lt$|gemm$|conv[A-Z]|fmha", kind):
        return 0
    lhs, rhs = (_sizes(shapes[operand]) for operand in re.findall(r"%([\w.\-]+)", rest)[:2])
    if kind.startswith("fmha"):  # BxTxNxK
        return (8 if kind.endswith("Backward") else 4) * math.prod(lhs) * rhs[1]
    if labels := re.search(r"dim_labels=\w+_(\w+)->", rest):
        return 2 * math.prod(_sizes(shape)) * math.prod(rhs) // rhs[labels[1].index("o")]
    axes = _CONTRACTED.findall(rest)[0]
    contracted = [int(axis) for axis in re.findall(r"\d+", axes)]
    return 2 * math.prod(_sizes(shape)) * math.prod(lhs[axis] for axis in contracted)


def _sizes(shape: str) -> list[int]:
    """The sizes of the axes of the (first) array."""
    return [int(size) for size in _SHAPE.search(shape)[2].split(",") if size]


def by_kind(found: list[Instruction]) -> dict[str, tuple[int, int]]:
    """{kind: (number, bytes)}, most bytes first."""
    totals: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for one in found:
        totals[one.kind][0] += 1
        totals[one.kind][1] += one.bytes
    return {kind: (n, b) for kind, (n, b) in sorted(totals.items(), key=lambda item: -item[1][1])}
