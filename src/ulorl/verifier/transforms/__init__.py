"""Equivalent spellings of reference answers, and look-alikes with another value (section 3.3). No torch.

A look-alike is made in two moves: the value is changed, then spelled as an equivalent answer would be. So nothing about
the spelling tells the label.
"""
