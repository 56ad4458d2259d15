"""Inline PTX as C++: every `asm` statement becomes a block of calls on registers (include/sim_ptx.h)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from .errors import SimulationError

_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile\b|__volatile__\b)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPERAND = re.compile(r'\s*"([^"]*)"\s*\((.*)\)\s*$', re.DOTALL)
_STATEMENT = re.compile(r"^(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)


def rewrite_instructions(cuda: str) -> str:
    """Replace every `asm` statement, as many lines as before.

    Raises:
        SimulationError: an instruction that is not known, with its line.
    """
    pieces, at = [], 0
    for found in _ASM.finditer(cuda):
        end = _closing(cuda, found.end() - 1)
        line = cuda.count("\n", 0, found.start()) + 1
        made = _block(cuda[found.end() : end], line)
        pieces += [cuda[at : found.start()], made, "\n" * cuda.count("\n", found.start(), end + 1)]
        at = end + 1
    return "".join([*pieces, cuda[at:]])


def _closing(text: str, opening: int) -> int:
    """Return where the bracket at `opening` closes; brackets in strings do not count."""
    depth, at = 0, opening
    while at < len(text):
        if text[at] == '"':
            found = _STRING.match(text, at)
            assert found is not None, "a string without an end"
            at = found.end()
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    raise SimulationError("simulation-source", "brackets do not close", "report it with the model")


def split(text: str, separator: str) -> list[str]:
    """Split at separators outside brackets and strings."""
    parts, start, at = [], 0, 0
    while at < len(text):
        if text[at] == '"':
            found = _STRING.match(text, at)
            at = found.end() if found else at + 1
        elif text[at] in "([{":
            at = _closing(text, at) + 1
        elif text[at] == separator:
            parts.append(text[start:at])
            at = start = at + 1
        else:
            at += 1
    return [*parts, text[start:]]


def _block(inside: str, line: int) -> str:
    sections = split(inside, ":")
    template = (
        "".join(_STRING.findall(sections[0])).replace("\\n", "\n").replace("\\t", " ").replace("%%", "%")
    )
    outputs, inputs = ([o for o in split(s, ",") if o.strip()] for s in (*sections[1:3], "", "")[:2])
    code, puts = [], []
    for index, operand in enumerate((*outputs, *inputs)):
        found = _OPERAND.match(operand)
        if found is None:
            raise _unknown(f"operand {operand.strip()}", line)
        given = "sim_poison()" if found[1].startswith("=") else f"sim_bits({found[2]})"
        code.append(f"sim_reg o{index} = {given};")
        puts += [f"sim_put({found[2]}, o{index});"] if index < len(outputs) else []
    code += [_statement(text, line) for text in _statements(template)]
    return "{ " + " ".join(" ".join([*code, *puts]).split("\n")) + " }"


def _statements(template: str) -> Iterator[str]:
    """Return instructions without the braces of blocks around them."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", template, flags=re.DOTALL).strip()
    while text:
        if text[0] in "{}":
            text = text[1:].lstrip()
            continue
        end = text.find(";")
        end = len(text) if end < 0 else end
        yield " ".join(text[:end].split())
        text = text[end + 1 :].lstrip()


def _statement(text: str, line: int) -> str:
    if text.startswith(".reg"):
        names = text.split(None, 2)[2].split(",")
        return " ".join(f"sim_reg {_name(name)} = 0;" for name in names)
    found = _STATEMENT.match(text)
    if found is None:
        raise _unknown(text, line)
    inverted, predicate, opcode, rest = found.groups()
    operands = [operand.strip() for operand in split(rest, ",")] if rest.strip() else []
    parts = opcode.split(".")
    for length in (3, 2, 1):
        rule = _RULES.get(".".join(parts[:length]))
        made = rule(parts, operands, line) if rule is not None else None
        if made is not None:
            return f"if ({inverted}{_value(predicate)}) {{ {made} }}" if predicate else made
    raise _unknown(text, line)


def _unknown(text: str, line: int) -> SimulationError:
    return SimulationError(
        "simulation-instruction",
        f"line {line}: `{text}` is not simulated",
        "add it to backends/gpu/simulate/instructions.py",
    )


def _name(text: str) -> str:
    return "r_" + re.sub(r"\W", "_", text.strip())


def _value(text: str) -> str:
    """Return an operand as an expression: %0, a named register, a number."""
    if re.fullmatch(r"%\d+", text):
        return f"o{text[1:]}"
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return f"0x{text[2:]}"
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return f"sim_reg({text})"
    if text == "%laneid":
        return "sim_reg(sim_lane())"
    return _name(text)


def _list(text: str) -> list[str]:
    return [_value(part.strip()) for part in text.strip("{} ").split(",")]


def _address(text: str) -> str:
    base, _, offset = text.strip("[] ").partition("+")
    return f"{_value(base.strip())} + ({offset or 0})"


# --- rules: parts of the opcode, operands, line -> C++, or None where the form is not known --------------
_Rule = Callable[[Sequence[str], Sequence[str], int], str | None]

_WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8}
_MINE = {"f16": "SIM_F16", "bf16": "SIM_BF16", "tf32": "SIM_TF32", "f32": "SIM_F32", "s32": "SIM_S32",
         "s8": "SIM_S8", "u8": "SIM_U8", "s4": "SIM_S4", "u4": "SIM_U4", "b1": "SIM_B1"}  # fmt: skip


def _expression(template: str) -> _Rule:
    """Assign an expression of the operands {0}, {1}, ... to the first one."""

    def rule(parts: Sequence[str], operands: Sequence[str], line: int) -> str:
        values = [_value(operand) for operand in operands]
        return f"{values[0]} = {template.format(*values)};"

    return rule


def _typed(floats: str, words: str) -> _Rule:
    """Choose by the type at the end: pairs of halves, float, or 32-bit words (`{t}`: signed or not)."""

    def rule(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
        values = [_value(operand) for operand in operands]
        kind = parts[-1]
        if kind in ("f16x2", "bf16x2"):
            operation = {"add": 0, "sub": 1, "mul": 2, "fma": 3}[parts[0]]
            half = "__half" if kind == "f16x2" else "__nv_bfloat16"
            last = values[3] if operation == 3 else "0"
            return f"{values[0]} = sim_pair<{half}>({operation}, {values[1]}, {values[2]}, {last});"
        if kind == "f32" and floats:
            singles = [f"sim_f32({value})" for value in values]
            return f"{values[0]} = sim_bits(sim_rounded({floats.format(*singles)}));"
        if kind in ("s32", "u32", "b32") and words:
            kind_of = "int" if kind == "s32" else "unsigned"
            cast = [f"{kind_of}({value})" for value in values]
            return f"{values[0]} = unsigned({words.format(*cast)});"
        return None

    return rule


def _async_copy(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
    if parts[2] == "commit_group":
        return "sim_copy_commit();"
    if parts[2] == "wait_group":
        return f"sim_copy_wait(int({_value(operands[0])}));"
    if parts[2] == "wait_all":
        return "sim_copy_commit(); sim_copy_wait(0);"
    if parts[2] not in ("ca", "cg") or not 3 <= len(operands) <= 4:
        return None
    size = _value(operands[2])
    source = _value(operands[3]) if len(operands) == 4 else size
    return f"sim_async({_address(operands[0])}, {_address(operands[1])}, int({size}), int({source}));"


def _memory(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
    """`ld` and `st`: one register or a vector of them."""
    width = re.fullmatch(r"[bsuf](8|16|32|64)", parts[-1])
    spaces = [part for part in parts if part in ("shared", "shared::cta", "global")]
    if width is None or len(spaces) != 1:
        return None
    load = parts[0] == "ld"
    registers, address = (operands[0], operands[1]) if load else (operands[1], operands[0])
    names = _list(registers)
    call = "sim_load_word" if load else "sim_store_word"
    shared = "false" if spaces[0] == "global" else "true"
    size = _WIDTHS[width[1]]
    return " ".join(
        f"{call}({name}, {shared}, {_address(address)}, {size}, {len(names)}, {index});"
        for index, name in enumerate(names)
    )


def _matrices(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
    if "m8n8" not in parts or parts[-1] != "b16":
        return None
    store = parts[0] == "stmatrix"
    registers, address = (operands[1], operands[0]) if store else (operands[0], operands[1])
    flags = f"{str(store).lower()}, {str('trans' in parts).lower()}"
    return f"sim_matrices({line}, {flags}, {_address(address)}, {', '.join(_list(registers))});"


def _product(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
    size = re.fullmatch(r"m(8|16)n8k(\d+)", parts[3])
    kinds = [part for part in parts[4:] if part in _MINE]
    if size is None or len(kinds) != 4 or "row" not in parts or parts[1] != "sync":
        return None
    d, a, b, c = (_list(operand) for operand in operands)
    bits = 1 if "xor" in parts else 2 if "and" in parts else 0
    saturated = str("satfinite" in parts).lower()
    fields = ", ".join([size[1], "8", size[2], *(_MINE[kind] for kind in kinds), str(bits), saturated])
    arrays = " ".join(
        f"sim_reg m_{name}[] = {{{', '.join(values)}}};"
        for name, values in zip("dabc", (d, a, b, c), strict=True)
    )
    back = " ".join(f"{name} = m_d[{index}];" for index, name in enumerate(d))
    call = f"SimProductCall call = {{{fields}, m_d, m_a, m_b, m_c}};"
    return f"{{ {arrays} {call} sim_warp(sim_product_run, &call, ~0u, {line}); {back} }}"


def _barrier(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
    if parts[1] == "warp":
        return f"sim_syncwarp({line}, unsigned({_value(operands[0])}));"
    if "sync" not in parts:
        return None
    count = _value(operands[1]) if len(operands) > 1 else "0"
    return f"sim_barrier(int({_value(operands[0])}), int({count}), {line});"


def _compare(parts: Sequence[str], operands: Sequence[str], line: int) -> str | None:
    sign = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.get(parts[1])
    cast = {"s32": "int", "u32": "unsigned", "b32": "unsigned", "s64": "int64_t", "u64": "sim_reg",
            "f32": "sim_f32"}.get(parts[-1])  # fmt: skip
    if sign is None or cast is None:
        return None
    p, a, b = (_value(operand) for operand in operands)
    return f"{p} = {cast}({a}) {sign} {cast}({b});"


def _dot4(parts: Sequence[str], operands: Sequence[str], line: int) -> str:
    kinds = ["uint8_t" if part == "u32" else "int8_t" for part in parts[1:3]]
    d, a, b, c = (_value(operand) for operand in operands)
    return f"{d} = unsigned(sim_dot4<{', '.join(kinds)}>(unsigned({a}), unsigned({b}), int({c})));"


def _nothing(parts: Sequence[str], operands: Sequence[str], line: int) -> str:
    return ";"


_RULES: dict[str, _Rule] = {
    "add": _typed("{1} + {2}", "{1} + {2}"), "sub": _typed("{1} - {2}", "{1} - {2}"),
    "mul": _typed("{1} * {2}", "{1} * {2}"), "mad": _typed("", "{1} * {2} + {3}"),
    "fma": _typed("fmaf({1}, {2}, {3})", ""), "ex2": _typed("exp2f({1})", ""),
    "lg2": _typed("log2f({1})", ""), "rcp": _typed("1.0f / {1}", ""), "sqrt": _typed("sqrtf({1})", ""),
    "rsqrt": _typed("1.0f / sqrtf({1})", ""),
    "tanh": _typed("tanhf({1})", ""), "max": _typed("fmaxf({1}, {2})", "max({1}, {2})"),
    "min": _typed("fminf({1}, {2})", "min({1}, {2})"),
    "and": _expression("{1} & {2}"), "or": _expression("{1} | {2}"), "xor": _expression("{1} ^ {2}"),
    "not": _typed("", "~{1}"), "shl": _typed("", "{2} > 31 ? 0 : {1} << {2}"),
    "shr": _typed("", "int64_t({1}) >> ({2} > 32 ? 32 : {2})"), "mov": _expression("{1}"),
    "selp": _expression("{3} ? {1} : {2}"), "setp": _compare,
    "lop3": _expression("sim_lop3(unsigned({1}), unsigned({2}), unsigned({3}), unsigned({4}))"),
    "prmt": _expression("__byte_perm(unsigned({1}), unsigned({2}), unsigned({3}))"), "dp4a": _dot4,
    "cvta.to.shared": _expression("sim_shared_address((void *)({1}))"),
    "cvt.u32.u64": _expression("unsigned({1})"), "cvt.u64.u32": _expression("unsigned({1})"),
    "cvt.rna.tf32": _expression("sim_tf32({1})"),
    "cvt.rn.f16x2": _expression("sim_bits(__floats2half2_rn(sim_f32({2}), sim_f32({1})))"),
    "cvt.rn.bf16x2": _expression("sim_bits(__floats2bfloat162_rn(sim_f32({2}), sim_f32({1})))"),
    "cp.async": _async_copy, "ld": _memory, "st": _memory, "ldmatrix": _matrices, "stmatrix": _matrices,
    "mma": _product, "bar": _barrier, "barrier": _barrier, "membar": _nothing, "fence": _nothing,
    "prefetch": _nothing,
}  # fmt: skip
