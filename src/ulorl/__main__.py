"""`python -m ulorl` is the `ulorl` command."""

from ulorl.cli.main import main

main()
