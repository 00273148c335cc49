"""python -m search.report RUN."""

from search.report import main
from spaces.errors import run_main

if __name__ == "__main__":
    run_main(main)
