"""The argument after a configuration file's colon, as in configs/deit.py:base,distilled,500."""

from __future__ import annotations

import difflib

from deit_jax.config import ConfigError


def pick(file: str, argument: str, **groups: tuple[str, ...]) -> dict[str, str]:
    """The word that a comma-separated argument holds of each group; "" of a group that it does not mention.

    Words may come in any order, since no two groups share one. `file` is the configuration's name, for the message.

    Raises ConfigError for a word of no group (the nearest one is named) and for two words of one group.
    """
    picked = dict.fromkeys(groups, "")
    for word in filter(None, argument.split(",")):
        group = next((name for name, words in groups.items() if word in words), None)
        if group is None:
            known = [known for words in groups.values() for known in words]
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
            choices = "; ".join(" | ".join(words) for words in groups.values())
            raise ConfigError(
                f"configs/{file}:{argument}: {word!r} is not known, the nearest is {near!r}; give any of {choices}"
            )
        if picked[group]:
            raise ConfigError(f"configs/{file}:{argument}: {picked[group]!r} and {word!r} exclude each other")
        picked[group] = word
    return picked
