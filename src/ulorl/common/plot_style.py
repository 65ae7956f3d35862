"""The matplotlib settings that every figure of the project shares."""

STYLE = {"svg.hashsalt": "ulorl", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
