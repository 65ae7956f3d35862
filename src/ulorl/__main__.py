"""`python -m ulorl` is the `ulorl` command."""

from ulorl.cli import main

main()
