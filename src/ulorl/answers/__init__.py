"""Answers: finding them in outputs, their normal forms, and their equality. Shared by rewards, cleaning, verifier."""
