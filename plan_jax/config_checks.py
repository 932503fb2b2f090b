"""What the value of a setting may be (`plan_jax.config`)."""

import dataclasses
import math
import re
import typing

from plan_jax.errors import InputError

FIELD_CHOICES = "choices"
# Every other whole number is a size.
MAY_BE_ZERO = ("seed", "workers", "prefetch", "rounds", "warmup_steps", "pool")
MAY_BE_ZERO += ("devices", "skip_limit", "validate_every", "pictures")
# Numbers from 0 to 1.
SHARES = ("early_share", "rounds_from", "side_taps", "history", "word_keep", "dropout", "crop", "scale")
SHARES += ("ignore_iou", "nms_iou", "lowest_score", "compat_score", "small_fraction")
MOST = dict.fromkeys(SHARES, 1.0) | {"rotation": 45.0}  # further round, left would become right
Source = tuple[str, float]  # a folder that build wrote, and how often it is drawn from, relative to the others
Rule = tuple[str, float, float]  # pattern of a parameter's path, factor of its learning rate, of its weight decay


def choice(default: str, *choices: str):
    """A field with a few possible values."""
    return dataclasses.field(default=default, metadata={FIELD_CHOICES: choices})


def checked(field: dataclasses.Field, value: typing.Any, where: str) -> typing.Any:
    """The value, of the field's type, among its choices and in its range; else an InputError that names `where`."""
    choices = field.metadata.get(FIELD_CHOICES)
    if choices and value not in choices:
        raise InputError(f"{where} must be one of {', '.join(choices)}, got {value!r}; see plan_jax/config.py")
    wanted = type(field.default)
    if isinstance(value, list):
        value = tuple(value)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InputError(f"{where} must be a {wanted.__name__}, got {value!r}; see plan_jax/config.py")
    if field.name == "prompt" and value.count("{}") != 1:
        raise InputError(
            f"{where} must hold {{}} once, where the phrase goes, got {value!r}; for example 'there is {{}}.'"
        )
    if field.name == "rules":
        return tuple(_checked_rule(rule, where) for rule in value)
    if field.name == "mixture":
        return tuple(_checked_source(source, where) for source in value)
    _check_range(field.name, value, where)
    return value


def _checked_rule(rule: typing.Any, where: str) -> Rule:
    """A rule whose pattern compiles and whose two factors are finite and at least 0."""
    if not isinstance(rule, list | tuple) or len(rule) != 3 or type(rule[0]) is not str:
        raise InputError(
            f"{where} must hold rules of a pattern, a learning-rate factor and a weight-decay factor, got {rule!r}; "
            "write them as (('text_encoder/', 0.1, 1.0),), best in the config file"
        )
    pattern, *factors = rule
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise InputError(
            f"{where} must have regular expressions as patterns, got {pattern!r}: {error}; correct it"
        ) from error
    if any(type(each) not in (int, float) or not math.isfinite(each) or each < 0 for each in factors):
        raise InputError(
            f"{where} must have factors that are finite and at least 0, got {tuple(rule)!r}; change it, 0 freezes"
        )
    return pattern, float(factors[0]), float(factors[1])


def _checked_source(source: typing.Any, where: str) -> Source:
    """A folder and a weight that is finite and above 0."""
    pair = isinstance(source, list | tuple) and len(source) == 2 and type(source[0]) is str and source[0]
    if not pair or type(source[1]) not in (int, float) or not math.isfinite(source[1]) or source[1] <= 0:
        raise InputError(
            f"{where} must hold pairs of a folder that build wrote and a weight above 0, got {source!r}; "
            "write them as (('runs/openi_data', 0.5),)"
        )
    return source[0], float(source[1])


def _check_range(name: str, value: typing.Any, where: str) -> None:
    """Whole numbers must be at least 1, some 0; other numbers finite and at least 0, temperatures above 0."""
    if type(value) is int:
        lowest = 0 if name in MAY_BE_ZERO else 1
        if value < lowest:
            raise InputError(f"{where} must be at least {lowest}, got {value}; raise it")
    elif type(value) is float:
        divides, most = name.endswith("temperature") or name == "crop", MOST.get(name, math.inf)
        if not math.isfinite(value) or value < 0 or (divides and value == 0) or value > most:
            bound = "above 0" if divides else "at least 0"
            end = f" and at most {most:g}" if name in MOST else ""
            raise InputError(f"{where} must be finite, {bound}{end}, got {value}; change it")
    elif name == "early_temperatures":
        if any(type(each) is not float or not math.isfinite(each) or each <= 0 for each in value):
            raise InputError(f"{where} must be numbers above 0, got {value}; write it as (0.5,0.25) or ()")
    elif name == "fractions":
        shares = all(type(each) is float and 0 < each <= 1 for each in value)
        if not value or not shares or list(value) != sorted(set(value)):
            raise InputError(
                f"{where} must be rising numbers above 0 and at most 1, got {value}; write it as (0.1,1.0)"
            )
    elif type(value) is tuple and (not value or any(type(size) is not int or size < 1 for size in value)):
        raise InputError(f"{where} must be whole numbers of at least 1, got {value}; write it as (2,1)")
