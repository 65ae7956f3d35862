"""Models asked for whole outputs, for data cleaning and for verdicts: an OpenAI-compatible server, or our engine."""
