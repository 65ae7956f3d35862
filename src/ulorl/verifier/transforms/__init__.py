"""Equivalent spellings of reference answers, and look-alikes with another value (section 3.3).

A look-alike is made in two steps: the value is changed, then spelled as an equivalent answer would be, so that its
spelling does not reveal the label.
"""
