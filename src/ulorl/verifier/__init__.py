"""The generative verifier of section 3.3: makes its labelled pairs, trains it and measures it."""
