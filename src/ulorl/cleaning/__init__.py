"""Cleaning of raw problems (section 3.4): keeps problems with a short answer that a reward can check."""
