"""Rewards by verifiable answers: 1 if the predicted answer is equivalent to the reference, else 0 (section 3.3)."""
