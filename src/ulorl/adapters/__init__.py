"""UloRL's parts in the form in which other trainers, such as TRL and verl, take them."""
