"""`python -m medprism` is the same program as `lightning`."""

from medprism.cli import main

main()
