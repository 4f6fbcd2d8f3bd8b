"""`python -m flows`: the nocturne command."""

from flows.cli import main

main()
