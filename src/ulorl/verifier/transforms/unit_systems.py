"""The units of answers, and the unit that a question asks for. Conversions stay within a system, where they are
exact and common."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    """A unit, by its name in pint, to a power: 2 for areas, 3 for volumes."""

    name: str
    power: int = 1

    @property
    def system(self) -> tuple[str, int]:
        """Return the name of the unit's system, and the power."""
        return _TABLE[self.name][0], self.power

    @property
    def factor(self) -> Fraction:
        """Return how many of the system's smallest unit the unit is."""
        return Fraction(_TABLE[self.name][1]) ** self.power

    def related(self) -> list[Unit]:
        """Return the other units of the unit's system."""
        same = [name for name, row in _TABLE.items() if row[0] == self.system[0] and name != self.name]
        return [Unit(name, self.power) for name in same]

    def names(self, value: Fraction) -> list[str]:
        """Return the spellings of the unit behind a number: cm, centimeters; "inch" behind 1."""
        _, _, short, one, many = _TABLE[self.name]
        full = one if value == 1 else many
        if self.power == 1:
            return [full, short]
        shape = {2: ("square", "sq"), 3: ("cubic", "cu")}[self.power]
        return [f"{shape[0]} {full}", f"{shape[1]} {short}", f"{short}^{self.power}"]


_TABLE: dict[str, tuple[str, int, str, str, str]] = {
    "millimeter": ("metric length", 1, "mm", "millimeter", "millimeters"),
    "centimeter": ("metric length", 10, "cm", "centimeter", "centimeters"),
    "meter": ("metric length", 1000, "m", "meter", "meters"),
    "kilometer": ("metric length", 10**6, "km", "kilometer", "kilometers"),
    "inch": ("length", 1, "in", "inch", "inches"),
    "foot": ("length", 12, "ft", "foot", "feet"),
    "yard": ("length", 36, "yd", "yard", "yards"),
    "mile": ("length", 63360, "mi", "mile", "miles"),
    "second": ("time", 1, "s", "second", "seconds"),
    "minute": ("time", 60, "min", "minute", "minutes"),
    "hour": ("time", 3600, "h", "hour", "hours"),
    "day": ("time", 86400, "days", "day", "days"),
    "week": ("time", 604800, "weeks", "week", "weeks"),
    "gram": ("metric mass", 1, "g", "gram", "grams"),
    "kilogram": ("metric mass", 1000, "kg", "kilogram", "kilograms"),
    "ounce": ("mass", 1, "oz", "ounce", "ounces"),
    "pound": ("mass", 16, "lb", "pound", "pounds"),
    "milliliter": ("metric volume", 1, "mL", "milliliter", "milliliters"),
    "liter": ("metric volume", 1000, "L", "liter", "liters"),
    "quart": ("volume", 1, "qt", "quart", "quarts"),
    "gallon": ("volume", 4, "gal", "gallon", "gallons"),
    "cent": ("money", 1, "cents", "cent", "cents"),
    "dollar": ("money", 100, "USD", "dollar", "dollars"),
    "degree": ("angle", 1, "deg", "degree", "degrees"),
}
_NAMES = {spelling: name for name, row in _TABLE.items() for spelling in row[3:]} | {
    "cm": "centimeter", "mm": "millimeter", "km": "kilometer", "kg": "kilogram", "mL": "milliliter",
    "metre": "meter", "metres": "meter", "centimetres": "centimeter", "litres": "liter", "kilometres": "kilometer",
}  # fmt: skip
_ASKED = re.compile(
    r"\b(?:how (?:many|much) (?:more |fewer |less |total )?|(?<!feet )(?<!\d )(?<!written )(?<!each )\bin )"
    r"(?:terms of |(?P<power>square|cubic) )?"
    rf"(?P<unit>{'|'.join(sorted(_NAMES, key=len, reverse=True))})\b"
    r"(?!\s*(?:per|/|a|an|each|every|\^|and|or|of)\b)(?![\^/])"
)
_RATE = re.compile(
    r"\b(?:per|rate|ratio|average|speed|each|every|percent\w*|mph|units? digit|number of|fraction|what day|sum of"
    r"|digits?|remainder|radians?|probability|times)\b|%"
)
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_MONEY = re.compile(
    r"\bhow much\b(?! (?:time|long|weight|water|food|paint|fabric|milk|sugar|gas)\w*\b)"
    r"(?: money| profit| change)?[^?]*\b(?:spend|spent|earn(?:ed)?|cost|pay|paid|make|save[sd]?|charge[sd]?"
    r"|owe|profit|money|raise[sd]?|price|receive[sd]?)\b|\btotal cost\b|\bhow much money\b"
)
_LIQUID = re.compile(  # of which an ounce is a volume
    r"\b(?:fluid|liquids?|water|milk|juice|soda|cola|coke|coffee|tea|drinks?|drank|beer|wine|syrup|oil|vinegar|soup|broth|shampoo"
    r"|soap|lotion|lemonade|smoothies?|punch|formula|sauce|wax|perfume|bottles?|cups?|cans?|glass(?:es)?|jugs?|pints?|quarts?"
    r"|gallons?|lit(?:er|re)s?|bleach|detergent|medicine|gatorade|bartender|alcohol|paint|gasoline|blood)\b",
    re.I,
)
_NO_ANGLE = re.compile(r"fahrenheit|celsius|temperature|thermometer|warm|cold|heat|polynomial|fever", re.I)
_OTHER_MONEY = re.compile(r"[€£¥]|\b(?:euros?|pesos?|rupees?|yen|yuan|cents?|coins?|pounds? sterling)\b", re.I)


def of_factors(factors: tuple[tuple[str, int], ...]) -> Unit | None:
    """Return the unit that `answers.quantities` read, None when it is not one of these."""
    if len(factors) == 1 and factors[0][0] in _TABLE and factors[0][1] in (1, 2, 3):
        name, power = factors[0]
        if power == 1 or "length" in _TABLE[name][0]:
            return Unit(name, power)
    return None


def other_kind(name: str, question: str) -> bool:
    """Return whether an ounce may be a volume, or a degree not an angle."""
    return bool((name == "ounce" and _LIQUID.search(question)) or (name == "degree" and _NO_ANGLE.search(question)))


def asked(question: str) -> Unit | None:
    """Return the unit that the last sentence asks for; None when it names none or several, or asks for a rate."""
    sentence = _SENTENCE.split(question.strip())[-1].lower()
    found = list(_ASKED.finditer(sentence))
    if _RATE.search(sentence):
        return None
    if len(found) == 1:
        power = {"square": 2, "cubic": 3}.get(found[0]["power"] or "", 1)
        name = _NAMES[found[0]["unit"]]
        if other_kind(name, question):
            return None
        return of_factors(((name, power),))
    named = re.search(rf"\b(?:{'|'.join(_NAMES)})\b", sentence)
    if not found and not named and "$" in question and _MONEY.search(sentence) and not _OTHER_MONEY.search(question):
        return Unit("dollar")
    return None
