"""Section 3.4: from raw problems to ones with a short answer that a reward can check. `ulorl data clean` runs it."""
