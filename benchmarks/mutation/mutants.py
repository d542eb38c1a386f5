"""Small changes to Python functions, one at a time: signs, comparisons, masks, constants, offsets, terms, arguments."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
ARITHMETIC |= {ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OTHER_NAMES = {"expm1": "exp", "exp": "expm1", "rsqrt": "sqrt", "log_softmax": "softmax", "float64": "float32"}
for one, other in [
    ("min", "max"),
    ("minimum", "maximum"),
    ("sum", "mean"),
    ("masked_sum", "masked_mean"),
    ("any", "all"),
    ("logsigmoid", "sigmoid"),
    ("zeros_like", "ones_like"),
]:
    OTHER_NAMES |= {one: other, other: one}
SYMMETRIC = {"minimum", "maximum", "min", "max"}
MASKS = {"mask", "counts"}
LIBRARIES = {"torch", "np", "functional"}


class Mutant(NamedTuple):
    """A change of one expression or statement.

    Attributes:
        module, function: what is changed.
        name: module, function, what was there and what is there now; `#2` for the second like it. Lines may move.
        source: the module with the change.
    """

    module: str
    function: str
    name: str
    source: bytes


def mutants(source: bytes, module: str) -> list[Mutant]:
    """Every change of every function of a module, in the order of the text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for function, node in _functions(ast.parse(source)):
        for part in _inside(node):
            start = starts[part.lineno - 1] + part.col_offset
            assert part.end_lineno and part.end_col_offset  # parsed from text
            end = starts[part.end_lineno - 1] + part.end_col_offset
            before = " ".join(source[start:end].decode().split())
            for new in dict.fromkeys(map(ast.unparse, _alternatives(part))):
                if new == ast.unparse(part):
                    continue
                name = f"{module}.{function}: {before} -> {new}"
                seen[name] += 1
                again = f" #{seen[name]}" if seen[name] > 1 else ""
                text = new if isinstance(part, ast.stmt) else f"({new})"
                found.append(Mutant(module, function, name + again, source[:start] + text.encode() + source[end:]))
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        owner, members = (f"{node.name}.", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        for member in members:
            if isinstance(member, ast.FunctionDef):
                yield owner + member.name, member


def _inside(function: ast.FunctionDef) -> Iterator[ast.expr | ast.stmt]:
    """Expressions and statements of a function: its defaults and its body, without annotations and messages."""
    parts: list[ast.AST] = [*function.args.defaults, *filter(None, function.args.kw_defaults), *function.body]
    while parts:
        part = parts.pop(0)
        if isinstance(part, ast.JoinedStr):
            continue
        if isinstance(part, ast.expr | ast.stmt):
            yield part
        children = [] if _is_whole(part) else list(ast.iter_child_nodes(part))
        if isinstance(part, ast.FunctionDef):  # one inside another
            children = [*part.args.defaults, *part.body]
        elif isinstance(part, ast.AnnAssign):
            children = [part.value] if part.value else []
        elif isinstance(part, ast.Raise):
            children = []
        parts = children + parts


def _is_whole(node: ast.AST) -> bool:
    """Whether nothing inside a node is changed: a negative number, or a mask that is only asked for its shape."""
    match node:
        case ast.UnaryOp(ast.USub(), ast.Constant()):
            return True
        case ast.Attribute(ast.Name(name), "shape" | "device"):
            return name in MASKS
    return False


def _alternatives(node: ast.expr | ast.stmt) -> Iterator[ast.AST]:
    """What could have stood in place of a node."""
    yield from _other_operators(node)
    yield from _other_values(node)
    match node:
        case ast.Call():
            yield from _other_calls(node)
        case ast.Subscript(value, ast.Slice(lower, upper, step), ast.Load()):
            for bound in (lower, upper):
                if bound is not None and not isinstance(bound, ast.Constant):
                    moved = ast.BinOp(bound, ast.Add(), ast.Constant(1))
                    limits = (moved if bound is lower else lower, moved if bound is upper else upper)
                    yield ast.Subscript(value, ast.Slice(*limits, step), ast.Load())
        case ast.Raise() | ast.Expr(ast.Call()):
            yield ast.Pass()


def _other_operators(node: ast.AST) -> Iterator[ast.AST]:
    """Another operator, operands swapped, a term or a sign left out."""
    match node:
        case ast.BinOp(left, op, right):
            if type(op) in ARITHMETIC:
                yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
            if isinstance(op, ast.Sub | ast.Div | ast.Pow):
                yield ast.BinOp(right, op, left)
            yield from (left, right)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            yield from (ast.Constant(value), ast.Constant(1 - value), ast.Constant(-1 - value))
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield operand
        case ast.Compare(left, ops, comparators):
            for place, compared in enumerate(ops):
                for other in COMPARISONS[type(compared)]:
                    yield ast.Compare(left, [*ops[:place], other(), *ops[place + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
        case ast.AugAssign(target, op, value):
            if type(op) in ARITHMETIC:
                yield ast.AugAssign(target, ARITHMETIC[type(op)](), value)
            yield ast.Pass()


def _other_values(node: ast.AST) -> Iterator[ast.AST]:
    """Another number, another name, a mask the wrong way round, the other branch."""
    match node:
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Name(name, ast.Load()) if name in MASKS:
            yield ast.UnaryOp(ast.Invert(), node)
        case ast.Attribute(value, name, ast.Load()) if name in OTHER_NAMES:
            yield ast.Attribute(value, OTHER_NAMES[name], ast.Load())
        case ast.Name(name, ast.Load()) if name in OTHER_NAMES:
            yield ast.Name(OTHER_NAMES[name], ast.Load())


def _other_calls(call: ast.Call) -> Iterator[ast.AST]:
    """Neighbouring arguments swapped, an option left out, the call itself left out."""
    args, keywords = call.args, call.keywords
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
    if name not in SYMMETRIC and not any(isinstance(arg, ast.Starred) for arg in args):
        for i in range(len(args) - 1):
            yield ast.Call(call.func, [*args[:i], args[i + 1], args[i], *args[i + 2 :]], keywords)
    for i in range(len(keywords)):
        yield ast.Call(call.func, args, keywords[:i] + keywords[i + 1 :])
    match call.func:
        case ast.Attribute(ast.Name(name), _) if name in LIBRARIES:
            yield from args[:1]
        case ast.Attribute(receiver, _):
            yield receiver
        case ast.Name(name) if name[0].islower() and not isinstance(args[0], ast.Starred | ast.GeneratorExp):
            yield from args[:1]
