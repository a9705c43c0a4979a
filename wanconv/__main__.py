"""`python -m wanconv`."""

from wanconv.cli import main

main()
