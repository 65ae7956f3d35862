"""The names of the ages of tokens in the metrics. No torch."""

from __future__ import annotations

AGES = ("age/0", "age/1", "age/2", "age/3", "age/4_or_more")  # shares of the trained tokens, by their age in versions
AGE_MEANS = ("ratio", "clip_fraction", "mismatch", "entropy")  # of the tokens of an age: age/0/ratio, ...
