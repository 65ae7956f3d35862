"""Finds answers in outputs, normalises them, and compares them. Shared by rewards, cleaning, verifier."""
