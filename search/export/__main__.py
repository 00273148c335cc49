"""python -m search.export RUN."""

from search.export import main
from spaces.errors import run_main

if __name__ == "__main__":
    run_main(main)
