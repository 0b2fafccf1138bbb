"""`calculate_output` of a multi grader: arithmetic over the results of its graders."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_MOST_CHARACTERS = 1000
_DEEPEST = 50
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_SEVERAL: Mapping[str, Callable[..., float]] = {"min": min, "max": max}


class FormulaError(Exception):
    """The formula has no finite value for these results."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that was read.

    Attributes:
        names: the graders whose results it uses.
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr = field(repr=False, compare=False)

    def value(self, results: Mapping[str, float]) -> float:
        """The formula with the graders' results; all arithmetic is that of 64-bit floats.

        Raises:
            FormulaError: division by zero, a root or logarithm that is not real, overflow.
        """
        try:
            out = _value(self._tree, results)
        except (ArithmeticError, ValueError) as error:
            raise FormulaError(f"{self.text}: {error}") from None
        if not math.isfinite(out):
            raise FormulaError(f"{self.text}: the value is {out}")
        return out


def parse_formula(text: object) -> Formula:
    """The formula that `text` is: + - * / ^ (or **), brackets, numbers, names and functions.

    Functions are min and max of two or more, and abs, floor, ceil, exp, sqrt and log (natural) of
    one value.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(text, str):
        raise ValueError("should be a string")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters; {_MOST_CHARACTERS:,} are the most")
    try:
        tree = ast.parse(text.replace("^", "**").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("is not a formula") from None
    names: set[str] = set()
    _check(tree, names, 0)
    return Formula(text, frozenset(names), tree)


def _check(node: ast.expr, names: set[str], depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"is nested more than {_DEEPEST} deep")
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            _number(node)
        case ast.Name():
            names.add(node.id)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub()):
            _check(node.operand, names, depth + 1)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            _check(node.left, names, depth + 1)
            _check(node.right, names, depth + 1)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if _takes(name, len(node.args)):
            for argument in node.args:
                _check(argument, names, depth + 1)
        case _:
            raise ValueError(
                "takes + - * / ^, brackets, numbers, names of graders,"
                f" {' and '.join(_SEVERAL)} of two or more values, {', '.join(_ONE)} of one"
            )


def _takes(function: str, arguments: int) -> bool:
    return (function in _ONE and arguments == 1) or (function in _SEVERAL and arguments >= 2)


def _number(node: ast.Constant) -> float:
    try:
        return float(node.value)  # pyright: ignore[reportArgumentType]
    except OverflowError:
        raise ValueError("has a number that is too large") from None


def _value(node: ast.expr, results: Mapping[str, float]) -> float:
    match node:
        case ast.Constant():
            return _number(node)
        case ast.Name():
            return results[node.id]
        case ast.UnaryOp():
            value = _value(node.operand, results)
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp():
            combine = _OPERATORS[type(node.op)]
            return combine(_value(node.left, results), _value(node.right, results))
        case ast.Call(func=ast.Name(id=name)):
            function = _ONE.get(name) or _SEVERAL[name]
            return float(function(*(_value(argument, results) for argument in node.args)))
        case _:
            raise AssertionError("the formula was checked when it was read")
