"""Arguments under the authors' names: bound to their defaults, and refused by name where they are not supported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def bind(official_class: str, arguments: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Fill in the authors' defaults, refusing arguments that their class does not have.

    Args:
        official_class: for messages.
        arguments: what the user gave.
        defaults: all arguments of the class with their defaults; `...` for those without one.

    Returns:
        All arguments.

    Raises:
        ValueError: if an argument is unknown, or a text, which would count as True, where the default is a boolean.
        TypeError: if a required one is missing.
    """
    unknown = [name for name in arguments if name not in defaults]
    if unknown:
        raise ValueError(f"{official_class} has no argument {unknown[0]}; it has {list(defaults)}.")
    for name, value in arguments.items():
        if isinstance(defaults[name], bool) and isinstance(value, str):
            raise ValueError(f"{official_class}: {name} is {value!r}; expected True or False.")
    missing = [name for name, default in defaults.items() if default is ... and name not in arguments]
    if missing:
        raise TypeError(f"{official_class} needs the argument {missing[0]}.")
    return dict(defaults) | dict(arguments)


def require(official_class: str, arguments: Mapping[str, object], **supported: object) -> None:
    """Refuse an argument whose value is not the one that is supported, naming it.

    Raises:
        ValueError: if `arguments[name] != supported[name]` for any name.
    """
    for name, value in supported.items():
        if arguments[name] != value:
            raise ValueError(f"{official_class}: {name} is {arguments[name]!r}; only {value!r} is supported.")


def one_of(official_class: str, arguments: Mapping[str, object], **supported: Sequence[object]) -> None:
    """Refuse an argument whose value is none of those that are supported, naming it.

    Raises:
        ValueError: if `arguments[name]` is not in `supported[name]` for any name.
    """
    for name, values in supported.items():
        if arguments[name] not in values:
            raise ValueError(f"{official_class}: {name} is {arguments[name]!r}; expected one of {list(values)}.")


def attention_levels(official_class: str, block_list: object, allowed: Sequence[int]) -> list[int]:
    """Levels that a `block_list` of UTNet's authors names, one digit each.

    Raises:
        ValueError: if it names anything else.
    """
    digits = [str(level) for level in allowed]
    block_list = str(block_list) if isinstance(block_list, int) else block_list  # a command line reads 1234 as a number
    if not isinstance(block_list, Sequence) or any(digit not in digits for digit in block_list):
        raise ValueError(f"{official_class}: block_list is {block_list!r}; expected digits of '{''.join(digits)}'.")
    return [level for level in allowed if str(level) in block_list]


def from_end(
    official_class: str, arguments: Mapping[str, object], name: str, levels: Sequence[int], count: int
) -> list[int]:
    """Values of the levels from a list that UTNet's authors read from its end, 1 where a level does not need one.

    Args:
        official_class: for messages.
        arguments: all of the class.
        name: of the list.
        levels: those that need a value; level i takes entry i - count.
        count: number of levels.

    Returns:
        One value per level.

    Raises:
        ValueError: if the list is too short.
    """
    values, needed = arguments[name], count - min(levels, default=count)
    if not isinstance(values, Sequence) or len(values) < needed or any(values[i - count] < 1 for i in levels):
        raise ValueError(
            f"{official_class}: {name} is {values!r}; block_list {arguments['block_list']!r} needs a list of at least "
            f"{needed} numbers, the last one for the coarsest level, each at least 1."
        )
    return [values[i - count] if i in levels else 1 for i in range(count)]
