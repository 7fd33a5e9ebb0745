"""`python -m thresher`: the command line, also as `accelerate launch -m thresher`."""

from thresher.cli import main

main()
